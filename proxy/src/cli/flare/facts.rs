//! What this host and the processes of the running proxy are: read from files, changed nowhere.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use flate2::read::GzDecoder;

use super::collect::{Context, Keep, file, read};
use crate::supervise::listeners;
use crate::supervise::protocol::Purpose;

/// Of one file, in bytes.
const MOST: usize = 1 << 20;
/// Of a log, in bytes: as much as its section keeps.
const LOG: usize = 4 << 20;
/// For each step of asking the status port.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of the kernel that interception, classifiers and the sandbox need (docs/KERNELS.md).
const OPTIONS: &[&str] = &[
    "CONFIG_BPF",
    "CONFIG_BPF_JIT",
    "CONFIG_BPF_JIT_ALWAYS_ON",
    "CONFIG_BPF_SYSCALL",
    "CONFIG_BPF_UNPRIV_DEFAULT_OFF",
    "CONFIG_CGROUPS",
    "CONFIG_CGROUP_BPF",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_INET_DIAG",
    "CONFIG_INET_DIAG_DESTROY",
    "CONFIG_IPV6",
    "CONFIG_IP_MULTIPLE_TABLES",
    "CONFIG_IPV6_MULTIPLE_TABLES",
    "CONFIG_NETKIT",
    "CONFIG_NET_CLS_ACT",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_NET_SCH_INGRESS",
    "CONFIG_NF_TABLES",
    "CONFIG_SECCOMP_FILTER",
    "CONFIG_SECURITY_LANDLOCK",
    "CONFIG_SECURITY_LOCKDOWN_LSM",
    "CONFIG_VETH",
];

/// Settings of the kernel that this program, its programs or its advice depend on.
const SYSCTLS: &[&str] = &[
    "crypto/fips_enabled",
    "kernel/unprivileged_bpf_disabled",
    "kernel/yama/ptrace_scope",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/somaxconn",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/all/src_valid_mark",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_syncookies",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/lo/disable_ipv6",
];

/// Kernel, distribution, clock, load, memory, security modules, BTF.
pub(super) fn host() -> Result<String, String> {
    let mut text = format!("architecture {}\n", std::env::consts::ARCH);
    for path in [
        "/proc/version",
        "/proc/cmdline",
        "/etc/os-release",
        "/proc/uptime",
        "/proc/loadavg",
        "/sys/kernel/security/lsm",
        "/sys/kernel/security/lockdown",
        "/proc/self/cgroup",
    ] {
        part(&mut text, path, &file(path, 16 * 1024, Keep::First));
    }
    let memory = file("/proc/meminfo", 16 * 1024, Keep::First)
        .map(|all| all.lines().take(5).collect::<Vec<_>>().join("\n"));
    part(&mut text, "/proc/meminfo", &memory);
    let btf = "/sys/kernel/btf/vmlinux";
    part(
        &mut text,
        btf,
        &fs::metadata(btf).map(|metadata| format!("{} bytes", metadata.len())),
    );
    Ok(text)
}

/// Those of [`OPTIONS`] as the running kernel was built.
pub(super) fn options() -> Result<String, String> {
    let release = file("/proc/sys/kernel/osrelease", 1024, Keep::First).unwrap_or_default();
    let boot = format!("/boot/config-{}", release.trim());
    let packed =
        fs::File::open("/proc/config.gz").map(|packed| read(GzDecoder::new(packed), MOST, Keep::First).0);
    let (from, all) = match packed {
        Ok(all) => ("/proc/config.gz", all),
        Err(error) => match file(&boot, MOST, Keep::First) {
            Ok(all) => (boot.as_str(), all),
            Err(other) => return Err(format!("/proc/config.gz: {error}\n{boot}: {other}")),
        },
    };
    let mut text = format!("from {from}\n");
    for option in OPTIONS {
        let set = all.lines().find(|line| {
            line.strip_prefix(option)
                .is_some_and(|rest| rest.starts_with('='))
        });
        let _ = writeln!(
            text,
            "{}",
            set.map_or_else(|| format!("{option} is not set"), str::to_owned)
        );
    }
    Ok(text)
}

/// Those of [`SYSCTLS`].
pub(super) fn sysctls() -> Result<String, String> {
    let mut text = String::new();
    for name in SYSCTLS {
        let value = file(&format!("/proc/sys/{name}"), 1024, Keep::First);
        let value = value.map_or_else(|error| format!("({error})"), |value| value.trim().to_owned());
        let _ = writeln!(text, "{} = {value}", name.replace('/', "."));
    }
    Ok(text)
}

/// Mounts of cgroups and of bpffs, and all file systems of those kinds that the kernel knows.
pub(super) fn mounts() -> Result<String, String> {
    let path = "/proc/self/mountinfo";
    let all = file(path, MOST, Keep::First).map_err(|error| format!("{path}: {error}"))?;
    let wanted = |line: &&str| [" - cgroup", " - bpf "].iter().any(|kind| line.contains(kind));
    let mut text: String = all
        .lines()
        .filter(wanted)
        .map(|line| format!("{line}\n"))
        .collect();
    let known = file("/proc/filesystems", 16 * 1024, Keep::First).unwrap_or_default();
    for kind in ["cgroup2", "bpf"] {
        let knows = known.split_whitespace().any(|word| word == kind);
        let _ = writeln!(
            text,
            "the kernel knows {kind}: {}",
            if knows { "yes" } else { "no" }
        );
    }
    Ok(text)
}

/// Rights, limits and memory of the processes of the running proxy.
pub(super) fn processes(context: &Context) -> Result<String, String> {
    let mut text = String::new();
    for (name, pid) in [("master", context.master), ("worker", context.worker)] {
        let Some(pid) = pid else {
            let _ = writeln!(
                text,
                "{name}: unknown, no proxy answers at {}",
                context.config.status.socket.display()
            );
            continue;
        };
        for path in ["status", "limits", "cgroup", "mountinfo"].map(|file| format!("/proc/{pid}/{file}")) {
            part(
                &mut text,
                &format!("{name} {path}"),
                &file(&path, 32 * 1024, Keep::First),
            );
        }
    }
    Ok(text)
}

/// The end of the file that the master's standard error is, where it is one: a log that no journal has.
pub(super) fn standard_error(context: &Context) -> Result<String, String> {
    let Some(pid) = context.master else {
        return Err("which process writes it is unknown: no proxy answers".to_owned());
    };
    let path = format!("/proc/{pid}/fd/2");
    let target = fs::read_link(&path).map_err(|error| format!("{path}: {error}; run as root"))?;
    if !Path::new(&path)
        .metadata()
        .is_ok_and(|metadata| metadata.is_file())
    {
        return Err(format!(
            "standard error is no file but {}: whoever reads it has the log (the journal, `kubectl logs`, the container's engine)",
            target.display()
        ));
    }
    let log = fs::File::open(&path).map_err(|error| format!("{}: {error}", target.display()))?;
    Ok(read(end(log).map_err(|error| error.to_string())?, LOG, Keep::Last).0)
}

/// Not all of a log of gigabytes.
fn end(mut log: fs::File) -> io::Result<impl Read> {
    use std::io::{Seek, SeekFrom};
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(2 * LOG as u64)))?;
    Ok(log.take(4 * LOG as u64))
}

/// `/metrics` of the status port.
pub(super) fn metrics(context: &Context) -> Result<String, String> {
    if context.local {
        return Err("the running proxy was not asked (--local)".to_owned());
    }
    let mut problem = "status.address is no address of this host".to_owned();
    for wanted in listeners::wanted(&context.config) {
        if wanted.purpose != Purpose::Status {
            continue;
        }
        let asked = || -> io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&wanted.address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            Ok(read(stream, 4 << 20, Keep::First).0)
        };
        match asked() {
            Ok(answer) => match answer.split_once("\r\n\r\n") {
                Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => return Ok(body.to_owned()),
                _ => problem = format!("{} does not answer as the status port does", wanted.address),
            },
            Err(error) => problem = format!("no metrics at {}: {error}", wanted.address),
        }
    }
    Err(problem)
}

fn part(text: &mut String, title: &str, content: &io::Result<String>) {
    let words = match content {
        Ok(words) => words.trim_end().to_owned(),
        Err(error) => format!("({error})"),
    };
    let _ = writeln!(text, "\n== {title}\n{words}");
}
