//! What processes hold at one moment, as `/proc` tells it (proc(5)).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::bench::process::{kib, trees};

/// Memory, descriptors and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many processes.
    pub processes: u64,
    /// Resident memory in KiB; pages that several share count for each.
    pub rss: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Held {
    /// Of one process.
    pub fn of(pid: Pid) -> Result<Self> {
        let folder = Path::new("/proc").join(pid.to_string());
        let status = std::fs::read_to_string(folder.join("status"))
            .with_context(|| format!("cannot read the status of process {pid}"))?;
        let number = |name: &str| kib(&status, name).with_context(|| format!("process {pid} has no {name}"));
        Ok(Self {
            processes: 1,
            rss: number("VmRSS:")?,
            descriptors: std::fs::read_dir(folder.join("fd"))?.count() as u64,
            threads: number("Threads:")?,
        })
    }

    /// Of a process and everything below it; one below that ends meanwhile holds nothing.
    pub fn tree(root: Pid) -> Result<Self> {
        let mut all = Self::of(root)?;
        for pid in trees(&[u32::try_from(root.as_raw())?])? {
            if pid != root.as_raw()
                && let Ok(one) = Self::of(Pid::from_raw(pid))
            {
                all.processes += one.processes;
                all.rss += one.rss;
                all.descriptors += one.descriptors;
                all.threads += one.threads;
            }
        }
        Ok(all)
    }

    /// Resident memory in MiB.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn mib(&self) -> f64 {
        self.rss as f64 / 1024.0
    }
}

/// A TCP socket of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Its own port.
    pub local: u16,
    /// The other end's.
    pub remote: u16,
    /// As the kernel numbers states: 1 established, 10 listening (`include/net/tcp_states.h`).
    pub state: u8,
    /// What `/proc/<pid>/fd` calls it: `socket:[inode]`; 0 when no process has it.
    pub inode: u64,
}

/// Established.
pub const ESTABLISHED: u8 = 1;

/// Every TCP socket in the network namespace of this process, both families.
pub fn sockets(pid: Pid) -> Result<Vec<Tcp>> {
    let mut all = Vec::new();
    for file in ["tcp", "tcp6"] {
        let path = format!("/proc/{pid}/net/{file}");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        for line in text.lines().skip(1) {
            all.push(socket(line).with_context(|| format!("{path}: {line}"))?);
        }
    }
    Ok(all)
}

/// `sl local remote state tx:rx tr:when retrnsmt uid timeout inode …`
fn socket(line: &str) -> Option<Tcp> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = |index: usize| u16::from_str_radix(words.get(index)?.rsplit_once(':')?.1, 16).ok();
    Some(Tcp {
        local: port(1)?,
        remote: port(2)?,
        state: u8::from_str_radix(words.get(3)?, 16).ok()?,
        inode: words.get(9)?.parse().ok()?,
    })
}

/// The ports of the clients whose connections this process has accepted, by any listener.
pub fn clients(pid: Pid) -> Result<BTreeSet<u16>> {
    let mut inodes = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        let name = name.to_string_lossy();
        let inode = name
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    // Its own connections to intakes have the client's end here, too: no Agent's port is among them but by chance.
    let sockets = sockets(pid)?;
    Ok(sockets
        .into_iter()
        .filter(|socket| inodes.contains(&socket.inode))
        .map(|socket| socket.remote)
        .collect())
}
