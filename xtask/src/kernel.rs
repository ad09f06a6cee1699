//! `cargo xtask test --kernel NAME`: the suites that depend on the kernel, on a kernel of Debian under qemu.
//!
//! The guest sees the machine's own files, read-only, with a memory file system over them: the same debug binaries, the
//! same libraries and tools, another kernel. Emulation alone (TCG), so it runs wherever root does; no time means anything there.

mod fetch;
mod initramfs;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{build, sh};
use fetch::{KERNELS, Tools, Unpacked};

/// Suites that run on other kernels, in this order, each with the cases that are left out there unless asked for: floods and
/// hundreds of pods, which cost an emulated machine more time than the whole rest.
pub const KERNEL_SUITES: &[(&str, &[&str])] = &[
    ("datapath", &["recycled_ports", "an_upgrade_under_load"]),
    (
        "leaks",
        &[
            "a_hundred_kills",
            "kills_leak_nothing_by_tc",
            "kills_are_counted_by_tc",
        ],
    ),
    ("classifiers", &[]),
    ("pods", &["two_hundred", "firewalls", "sysctls"]),
];
/// How long the guest may take for all of them: three to five times what they take on a quiet machine.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// By how much a suite's own time limits are longer in the guest: emulated, with another build beside it, some scenarios take ten times as long.
const PATIENCE: u32 = 8;
/// What datapaths, pods and their tests may ask for. The kernel loads others itself when it needs them.
const WANTED: &[&str] = &[
    "veth",
    "dummy",
    "bridge",
    "br_netfilter",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "ip_tables",
    "ip6_tables",
    "xt_mark",
    "xt_conntrack",
    "xt_comment",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_socket",
    "tcp_diag",
];
/// Between file server and emulator, in the run's folder.
const SOCKET: &str = "socket";
/// How the guest marks what it says to us.
const MARK: &str = "afp-guest: ";

/// What the guest said.
pub enum Event {
    /// A line that is not for us.
    Line(String),
    /// A suite's output begins.
    Begin(String),
    /// A suite ended with this exit status.
    End(String, i32),
}

/// The names that `--kernel` takes.
pub fn names() -> Vec<&'static str> {
    KERNELS.iter().map(|kernel| kernel.name).collect()
}

/// Boots the kernel `name`, runs `suites` (name, program) there and tells `heard` what is said. Fails, with the last lines shown,
/// when the guest did not get to its end.
pub fn run(
    name: &str,
    suites: &[(String, PathBuf)],
    filter: Option<&str>,
    mut heard: impl FnMut(Event),
) -> Result<()> {
    let Some(wanted) = KERNELS.iter().find(|kernel| kernel.name == name) else {
        bail!("no kernel `{name}`; there are: {}", names().join(", "));
    };
    let tools = Tools::get()?;
    let kernel = wanted.get(&tools)?;
    let folder = RunFolder::new()?;
    write_jobs(&folder.0, &tools, &kernel, suites, filter)?;
    std::fs::write(
        folder.0.join("initrd"),
        initramfs::build(&tools, &kernel, &folder.0)?,
    )?;
    let start = Instant::now();
    let _server = serve(&tools, &folder.0)?;
    let mut guest = boot(&tools, &kernel, &folder.0)?;
    let lines = guest.lines()?;
    let mut last: Vec<String> = Vec::new();
    let mut release = None;
    let mut done = false;
    loop {
        let line = match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                report(&last);
                bail!(
                    "kernel {name}: still running after {} min, stopped",
                    LIMIT.as_secs() / 60
                );
            }
        };
        if last.len() == 40 {
            last.remove(0);
        }
        last.push(line.clone());
        // Firmware and kernel share the console and do not always end their lines.
        match line.split_once(MARK).map(|(_, mark)| mark) {
            None => heard(Event::Line(line)),
            Some(mark) => match mark.split(' ').collect::<Vec<_>>()[..] {
                ["begin", suite] => heard(Event::Begin(suite.to_owned())),
                ["end", suite, status] => heard(Event::End(suite.to_owned(), status.parse()?)),
                ["kernel", version] => release = Some(version.to_owned()),
                ["done"] => done = true,
                _ => eprintln!("kernel {name}: {mark}"),
            },
        }
    }
    drop(guest);
    if !done {
        report(&last);
        bail!(
            "kernel {name}: the guest ended before its suites did (a panic, or no way to its files); its last lines are above"
        );
    }
    println!(
        "kernel {name}: {} ({}) under {}, {:.0} s; this machine runs {}",
        release.unwrap_or_default(),
        kernel.package,
        emulator(&tools)?,
        start.elapsed().as_secs_f32(),
        sh::output(Command::new("uname").arg("-r"))?.trim(),
    );
    Ok(())
}

fn report(last: &[String]) {
    for line in last {
        eprintln!("| {line}");
    }
}

fn emulator(tools: &Tools) -> Result<String> {
    let about = sh::output(tools.command("usr/bin/qemu-system-x86_64").arg("--version"))?;
    let first = about.lines().next().unwrap_or_default();
    Ok(first.replace("QEMU emulator version", "qemu"))
}

/// The files that the guest reads: its script and the list of suites.
fn write_jobs(
    run: &Path,
    tools: &Tools,
    kernel: &Unpacked,
    suites: &[(String, PathBuf)],
    filter: Option<&str>,
) -> Result<()> {
    let mut list = String::new();
    for (suite, program) in suites {
        let words = filter.map_or_else(|| without(suite), str::to_owned);
        if filter.is_none() && !words.is_empty() {
            println!(
                "{suite}: left out under emulation:{}",
                words.replace(" --skip", "")
            );
        }
        list.push_str(&format!("{suite} {} {words}\n", program.display()));
    }
    std::fs::write(run.join("suites"), list)?;
    let mut script = include_str!("kernel/guest.sh").to_owned();
    for (mark, value) in [
        ("@ROOT@", sh::root()),
        ("@PROXY@", build::binary(true)),
        ("@RUN@", run.to_owned()),
        ("@MODULES@", kernel.modules.clone()),
        ("@KMOD@", tools.path("bin/kmod")),
        ("@BUSYBOX@", initramfs::busybox(tools)?),
        ("@PATIENCE@", PathBuf::from(PATIENCE.to_string())),
        ("@WANTED@", PathBuf::from(WANTED.join(" "))),
    ] {
        script = script.replace(mark, &value.display().to_string());
    }
    std::fs::write(run.join("guest.sh"), script)?;
    Ok(())
}

/// The arguments that leave cases out.
fn without(suite: &str) -> String {
    KERNEL_SUITES
        .iter()
        .filter(|(name, _)| *name == suite)
        .flat_map(|(_, cases)| *cases)
        .map(|case| format!(" --skip {case}"))
        .collect()
}

/// Serves the machine's files, read-only: a mount namespace of its own holds `/` (and what of the checkout is mounted elsewhere) without
/// the right to write, and it dies with us.
fn serve(tools: &Tools, run: &Path) -> Result<Process> {
    let share = run.join("share");
    std::fs::create_dir_all(&share)?;
    let target = build::target();
    let script = "set -e
        share=$1 socket=$2 program=$3
        shift 3
        mount --bind / \"$share\"
        mount -o remount,bind,ro \"$share\"
        for path in \"$@\"; do
            if [ \"$(stat -c %d \"$path\")\" != \"$(stat -c %d /)\" ]; then
                mount --bind \"$path\" \"$share$path\"
                mount -o remount,bind,ro \"$share$path\"
            fi
        done
        mount -t tmpfs run /run
        exec setpriv --pdeathsig KILL \"$program\" --socket-path=\"$socket\" -o source=\"$share\" -o cache=always -o sandbox=chroot -o log_level=err --rlimit-nofile=0";
    let mut command = sh::command("unshare");
    // Socket paths are short (108 bytes): both ends name it from here.
    command
        .current_dir(run)
        .args([
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(&share)
        .arg(SOCKET)
        .arg(tools.path("usr/lib/qemu/virtiofsd"))
        .args([sh::root(), target])
        .env("LD_LIBRARY_PATH", tools.libraries())
        .stdin(Stdio::null());
    let server = Process(command.spawn().context("cannot start unshare (root is needed)")?);
    let start = Instant::now();
    while !run.join(SOCKET).exists() {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("virtiofsd does not listen; its message is above (root is needed)");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

fn boot(tools: &Tools, kernel: &Unpacked, run: &Path) -> Result<Process> {
    let mut command = sh::command("setpriv");
    command
        .current_dir(run)
        .args(["--pdeathsig", "KILL", "--"])
        .arg(tools.path("usr/bin/qemu-system-x86_64"))
        .args([
            "-M",
            "q35,memory-backend=mem",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "3G",
        ])
        // The file server reads and writes the guest's memory.
        .args(["-object", "memory-backend-memfd,id=mem,size=3G,share=on"])
        .args(["-chardev", &format!("socket,id=share,path={SOCKET}")])
        .args([
            "-device",
            "vhost-user-fs-pci,chardev=share,tag=share",
            "-device",
            "virtio-rng-pci",
        ])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(run.join("initrd"))
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .env("LD_LIBRARY_PATH", tools.libraries())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
        command.arg("-L").arg(tools.path(data));
    }
    Ok(Process(command.spawn().context("cannot start qemu")?))
}

/// A process of ours that ends with its guard.
struct Process(Child);

impl Process {
    /// What it prints, line by line, until it ends.
    fn lines(&mut self) -> Result<Receiver<String>> {
        let output = self.0.stdout.take().context("no output")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = plain(&String::from_utf8_lossy(&line));
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Ok(receiver)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of the console without what only a terminal understands: the firmware clears the screen.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            // ESC [ parameters letter, or ESC letter.
            if rest.next() == Some('[') {
                rest.by_ref().find(char::is_ascii_alphabetic);
            }
        } else if !c.is_control() || c == '\t' {
            text.push(c);
        }
    }
    text
}

/// The folder of one run, gone with its guard.
struct RunFolder(PathBuf);

impl RunFolder {
    fn new() -> Result<Self> {
        // What a killed run left: its processes died with it.
        for entry in std::fs::read_dir(fetch::folder())?.flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if let Some(pid) = name.strip_prefix("run-")
                && !Path::new("/proc").join(pid).exists()
            {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        let folder = fetch::folder().join(format!("run-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("kernel: {} stays behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn console_lines_lose_their_controls() {
        assert_eq!(plain("\u{1b}[2J\u{1b}[1;1H\u{1b}cSeaBIOS\r\n"), "SeaBIOS");
        assert_eq!(plain("test a ... ok\r\n"), "test a ... ok");
    }
}
