//! Handing over to another program in the same process: an upgrade in place (docs/adr/0010-hand-over.md).
//!
//! The process id stays, and with it the cgroup, the children and what the service manager knows of us. What the program that
//! comes needs is one message, JSON in a sealed memfd whose number is in [`VARIABLE`]; descriptors are left open, and the message
//! says under which number each is and what it is. Whether the program that comes understands the message is asked before
//! ([`candidate`]).

pub mod candidate;
mod exec;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::descriptors::Left;
use super::listeners::Place;
use super::process::WorkerRecord;
use super::protocol::Pods;
use crate::intercept::NetworkRecord;

pub use exec::exec;

/// Names the message: `<process id>:<descriptor>`. For that process only, like LISTEN_PID: what it starts takes no notice.
pub const VARIABLE: &str = "AGENT_FIPS_PROXY_HANDOVER";

/// The forms of the message that this program understands. The last one is what it says itself. Another form is needed when
/// something that must be understood changes; a new field with a default is none.
pub const FORMATS: [u32; 1] = [1];

const SEALS: SealFlag = SealFlag::F_SEAL_WRITE
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_SEAL);

/// A descriptor that is left open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Number(RawFd);

/// The message.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// One of [`FORMATS`].
    pub format: u32,
    /// What the workers speak: `protocol::PROTOCOL` of the program that started them.
    pub protocol: u32,
    /// Version of the program before.
    pub version: String,
    /// Hand-overs so far, this one among them.
    pub upgrades: u64,
    /// Workers that died or were replaced.
    pub restarts: u64,
    /// The next worker's number.
    pub next_worker: u64,
    /// The admin socket.
    pub admin: Option<AdminRecord>,
    /// Every listener, and where it belongs.
    pub listeners: Vec<(Place, Number)>,
    /// Every worker that runs, with its channel.
    pub workers: Vec<(WorkerRecord, Number)>,
    /// Interception.
    pub interception: InterceptionRecord,
    /// What the service manager keeps for us.
    pub stored: Vec<String>,
    /// The connection of whoever asked for this, to be answered when a new worker serves.
    pub asker: Option<Number>,
}

/// The admin socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdminRecord {
    /// Where it is.
    pub path: PathBuf,
    /// The socket that listens.
    pub socket: Number,
}

/// What the master knows of interception and the kernel does not.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InterceptionRecord {
    /// What was wanted by command, other than the configuration said.
    pub command: Option<bool>,
    /// Every intake name was asked for at least once.
    pub asked: bool,
    /// What Kubernetes said last.
    pub pods: Pods,
    /// The cgroup that the process was in before it went to its own; `None` when it did not go.
    pub previous_cgroup: Option<PathBuf>,
    /// The number that a network got last.
    pub last_network: u32,
    /// Networks of Agents.
    pub networks: Vec<NetworkRecord>,
}

/// Copies of descriptors that stay open in the program that comes. Those that they are copies of do not: so nothing changes for us
/// when that program cannot be run.
#[derive(Debug, Default)]
pub struct Copies(Vec<OwnedFd>);

impl Copies {
    /// Copies one; the number is for the message.
    ///
    /// # Errors
    /// No descriptor is left (LimitNOFILE).
    pub fn add(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<Number> {
        // dup(2): the copy has no FD_CLOEXEC.
        let copy = nix::unistd::dup(descriptor)?;
        let number = Number(std::os::fd::AsRawFd::as_raw_fd(&copy));
        self.0.push(copy);
        Ok(number)
    }
}

/// What the program before said, and its descriptors.
#[derive(Debug)]
pub struct Inherited {
    /// The message.
    pub state: State,
    left: Left,
}

impl Inherited {
    /// The descriptor with this number, once.
    ///
    /// # Errors
    /// There is none, or it was taken before.
    pub fn take(&mut self, number: Number) -> io::Result<OwnedFd> {
        self.left.take(number.0)
    }
}

/// What the program before said; `None` when there was none. To be called once.
///
/// # Errors
/// It cannot be read or understood.
pub fn inherited() -> io::Result<Option<Inherited>> {
    let Ok(value) = std::env::var(VARIABLE) else {
        return Ok(None);
    };
    let mut left = Left::default();
    let Some(message) = message(&value, std::process::id(), &mut left)? else {
        return Ok(None);
    };
    let state = read(&message)?;
    Ok(Some(Inherited { state, left }))
}

/// The descriptor of the message, when it is meant for this process.
fn message(value: &str, own: u32, left: &mut Left) -> io::Result<Option<OwnedFd>> {
    let parsed = value
        .split_once(':')
        .and_then(|(pid, number)| Some((pid.parse::<u32>().ok()?, number.parse::<RawFd>().ok()?)));
    match parsed {
        Some((pid, number)) if pid == own => left.take(number).map(Some),
        Some(_) => Ok(None),
        None => Err(invalid(format!(
            "{VARIABLE} is no `<process>:<descriptor>`: {value}"
        ))),
    }
}

fn read(message: &OwnedFd) -> io::Result<State> {
    // A file that somebody else could still write to is none of ours.
    let seals = fcntl(message, FcntlArg::F_GET_SEALS)?;
    if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
        return Err(invalid(
            "the message of the program before is not sealed".to_owned(),
        ));
    }
    #[derive(Deserialize)]
    struct Form {
        format: u32,
    }
    let mut file = File::from(message.try_clone()?);
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let Form { format } = serde_json::from_slice(&text)?;
    if !FORMATS.contains(&format) {
        return Err(invalid(format!(
            "the program before speaks form {format}; this one understands {FORMATS:?}"
        )));
    }
    Ok(serde_json::from_slice(&text)?)
}

/// The message as a descriptor that stays open in the program that comes.
fn write(state: &State) -> io::Result<OwnedFd> {
    let message = memfd_create(c"agent-fips-proxy-handover", MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(message.try_clone()?);
    serde_json::to_writer(io::BufWriter::new(&mut file), state)?;
    fcntl(message.as_fd(), FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(message)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd;

    use super::*;

    fn state() -> State {
        State {
            format: 1,
            protocol: 7,
            version: "0.0.1".to_owned(),
            upgrades: 3,
            restarts: 1,
            next_worker: 9,
            admin: None,
            listeners: Vec::new(),
            workers: Vec::new(),
            interception: InterceptionRecord::default(),
            stored: vec!["status.4.9803.0".to_owned()],
            asker: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_nobody_can_change_it() {
        let message = write(&state()).unwrap();
        let back = read(&message).unwrap();
        assert_eq!((back.protocol, back.next_worker, back.upgrades), (7, 9, 3));
        let mut file = File::from(message.try_clone().unwrap());
        assert!(file.write_all(b"x").is_err(), "it is sealed");
        assert!(file.set_len(0).is_err(), "it is sealed");
    }

    #[test]
    fn other_forms_and_open_files_are_refused() {
        let other = State {
            format: 99,
            ..state()
        };
        let error = read(&write(&other).unwrap()).unwrap_err();
        assert!(error.to_string().contains("form 99"), "{error}");
        let open = memfd_create(c"open", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let error = read(&open).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
    }

    #[test]
    fn only_the_process_that_is_meant_takes_it() {
        let message = write(&state()).unwrap();
        let number = message.as_raw_fd();
        let mut left = Left::default();
        assert!(
            super::message(&format!("7:{number}"), 8, &mut left)
                .unwrap()
                .is_none()
        );
        for bad in ["", "7", "7:", "x:3", "7:x"] {
            assert!(super::message(bad, 7, &mut left).is_err(), "{bad}");
        }
        for standard in [-1, 0, 1, 2] {
            assert!(left.take(standard).is_err(), "{standard}");
        }
        // From here on `left` owns it.
        std::mem::forget(message);
        let taken = super::message(&format!("7:{number}"), 7, &mut left)
            .unwrap()
            .unwrap();
        assert!(left.take(number).is_err(), "once");
        assert_eq!(read(&taken).unwrap().next_worker, 9);
        drop(taken);
        assert!(left.take(100_000).is_err(), "there is none");
    }
}
