//! The worker's side of [`super::admission`]: asks the master for each connection.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::protocol::FromWorker;
use crate::relay::{self, Judging};

/// The master answers within a millisecond, unless it has much to do with a node's pods.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks the master who may.
#[derive(Debug)]
pub struct Door {
    ask: mpsc::UnboundedSender<FromWorker>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Option<String>>>,
}

impl Door {
    /// What it says to `ask` must reach the master, whose answers must reach [`Door::judged`].
    pub fn new(ask: mpsc::UnboundedSender<FromWorker>) -> Self {
        Self {
            ask,
            state: Mutex::default(),
        }
    }

    /// The master answered.
    pub fn judged(&self, request: u64, refused: Option<String>) {
        if let Some(tell) = self.state().waiting.remove(&request) {
            // The client may have gone.
            let _ = tell.send(refused);
        }
    }

    /// The master is gone, or says nothing any more: whoever waits may not.
    pub fn close(&self) {
        self.state().waiting.clear();
    }

    async fn asked(&self, client: SocketAddr, ours: SocketAddr) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let request = {
            let mut state = self.state();
            state.next += 1;
            let request = state.next;
            state.waiting.insert(request, tell);
            request
        };
        // Also when the client is given up.
        let _given_up = GivenUp(self, request);
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the master, which knows, is gone");
        let judge = FromWorker::Judge {
            request,
            client,
            ours,
        };
        self.ask.send(judge).map_err(|_| gone())?;
        let refused = tokio::time::timeout(LIMIT, told)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the master does not answer"))?
            .map_err(|_| gone())?;
        match refused {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl relay::Door for Door {
    fn admits(&self, client: SocketAddr, ours: SocketAddr) -> Judging<'_> {
        Box::pin(self.asked(client, ours))
    }
}

/// Nobody waits for the answer any more.
struct GivenUp<'a>(&'a Door, u64);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.state().waiting.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_hears_what_the_master_says() {
        let (ask, mut asked) = mpsc::unbounded_channel();
        let door = Door::new(ask);
        let (client, ours) = (
            "127.0.0.1:1000".parse().unwrap(),
            "127.0.0.1:9804".parse().unwrap(),
        );
        for refused in [None, Some("no".to_owned())] {
            let (judged, ()) = tokio::join!(door.asked(client, ours), async {
                let Some(FromWorker::Judge { request, .. }) = asked.recv().await else {
                    panic!("not asked");
                };
                door.judged(request + 1, None);
                door.judged(request, refused.clone());
            });
            assert_eq!(judged.err().map(|error| error.to_string()), refused);
        }
        let (judged, ()) = tokio::join!(door.asked(client, ours), async {
            asked.recv().await.unwrap();
            door.close();
        });
        assert_eq!(judged.unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert!(door.state().waiting.is_empty());
        drop(asked);
        assert!(door.asked(client, ours).await.is_err());
        assert!(door.state().waiting.is_empty());
    }
}
