//! What processes and the machine used, as the kernel tells it.
//!
//! CPU time comes from each process's CPU clock (`clock_getcpuclockid(3)`): nanoseconds, kernel included, threads that have ended
//! included. (`/proc/<pid>/task/*/schedstat` loses those, and stunnel has a thread for each client.) It is charged when a thread leaves
//! the CPU, so both ends of a window must be quiet: the load generator sends nothing around them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Ticks a second of `/proc/stat` and `/proc/<pid>/stat`: USER_HZ, 100 on every architecture that is built for.
pub const USER_HZ: f64 = 100.0;

/// CPU time of a set of processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Nanoseconds by process.
    pub processes: BTreeMap<i32, u64>,
    /// Ticks in user mode; the kernel splits the precise time by what its timer saw.
    pub user: u64,
    /// Ticks in kernel mode.
    pub system: u64,
}

impl Cpu {
    /// Of these processes and everything below them.
    pub fn of(roots: &[u32]) -> Result<Self> {
        let mut all = Self::default();
        for pid in trees(roots)? {
            let clock = clock_getcpuclockid(Pid::from_raw(pid))
                .with_context(|| format!("process {pid} has no CPU clock: it ended"))?;
            let time = clock_gettime(clock).with_context(|| format!("the CPU clock of process {pid}"))?;
            let ns = u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec()).unwrap_or(0);
            all.processes.insert(pid, ns);
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let stat = Stat::parse(&text).with_context(|| format!("/proc/{pid}/stat: {text}"))?;
            all.user += stat.user;
            all.system += stat.system;
        }
        Ok(all)
    }

    /// Nanoseconds since `before`; an error when a process came or went, whose time would be lost.
    pub fn since(&self, before: &Self) -> Result<u64> {
        let ids = |cpu: &Self| cpu.processes.keys().copied().collect::<Vec<_>>();
        if ids(self) != ids(before) {
            anyhow::bail!("its processes changed: {:?}, then {:?}", ids(before), ids(self));
        }
        let total = |cpu: &Self| cpu.processes.values().sum::<u64>();
        Ok(total(self).saturating_sub(total(before)))
    }

    /// The share of user mode since `before`; nothing when fewer than 20 ticks passed, too few for a split.
    #[expect(clippy::cast_precision_loss, reason = "ticks of seconds")]
    pub fn user_share(&self, before: &Self) -> Option<f64> {
        let (user, system) = (
            self.user.saturating_sub(before.user),
            self.system.saturating_sub(before.system),
        );
        (user + system >= 20).then(|| user as f64 / (user + system) as f64)
    }
}

/// What `/proc/<pid>/stat` says (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The parent.
    pub parent: i32,
    /// Ticks in user mode, of all threads.
    pub user: u64,
    /// Ticks in kernel mode, of all threads.
    pub system: u64,
}

impl Stat {
    /// Reads one; a name may hold spaces and parentheses.
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            user: fields.get(11)?.parse().ok()?,
            system: fields.get(12)?.parse().ok()?,
        })
    }
}

/// These processes and everything below them, in ascending order.
pub fn trees(roots: &[u32]) -> Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process may end between the two reads.
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(stat) = Stat::parse(&text) {
            parents.push((pid, stat.parent));
        }
    }
    let mut found: Vec<i32> = roots.iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = parents.iter().filter(|(_, above)| *above == parent);
        found.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Ticks of the whole machine since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Everything but idle, waiting and stolen.
    pub busy: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
}

impl Machine {
    /// Now.
    pub fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        Self::parse(&text).context("/proc/stat has no line `cpu`")
    }

    /// From `/proc/stat`: user nice system idle iowait irq softirq steal guest guest_nice; guests are within user.
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line
            .split_whitespace()
            .map(|word| word.parse().ok())
            .collect::<Option<_>>()?;
        let at = |index: usize| fields.get(index).copied();
        Some(Self {
            busy: at(0)? + at(1)? + at(2)? + at(5)? + at(6)?,
            steal: at(7).unwrap_or(0),
        })
    }
}

/// Memory of a set of processes, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, shared pages counted for each.
    pub rss: u64,
    /// Resident, shared pages divided among those who share.
    pub pss: u64,
    /// The largest that `rss` has been since each process started.
    pub peak: u64,
}

impl Memory {
    /// Of exactly these processes.
    pub fn of(processes: &[i32]) -> Result<Self> {
        let mut all = Self::default();
        for pid in processes {
            let read = |file: &str| {
                let path = format!("/proc/{pid}/{file}");
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
            };
            let (status, rollup) = (read("status")?, read("smaps_rollup")?);
            let lacking = |what| format!("process {pid} has no {what}");
            all.rss += kib(&status, "VmRSS:").with_context(|| lacking("VmRSS"))?;
            all.peak += kib(&status, "VmHWM:").with_context(|| lacking("VmHWM"))?;
            all.pss += kib(&rollup, "Pss:").with_context(|| lacking("Pss"))?;
        }
        Ok(all)
    }
}

/// A line `Name:   123 kB` of a file in `/proc`.
pub fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The processor's name and which of the flags that matter to AES-GCM it has.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let flags = value("flags");
    let has = |flag: &str| {
        if flags.split(' ').any(|one| one == flag) {
            "yes"
        } else {
            "no"
        }
    };
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "{count} x {} (AES-NI {}, VAES {}, AVX-512 {})",
        value("model name"),
        has("aes"),
        has("vaes"),
        has("avx512f")
    )
}
