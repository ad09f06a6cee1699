//! Clients that do not trust the local authority: told once each, shown until they do.
//!
//! Such a client comes back for ever and never gets anywhere, so it must not drown in a counter, and must not fill the log.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::relay::network::NetworkId;
use crate::relay::outcome::{Process, Said, TlsClient};

/// Clients that are remembered; the one that was silent for longest goes first.
const MOST: usize = 256;
/// A client that closes without a word may merely have gone away. One that does so this often, without a session in between,
/// does not trust us.
const SILENT: u64 = 3;

/// What is known of them.
#[derive(Debug, Default)]
pub struct Distrusting {
    clients: Mutex<Vec<Client>>,
    /// Somebody is in the list: the usual way of a session is not to look.
    any: AtomicBool,
}

#[derive(Debug)]
struct Client {
    name: String,
    process: Option<Process>,
    network: NetworkId,
    said: Said,
    handshakes: u64,
    last: Instant,
    told: bool,
}

/// One of them, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistrustStatus {
    /// The intake name that it asks for.
    pub name: String,
    /// Which process; absent where the datapath does not tell it.
    pub process: Option<Process>,
    /// Where it is; 0 is the host.
    pub network: NetworkId,
    /// How it showed it.
    pub said: Said,
    /// Handshakes that ended so.
    pub handshakes: u64,
    /// Seconds since the last.
    pub seconds_ago: u64,
}

impl Distrusting {
    /// A handshake ended by `said`.
    pub fn seen(&self, asking: &TlsClient, said: &Said) {
        let mut clients = self.lock();
        let at = clients
            .iter()
            .position(|client| client.is(asking))
            .unwrap_or_else(|| {
                if clients.len() >= MOST
                    && let Some(oldest) = (0..clients.len()).min_by_key(|&at| clients[at].last)
                {
                    clients.swap_remove(oldest);
                }
                clients.push(Client::new(asking, said));
                clients.len() - 1
            });
        self.any.store(true, Relaxed);
        let client = &mut clients[at];
        client.handshakes += 1;
        client.last = Instant::now();
        client.process.clone_from(&asking.process);
        // An alert says more than silence.
        if matches!(said, Said::Alert(_)) {
            client.said = said.clone();
        }
        let sure = matches!(client.said, Said::Alert(_)) || client.handshakes >= SILENT;
        if sure && !client.told {
            client.told = true;
            tracing::warn!(
                name = client.name,
                process = client.process.as_ref().map(tracing::field::display),
                network = client.network.0,
                "{}",
                client.tale()
            );
        }
    }

    /// It made a session: it trusts us, now.
    pub fn trusts(&self, asking: &TlsClient) {
        if !self.any.load(Relaxed) {
            return;
        }
        let mut clients = self.lock();
        if let Some(at) = clients.iter().position(|client| client.is(asking)) {
            let client = clients.swap_remove(at);
            if client.told {
                tracing::info!(
                    name = client.name,
                    process = asking.process.as_ref().map(tracing::field::display),
                    "a client that did not trust the local authority does now"
                );
            }
        }
        self.any.store(!clients.is_empty(), Relaxed);
    }

    /// Those that were told of.
    pub fn status(&self) -> Vec<DistrustStatus> {
        let clients = self.lock();
        let told = clients.iter().filter(|client| client.told);
        told.map(|client| DistrustStatus {
            name: client.name.clone(),
            process: client.process.clone(),
            network: client.network,
            said: client.said.clone(),
            handshakes: client.handshakes,
            seconds_ago: client.last.elapsed().as_secs(),
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn new(asking: &TlsClient, said: &Said) -> Self {
        Self {
            name: asking.name.clone(),
            process: asking.process.clone(),
            network: asking.network,
            said: said.clone(),
            handshakes: 0,
            last: Instant::now(),
            told: false,
        }
    }

    /// The same program, whatever its pid: it may be restarted over and over.
    fn is(&self, asking: &TlsClient) -> bool {
        let program = |process: &Option<Process>| process.as_ref().and_then(|process| process.name.clone());
        self.network == asking.network
            && self.name == asking.name
            && program(&self.process) == program(&asking.process)
    }

    fn tale(&self) -> String {
        format!(
            "a client does not trust the local authority and gets nowhere: {}; {}",
            self.said,
            cure(&self.name, self.process.as_ref())
        )
    }
}

/// What helps.
pub fn cure(name: &str, process: Option<&Process>) -> String {
    let program = process.and_then(|process| process.name.as_deref());
    let or = program.map_or_else(String::new, |program| format!(" or process:{program}"));
    format!(
        "`agent-fips-proxy ca install` and a restart of it make it trust; one with compiled-in roots or a pinned \
         certificate never will: add {name}{or} to intercept.https_passthrough_names"
    )
}

/// How long ago, for people.
pub fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(process: Option<&str>) -> TlsClient {
        TlsClient {
            name: "config.ddog-gov.com".to_owned(),
            process: process.map(|name| Process {
                pid: 7,
                name: Some(name.to_owned()),
            }),
            network: NetworkId::HOST,
        }
    }

    #[test]
    fn an_alert_is_told_at_once_and_once_and_until_the_client_trusts() {
        let table = Distrusting::default();
        let alert = Said::Alert("unknown_ca".to_owned());
        for _ in 0..5 {
            table.seen(&asking(Some("curl")), &alert);
        }
        let status = table.status();
        assert_eq!(status.len(), 1);
        assert_eq!((status[0].handshakes, &status[0].said), (5, &alert));
        table.trusts(&asking(Some("wget")));
        assert_eq!(table.status().len(), 1, "another one trusts us");
        table.trusts(&asking(Some("curl")));
        assert!(table.status().is_empty());
    }

    #[test]
    fn silence_tells_only_when_it_is_repeated() {
        let table = Distrusting::default();
        table.seen(&asking(Some("node")), &Said::Nothing);
        table.seen(&asking(Some("node")), &Said::Nothing);
        assert!(table.status().is_empty());
        table.trusts(&asking(Some("node")));
        for _ in 0..2 {
            table.seen(&asking(Some("node")), &Said::Nothing);
        }
        assert!(table.status().is_empty(), "a session in between");
        table.seen(&asking(Some("node")), &Said::Nothing);
        assert_eq!(table.status()[0].handshakes, 3);
    }

    #[test]
    fn the_list_is_bounded() {
        let table = Distrusting::default();
        for number in 0..2 * MOST {
            table.seen(&asking(Some(&format!("p{number}"))), &Said::Nothing);
        }
        assert_eq!(table.lock().len(), MOST);
    }
}
