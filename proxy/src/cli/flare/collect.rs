//! Collects one section after the other, each within its time and its size. One that fails is its own error text.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::sections::{How, Section};
use crate::config::Config;
use crate::observe::redact::Document;
use crate::supervise::admin::{self, Answer, Request};
use crate::tls::ca::sha256_hex;

/// Of what a program complains, so much is kept beside what it prints, in bytes.
const COMPLAINT: usize = 64 * 1024;

/// A file of the bundle, scrubbed.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
    /// What is to be known of it: that it failed, was cut, or how its program ended.
    pub(super) note: Option<String>,
}

/// What sections may need.
pub(super) struct Context {
    pub(super) config: Config,
    /// Why `config` is the defaults.
    problem: Option<String>,
    /// The words of the command line that say where the configuration is.
    flags: Vec<OsString>,
    /// The running proxy is left alone.
    pub(super) local: bool,
    /// The processes of the one that runs.
    pub(super) master: Option<u32>,
    pub(super) worker: Option<u32>,
}

impl Context {
    pub(super) fn new(config: Config, problem: Option<String>, flags: Vec<OsString>, local: bool) -> Self {
        let status = match local {
            true => None,
            false => match admin::ask(&config.status.socket, Request::Status) {
                Ok(Answer::Ok(status)) => Some(status),
                _ => None,
            },
        };
        let pid = |process: &str| {
            let pid = status.as_ref()?.get(process)?.get("pid")?.as_u64()?;
            u32::try_from(pid).ok()
        };
        Self {
            master: pid("master"),
            worker: pid("worker"),
            config,
            problem,
            flags,
            local,
        }
    }
}

/// What a section came to before it is scrubbed.
struct Raw {
    text: String,
    note: Option<String>,
}

/// One section.
pub(super) fn collect(section: &Section, context: &Arc<Context>, document: &Document) -> Collected {
    let own = |words: &[&str]| {
        // The file that this process runs, also when it was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command
            .args(words)
            .args(&context.flags)
            .env_remove(super::API_KEY);
        run(command, section)
    };
    let raw = match &section.how {
        How::Running(_) if context.local => Err("the running proxy was not asked (--local)".to_owned()),
        How::Intakes(_) if context.local => Err("the intakes were not asked (--local)".to_owned()),
        How::Own(words) | How::Running(words) | How::Intakes(words) => own(words),
        How::Program(words) => {
            let (program, words) = words.split_first().unwrap_or((&"", &[]));
            let mut command = Command::new(program);
            command.args(words).env_remove(super::API_KEY);
            run(command, section)
        }
        How::Call(call) => {
            let (call, context) = (*call, Arc::clone(context));
            in_time(section.limit(), move || call(&context))
                .and_then(|told| told)
                .map(|text| Raw { text, note: None })
        }
    };
    let Raw { text, mut note } = raw.unwrap_or_else(|error| Raw {
        text: format!("{error}\n"),
        note: Some("not collected: it says why".to_owned()),
    });
    let scrubbed = document.scrub(&text);
    // Taking something out can make a text longer.
    let (text, cut) = read(scrubbed.as_bytes(), section.most(), section.keep());
    if cut {
        note = Some(format!("cut to {} KiB", section.kib));
    }
    Collected {
        name: section.file,
        bytes: text.into_bytes(),
        note: note.map(|note| document.scrub(&note)),
    }
}

/// What is kept of a long output.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    First,
    Last,
}

fn run(mut command: Command, section: &Section) -> Result<Raw, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // With whatever it starts, it can be ended.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    let until = Instant::now() + section.limit();
    let (printed, complained) = (child.stdout.take(), child.stderr.take());
    let (most, keep) = (section.most(), section.keep());
    let printed = reading(printed, move |pipe| read(pipe, most, keep));
    let complained = reading(complained, |pipe| read(pipe, COMPLAINT, Keep::First));
    let left = || until.saturating_duration_since(Instant::now());
    let printed = printed.recv_timeout(left());
    let complained = complained.recv_timeout(left());
    let ended = match &printed {
        Ok(_) => wait(&mut child, until),
        Err(_) => None,
    };
    if ended.is_none() {
        end(&mut child);
    }
    let (Ok((text, cut)), Some(status)) = (printed, ended) else {
        return Err(format!("not within {} s", section.seconds));
    };
    let (complaint, _) = complained.unwrap_or_default();
    let mut notes = Vec::new();
    if let Some(code) = status.code().filter(|code| *code != 0) {
        notes.push(format!("exit code {code}"));
    } else if status.code().is_none() {
        notes.push(status.to_string());
    }
    if cut {
        notes.push(format!("cut to {} KiB", section.kib));
    }
    let text = match (text.is_empty(), complaint.is_empty()) {
        (true, true) => {
            notes.push("nothing was printed".to_owned());
            text
        }
        (true, false) => complaint,
        (false, true) => text,
        // What is for programs stays as it is.
        (false, false) if section.file.ends_with(".json") => text,
        (false, false) => format!("{text}\n--- standard error ---\n{complaint}"),
    };
    Ok(Raw {
        text,
        note: (!notes.is_empty()).then(|| notes.join(", ")),
    })
}

/// It and what it started. Nobody has waited for it yet: its number, which is the group's, is still its own.
fn end(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

type Reading = mpsc::Receiver<(String, bool)>;

fn reading<R: Read + Send + 'static>(
    pipe: Option<R>,
    work: impl FnOnce(R) -> (String, bool) + Send + 'static,
) -> Reading {
    let (tell, told) = mpsc::channel();
    if let Some(pipe) = pipe {
        std::thread::spawn(move || tell.send(work(pipe)));
    }
    told
}

/// Reads to the end and keeps at most `most` bytes, whole lines where something is left out; true when something is.
pub(super) fn read(mut from: impl Read, most: usize, keep: Keep) -> (String, bool) {
    let mut kept = Vec::new();
    let mut cut = false;
    let mut piece = vec![0; 64 * 1024];
    // An end that is no end: what came is kept.
    while let Ok(length @ 1..) = from.read(&mut piece) {
        kept.extend_from_slice(&piece[..length]);
        let over = kept.len().saturating_sub(most);
        match keep {
            Keep::First if over > 0 => {
                cut = true;
                kept.truncate(most);
                // The rest is of no use, and who writes it hears that.
                break;
            }
            // Not with each piece: moving is not free.
            Keep::Last if over > most => {
                cut = true;
                kept.drain(..over);
            }
            Keep::First | Keep::Last => {}
        }
    }
    if matches!(keep, Keep::Last) && kept.len() > most {
        cut = true;
        kept.drain(..kept.len() - most);
    }
    if cut {
        match keep {
            Keep::First => kept.truncate(kept.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1)),
            Keep::Last => drop(
                kept.drain(
                    ..kept
                        .iter()
                        .position(|b| *b == b'\n')
                        .map_or(kept.len(), |end| end + 1),
                ),
            ),
        }
    }
    (String::from_utf8_lossy(&kept).into_owned(), cut)
}

/// What `work` returns, unless it takes longer: then it is left to itself, and ends with this process.
fn in_time<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(work()));
    told.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => format!("not within {} s", limit.as_secs()),
        RecvTimeoutError::Disconnected => "collecting it failed by an error of ours".to_owned(),
    })
}

/// What the bundle is, and what each file of it must be.
pub(super) fn manifest(collected: &[Collected], context: &Context, document: &Document) -> Collected {
    let files: Vec<Value> = collected
        .iter()
        .map(|file| {
            json!({
                "name": file.name,
                "bytes": file.bytes.len(),
                "sha256": sha256_hex(&file.bytes),
                "note": file.note,
            })
        })
        .collect();
    let manifest = json!({
        "what": "support bundle of agent-fips-proxy",
        "form": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("AFP_GIT_COMMIT").unwrap_or("unknown"),
        "host": document.scrub(&host_name()),
        "time": time(),
        "user": nix::unistd::Uid::effective().as_raw(),
        "proxy_answers": context.master.is_some(),
        "configuration_problem": context.problem.as_ref().map(|problem| document.scrub(problem)),
        "files": files,
    });
    Collected {
        name: "manifest.json",
        bytes: format!("{manifest:#}\n").into_bytes(),
        note: None,
    }
}

/// As the kernel has it.
pub(super) fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Now, in UTC, as RFC 3339 writes it.
fn time() -> String {
    let now = OffsetDateTime::now_utc();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

/// The same for the name of a file.
pub(super) fn compact_time() -> String {
    time().replace(['-', ':'], "")
}

/// So much of a file, by [`read`].
pub(super) fn file(path: &str, most: usize, keep: Keep) -> io::Result<String> {
    Ok(read(std::fs::File::open(path)?, most, keep).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flare::sections::TABLE;

    fn context() -> Arc<Context> {
        Arc::new(Context::new(Config::default(), None, Vec::new(), true))
    }

    fn section(how: How, kib: usize) -> Section {
        Section {
            file: "log/x.txt",
            how,
            seconds: 1,
            kib,
        }
    }

    fn done(section: &Section) -> Collected {
        collect(section, &context(), &Document::new())
    }

    #[test]
    fn what_fails_or_hangs_is_its_own_error_text() {
        let absent = done(&section(How::Program(&["no-such-program-of-anybody"]), 1));
        let text = String::from_utf8(absent.bytes).unwrap();
        assert!(
            text.contains("no-such-program-of-anybody") && absent.note.is_some(),
            "{text}"
        );
        for how in [
            How::Program(&["sleep", "600"]),
            // A child of the child keeps the pipe.
            How::Program(&["sh", "-c", "sleep 600 & echo x"]),
            How::Call(|_| {
                std::thread::sleep(Duration::from_secs(600));
                Ok(String::new())
            }),
        ] {
            let late = done(&section(how, 1));
            assert_eq!(String::from_utf8(late.bytes).unwrap(), "not within 1 s\n");
        }
        let panics = done(&section(How::Call(|_| panic!("on purpose")), 1));
        assert!(String::from_utf8(panics.bytes).unwrap().contains("error of ours"));
    }

    #[test]
    fn long_outputs_are_cut_at_lines() {
        let lines = |keep| {
            let text: String = (0..1000).map(|n| format!("{n:03}\n")).collect();
            read(text.as_bytes(), 10, keep)
        };
        assert_eq!(lines(Keep::First), ("000\n001\n".to_owned(), true));
        assert_eq!(lines(Keep::Last), ("998\n999\n".to_owned(), true));
        assert_eq!(read(&b"abc"[..], 3, Keep::Last), ("abc".to_owned(), false));
        let seq = done(&section(How::Program(&["seq", "100000"]), 1));
        assert!(seq.bytes.len() <= 1024 && seq.bytes.ends_with(b"\n100000\n"));
        assert_eq!(seq.note.as_deref(), Some("cut to 1 KiB"));
        let grown = done(&section(How::Call(|_| Ok("api_key: x\n".repeat(100))), 1));
        assert!(
            grown.bytes.len() <= 1024 && grown.bytes.ends_with(b"]\n"),
            "{grown:?}"
        );
    }

    #[test]
    fn an_exit_code_is_noted_and_complaints_are_kept() {
        let failed = done(&section(
            How::Program(&["sh", "-c", "echo out; echo err >&2; exit 7"]),
            1,
        ));
        assert_eq!(
            String::from_utf8(failed.bytes).unwrap(),
            "out\n\n--- standard error ---\nerr\n"
        );
        assert_eq!(failed.note.as_deref(), Some("exit code 7"));
    }

    #[test]
    fn no_name_is_there_twice() {
        let mut names: Vec<_> = TABLE.iter().map(|section| section.file).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
