//! A worker that was taken over: what it can still do. Calls are put into the running worker of the shipped program.

use std::process::ExitCode;

use anyhow::{Context, Result};
use harness::inject::{Argument, Outcome, call};
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::World;
use harness::{agent, check, check_eq};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use Argument::{Bytes, Number};

fn main() -> ExitCode {
    run(vec![
        case("a_worker_is_refused_what_it_never_does", &[Need::Root], refused),
        case(
            "a_worker_dies_of_what_only_an_intruder_does",
            &[Need::Root],
            fatal,
        ),
        case(
            "the_master_keeps_what_it_needs",
            &[Need::Root],
            the_master_keeps_what_it_needs,
        ),
        case(
            "nobody_else_may_ask_the_master",
            &[Need::Root],
            nobody_else_may_ask_the_master,
        ),
        case("without_a_sandbox", &[Need::Root], without),
    ])
}

/// An argument that may be negative.
fn signed(value: i32) -> Argument {
    Number(u64::from(value.cast_unsigned()))
}

const HERE: i32 = libc::AT_FDCWD;

/// Its name, the call, its arguments, and what must be answered.
type Row = (&'static str, i64, Vec<Argument>, Errno);

fn refusals(master: Pid) -> Vec<Row> {
    let open =
        |path: &'static [u8], flags: i32| vec![signed(HERE), Bytes(path), signed(flags), Number(0o600)];
    let mapped = libc::PROT_WRITE | libc::PROT_EXEC;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let socket = |family: i32, kind: i32| vec![signed(family), signed(kind), Number(0)];
    let row = |name, number, arguments| (name, number, arguments, Errno::ENOSYS);
    vec![
        // Landlock: whatever permissions say.
        (
            "read a program",
            libc::SYS_openat,
            open(b"/usr/bin/env\0", libc::O_RDONLY),
            Errno::EACCES,
        ),
        (
            "read /run",
            libc::SYS_openat,
            open(b"/run\0", libc::O_RDONLY | libc::O_DIRECTORY),
            Errno::EACCES,
        ),
        (
            "write to /etc",
            libc::SYS_openat,
            open(b"/etc/hosts\0", libc::O_WRONLY),
            Errno::EACCES,
        ),
        (
            "make a file",
            libc::SYS_openat,
            open(b"/tmp/agent-fips-proxy-sandbox\0", libc::O_CREAT | libc::O_WRONLY),
            Errno::EACCES,
        ),
        // seccomp.
        row(
            "make a folder",
            libc::SYS_mkdirat,
            vec![
                signed(HERE),
                Bytes(b"/tmp/agent-fips-proxy-sandbox\0"),
                Number(0o700),
            ],
        ),
        row(
            "remove a file",
            libc::SYS_unlinkat,
            vec![signed(HERE), Bytes(b"/tmp/agent-fips-proxy-sandbox\0"), Number(0)],
        ),
        row(
            "run code that was written",
            libc::SYS_mmap,
            vec![
                Number(0),
                Number(4096),
                signed(mapped),
                signed(anonymous),
                signed(-1),
                Number(0),
            ],
        ),
        row(
            "make memory executable",
            libc::SYS_mprotect,
            vec![Number(0), Number(4096), signed(libc::PROT_EXEC)],
        ),
        row(
            "a file of memory",
            libc::SYS_memfd_create,
            vec![Bytes(b"x\0"), Number(0)],
        ),
        row(
            "a raw socket",
            libc::SYS_socket,
            socket(libc::AF_PACKET, libc::SOCK_RAW),
        ),
        row(
            "the kernel's cryptography",
            libc::SYS_socket,
            socket(libc::AF_ALG, libc::SOCK_SEQPACKET),
        ),
        row("another process", libc::SYS_fork, vec![]),
        row(
            "another process, as libraries make one",
            libc::SYS_clone,
            vec![signed(libc::SIGCHLD)],
        ),
        row(
            "another process, as newer ones do",
            libc::SYS_clone3,
            vec![Number(0), Number(0)],
        ),
        row(
            "end the master",
            libc::SYS_kill,
            vec![signed(master.as_raw()), Number(0)],
        ),
        row(
            "signal the master's thread",
            libc::SYS_tgkill,
            vec![signed(master.as_raw()), signed(master.as_raw()), Number(0)],
        ),
        row("become root", libc::SYS_setuid, vec![Number(0)]),
        row(
            "be dumpable again",
            libc::SYS_prctl,
            vec![signed(libc::PR_SET_DUMPABLE), Number(1)],
        ),
        row(
            "another filter",
            libc::SYS_seccomp,
            vec![Number(0), Number(0), Number(0)],
        ),
        row(
            "type into a terminal",
            libc::SYS_ioctl,
            vec![Number(0), Number(libc::TIOCSTI), Bytes(b"x")],
        ),
        row(
            "another priority",
            libc::SYS_setpriority,
            vec![Number(0), Number(0), Number(0)],
        ),
    ]
}

/// What only somebody who has taken the worker over would call.
fn intrusions(master: Pid) -> Vec<(&'static str, i64, Vec<Argument>)> {
    let master = signed(master.as_raw());
    vec![
        (
            "execve",
            libc::SYS_execve,
            vec![Bytes(b"/bin/true\0"), Number(0), Number(0)],
        ),
        ("bpf", libc::SYS_bpf, vec![Number(0), Number(0), Number(0)]),
        (
            "ptrace",
            libc::SYS_ptrace,
            vec![Number(16), master, Number(0), Number(0)],
        ),
        ("process_vm_readv", libc::SYS_process_vm_readv, vec![master]),
        (
            "io_uring_setup",
            libc::SYS_io_uring_setup,
            vec![Number(1), Number(0)],
        ),
        ("unshare", libc::SYS_unshare, vec![signed(libc::CLONE_NEWUSER)]),
        (
            "mount",
            libc::SYS_mount,
            vec![Bytes(b"x\0"), Bytes(b"/tmp\0"), Bytes(b"tmpfs\0")],
        ),
    ]
}

/// The proxy does its work.
fn ask(world: &World) -> Result<()> {
    let words = ["-d", "{}", "http://localhost:9804/api/v2/series"];
    let answer = agent::ask(&world.host, None, &words)?;
    check!((200..300).contains(&answer.status), "{answer:?}");
    Ok(())
}

fn sandbox(proxy: &Proxy<'_>) -> Result<serde_json::Value> {
    Ok(proxy.status()?["sandbox"].clone())
}

fn refused() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    check_eq!(
        sandbox(&proxy)?,
        json!({"on": {"files": "restricted"}}),
        "what is told"
    );
    let (worker, master) = (proxy.worker()?, proxy.pid());
    // That calls arrive at all, and are not refused for another reason.
    let open = call(
        worker,
        libc::SYS_openat,
        &[signed(HERE), Bytes(b"/etc/hosts\0"), signed(libc::O_RDONLY)],
    )?;
    let Outcome::Value(file) = open else {
        anyhow::bail!("/etc/hosts, which the worker reads: {open:?}")
    };
    let closed = call(worker, libc::SYS_close, &[Number(file)])?;
    check_eq!(closed, Outcome::Value(0), "close it");
    for (name, number, arguments, wanted) in refusals(master) {
        let got = call(worker, number, &arguments).with_context(|| name.to_owned())?;
        check_eq!(got, Outcome::Refused(wanted), "{name}");
    }
    // A port is not bound by a socket that may be made.
    let made = call(
        worker,
        libc::SYS_socket,
        &[signed(libc::AF_INET), signed(libc::SOCK_STREAM), Number(0)],
    )?;
    let Outcome::Value(socket) = made else {
        anyhow::bail!("a TCP socket: {made:?}")
    };
    // AF_INET, port 4660, 127.0.0.1
    let address = Bytes(&[2, 0, 0x12, 0x34, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let bound = call(worker, libc::SYS_bind, &[Number(socket), address, Number(16)])?;
    check_eq!(bound, Outcome::Refused(Errno::EACCES), "bind a port");
    let closed = call(worker, libc::SYS_close, &[Number(socket)])?;
    check_eq!(closed, Outcome::Value(0), "close it");
    check_eq!(proxy.worker()?, worker, "still the same worker");
    ask(&world)
}

fn fatal() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let master = proxy.pid();
    for (count, (name, number, arguments)) in intrusions(master).into_iter().enumerate() {
        let worker = proxy.worker()?;
        let got = call(worker, number, &arguments).with_context(|| name.to_owned())?;
        check_eq!(got, Outcome::Killed(Signal::SIGSYS), "{name}");
        proxy.another_worker(worker)?;
        let log = proxy.log();
        let told = log.matches("a system call that nothing in it makes").count();
        check_eq!(told, count + 1, "{name} is told: {log}");
    }
    ask(&world)
}

/// For whoever has to find out whether a fault comes from it.
fn without() -> Result<()> {
    let world = World::new()?;
    let mut config = world.config();
    config["worker"]["sandbox"] = json!(false);
    let proxy = world.start(&config)?;
    check_eq!(sandbox(&proxy)?, json!("off"), "what is told");
    let open = call(
        proxy.worker()?,
        libc::SYS_openat,
        &[signed(HERE), Bytes(b"/usr/bin/env\0"), signed(libc::O_RDONLY)],
    )?;
    check!(matches!(open, Outcome::Value(_)), "a program is read: {open:?}");
    ask(&world)
}

/// The admin socket, its mode changed by somebody who meant well.
fn nobody_else_may_ask_the_master() -> Result<()> {
    const SOCKET: &str = "/run/agent-fips-proxy/admin.sock";
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    check!(
        world
            .host
            .command("chmod")
            .args(["0666", SOCKET])
            .status()?
            .success(),
        "chmod"
    );
    for command in ["status", "intercept"] {
        let words: &[&str] = if command == "status" {
            &["status"]
        } else {
            &["intercept", "on"]
        };
        let asked = Launch::new(&world.host)
            .command_line(words)
            .through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
            .output()?;
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        check!(!asked.status.success(), "{command} by nobody: {asked:?}");
        check!(
            said.contains("only root and the user that the proxy runs as may ask"),
            "{command}: {said}"
        );
    }
    let log = proxy.log();
    check_eq!(
        log.matches("somebody asks at the admin socket who may not")
            .count(),
        2,
        "{log}"
    );
    check!(proxy.cli(&["status"])?.status.success(), "root may");
    Ok(())
}

/// docs/CAPABILITIES.md, as the kernel tells it.
fn the_master_keeps_what_it_needs() -> Result<()> {
    // CAP_DAC_OVERRIDE 1, KILL 5, SETGID 6, SETUID 7, SETPCAP 8, NET_BIND_SERVICE 10, NET_ADMIN 12, SYS_PTRACE 19, SYS_ADMIN 21,
    // PERFMON 38, BPF 39, SYS_RESOURCE 24.
    const NEEDED: u64 =
        1 << 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 19 | 1 << 21 | 1 << 39;
    const OLDER: u64 = 1 << 38 | 1 << 24;
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let sets = |process: Pid| -> Result<Vec<(String, u64)>> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let lines = status
            .lines()
            .filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
        lines
            .map(|(set, mask)| Ok((set.to_owned(), u64::from_str_radix(mask, 16)?)))
            .collect()
    };
    let master = sets(proxy.pid())?;
    check_eq!(master.len(), 5, "sets of the kernel: {master:?}");
    for (set, mask) in &master {
        check_eq!(mask & !(NEEDED | OLDER), 0, "the master's set {set} is {mask:x}");
    }
    let own = sets(nix::unistd::getpid())?;
    let effective = |sets: &[(String, u64)]| sets.iter().find(|(set, _)| set == "Eff").map(|(_, mask)| *mask);
    // Not everything was given up: what the tests have of it is still there.
    check_eq!(
        effective(&master).map(|mask| mask & NEEDED),
        effective(&own).map(|mask| mask & NEEDED),
        "what is needed"
    );
    check_eq!(
        sets(proxy.worker()?)?.iter().map(|(_, mask)| mask).sum::<u64>(),
        0,
        "the worker's"
    );
    ask(&world)
}
