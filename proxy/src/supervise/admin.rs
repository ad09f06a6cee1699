//! The admin socket: one JSON request a line, one JSON answer a line. `status`, `self-test`, `intercept on|off` and `upgrade` speak to
//! it.
//!
//! It is a Unix socket of mode 0600 in a directory of ours. Whoever may ask may switch interception off, so who asks is looked at,
//! too: root, or the user that the master is. A descriptor that was handed on, or a mode that somebody changed, opens nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// A request is one short line.
const MAX_REQUEST: u64 = 4096;
/// For a whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For a self-test: a minute for all ways, and the time that a process may take that hangs before.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(90);
/// For an upgrade: two trials of the new program, and the start of its worker.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(120);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Everything there is to know.
    Status,
    /// Attach the hooks.
    InterceptOn,
    /// Take the hooks away; the explicit ports go on.
    InterceptOff,
    /// Let the program that is installed now take over.
    Upgrade,
    /// Try every way of Agents' connections now, and the crypto module.
    SelfTest,
}

impl Request {
    fn timeout(self) -> Duration {
        match self {
            Self::Upgrade => UPGRADE_TIMEOUT,
            Self::SelfTest => SELF_TEST_TIMEOUT,
            Self::Status | Self::InterceptOn | Self::InterceptOff => TIMEOUT,
        }
    }
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done, or here it is.
    Ok(serde_json::Value),
    /// It was not done, and why.
    Error(String),
}

/// Who asks: the process that connected, as the kernel knew it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its number, where our pid namespace has one for it.
    pub pid: Option<i32>,
}

/// A request on its way to the master's loop.
#[derive(Debug)]
pub struct Pending {
    /// What is asked.
    pub request: Request,
    /// By whom.
    pub caller: Caller,
    /// Whereto the answer goes.
    pub tell: oneshot::Sender<Answer>,
    /// The connection itself, for [`Request::Upgrade`]: the program that takes over answers by [`tell`].
    pub connection: Option<OwnedFd>,
}

/// Writes an answer to a connection that another program of this process accepted. It is one short line: there is room.
///
/// # Errors
/// Whoever asked is gone.
pub fn tell(connection: OwnedFd, answer: &Answer) -> io::Result<()> {
    use std::io::Write as _;
    let mut stream = std::os::unix::net::UnixStream::from(connection);
    let mut body = serde_json::to_vec(answer)?;
    body.push(b'\n');
    stream.write_all(&body)
}

/// The socket, removed when dropped.
pub struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl AdminSocket {
    /// Binds the socket. `AddrInUse` means that another master answers there; a stale file of a dead one is replaced.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            std::fs::DirBuilder::new().mode(0o755).create(parent)?;
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent-fips-proxy answers there",
            ));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
        })
    }

    /// Goes on with the socket that the program before this one listened on.
    ///
    /// # Errors
    /// It is no such socket.
    pub fn inherit(path: PathBuf, socket: OwnedFd) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self {
            path,
            listener: UnixListener::from_std(listener)?,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Serves for ever; each request goes to `requests`.
    pub async fn serve(self: Arc<Self>, requests: mpsc::Sender<Pending>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let requests = requests.clone();
                    tokio::spawn(async move {
                        if let Err(error) = exchange(stream, requests).await {
                            tracing::debug!(%error, "admin connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the admin socket");
        }
    }
}

async fn exchange(stream: UnixStream, requests: mpsc::Sender<Pending>) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let caller = Caller {
        uid: credentials.uid(),
        pid: credentials.pid(),
    };
    let connection = stream.as_fd().try_clone_to_owned()?;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(MAX_REQUEST));
    tokio::time::timeout(TIMEOUT, read.read_line(&mut line)).await??;
    if line.is_empty() {
        return Ok(());
    }
    let answer = match serde_json::from_str::<Request>(line.trim()) {
        Ok(_) if !may_ask(caller.uid, Uid::effective()) => {
            tracing::warn!(
                uid = caller.uid,
                pid = caller.pid,
                "somebody asks at the admin socket who may not"
            );
            Answer::Error("only root and the user that the proxy runs as may ask".to_owned())
        }
        Ok(request) => {
            let (tell, told) = oneshot::channel();
            let pending = Pending {
                request,
                caller,
                tell,
                connection: (request == Request::Upgrade).then_some(connection),
            };
            if requests.send(pending).await.is_err() {
                Answer::Error("the proxy is stopping".to_owned())
            } else {
                tokio::time::timeout(request.timeout(), told)
                    .await?
                    .unwrap_or_else(|_| Answer::Error("the proxy is stopping".to_owned()))
            }
        }
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut body = serde_json::to_vec(&answer)?;
    body.push(b'\n');
    tokio::time::timeout(TIMEOUT, write.write_all(&body)).await?
}

fn may_ask(uid: u32, own: Uid) -> bool {
    uid == 0 || uid == own.as_raw()
}

/// Asks the master that answers at `path`. Blocking; for the command line.
pub fn ask(path: &Path, request: Request) -> io::Result<Answer> {
    use std::io::{BufRead, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(request.timeout()))?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    io::BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"));
    }
    Ok(serde_json::from_str(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asks_and_answers_and_replaces_a_stale_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        std::fs::create_dir(dir.path().join("run")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = AdminSocket::bind(&path).await.unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (tx, mut rx) = mpsc::channel::<Pending>(1);
        let serving = tokio::spawn(Arc::new(socket).serve(tx));
        tokio::spawn(async move {
            while let Some(pending) = rx.recv().await {
                assert_eq!(pending.caller.pid, Some(std::process::id().cast_signed()));
                assert_eq!(pending.caller.uid, Uid::effective().as_raw());
                let answer = Answer::Ok(serde_json::json!({ "asked": pending.request }));
                let _ = pending.tell.send(answer);
            }
        });
        let asked = path.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&asked, Request::InterceptOff))
            .await
            .unwrap()
            .unwrap();
        assert!(matches!(answer, Answer::Ok(body) if body["asked"] == "intercept_off"));
        assert_eq!(
            AdminSocket::bind(&path).await.err().unwrap().kind(),
            io::ErrorKind::AddrInUse
        );
        serving.abort();
        let _ = serving.await;
        assert!(!path.exists(), "removed with its owner");
    }

    #[test]
    fn root_and_the_own_user_may_ask() {
        let own = Uid::from_raw(990);
        for (uid, may) in [(0, true), (990, true), (991, false), (65534, false)] {
            assert_eq!(may_ask(uid, own), may, "{uid}");
        }
    }
}
