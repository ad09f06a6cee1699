//! The program that is to replace this one: whose file it is, and whether it is fit. It is tried before anything else happens, as
//! a process of its own, so that a broken package costs nothing.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::FORMATS;

/// How long each of its two trials may take. A start of the module takes some ten milliseconds, seconds in a debug build.
const TRIAL: Duration = Duration::from_secs(20);
/// How much of what it prints is looked at, in bytes.
const PRINTED: u64 = 64 * 1024;
/// How much of a complaint is repeated.
const REPEATED: usize = 600;

/// A program that was found fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its file.
    pub path: PathBuf,
    /// Its version.
    pub version: String,
    stamp: Stamp,
}

/// Which file it is, and of when: device, inode, length, modification and change in nanoseconds.
type Stamp = (u64, u64, u64, i128, i128);

/// What `version --json` says, as far as it matters here.
#[derive(Deserialize)]
struct Version {
    version: String,
    /// Programs that cannot take over do not have it.
    #[serde(default)]
    handover: Vec<u32>,
}

/// How a program is asked, with the arguments and variables that it will have.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Its file.
    pub path: PathBuf,
    /// Where the configuration comes from: the flags that we were started with.
    pub flags: Vec<OsString>,
    /// Every variable that it will have.
    pub variables: Vec<(OsString, OsString)>,
}

impl Trial {
    /// Tries it.
    ///
    /// # Errors
    /// Why it must not replace us, in words.
    pub async fn run(self) -> Result<Candidate, String> {
        let path = self.path.display().to_string();
        let stamp = trusted(&self.path)?;
        let printed = self.ask(&["version", "--json"], &[]).await?;
        let version: Version = serde_json::from_slice(&printed)
            .map_err(|error| format!("`{path} version --json` does not answer as ours does: {error}"))?;
        let own = FORMATS[FORMATS.len() - 1];
        if !version.handover.contains(&own) {
            return Err(format!(
                "version {} of {path} cannot take over from this one ({}); restart the service in place of an upgrade",
                version.version,
                env!("CARGO_PKG_VERSION")
            ));
        }
        self.ask(&["config", "check"], &self.flags).await?;
        let candidate = Candidate {
            path: self.path,
            version: version.version,
            stamp,
        };
        candidate.unchanged()?;
        Ok(candidate)
    }

    /// Runs it to its end; what it printed.
    async fn ask(&self, words: &[&str], flags: &[OsString]) -> Result<Vec<u8>, String> {
        let line = format!("{} {}", self.path.display(), words.join(" "));
        let mut child = Command::new(&self.path)
            .args(words)
            .args(flags)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            // It is no part of the service yet.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What it starts ends with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("`{line}` cannot be run: {error}"))?;
        let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let all = async { tokio::join!(printed(out), printed(err), child.wait()) };
        match tokio::time::timeout(TRIAL, all).await {
            Ok((out, _, Ok(status))) if status.success() => Ok(out),
            Ok((_, err, Ok(status))) => Err(format!("`{line}` {}: {}", ended(status), excerpt(&err))),
            Ok((_, _, Err(error))) => Err(format!("`{line}`: {error}")),
            Err(_) => {
                if let Some(group) = group {
                    // It may have ended at this moment.
                    let _ = killpg(group, Signal::SIGKILL);
                }
                Err(format!("`{line}` did not end within {} s", TRIAL.as_secs()))
            }
        }
    }
}

impl Candidate {
    /// That the file is still the one that was tried.
    ///
    /// # Errors
    /// It is not, in words.
    pub fn unchanged(&self) -> Result<(), String> {
        if trusted(&self.path)? == self.stamp {
            return Ok(());
        }
        Err(format!(
            "{} changed while it was tried; upgrade again when the installation is finished",
            self.path.display()
        ))
    }
}

async fn printed(output: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        // What cannot be read was not printed; who prints more waits until its time is over.
        let _ = output.take(PRINTED).read_to_end(&mut bytes).await;
    }
    bytes
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended oddly".to_owned(),
    }
}

/// The end of a complaint, where its reason is.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.is_empty() {
        return "it says nothing".to_owned();
    }
    let skipped = text.chars().count().saturating_sub(REPEATED);
    text.chars().skip(skipped).collect()
}

/// What this process is to run next with all its rights must be changeable by nobody with fewer: a file of root's or of our own
/// user's, that nobody else may write, in directories in which nobody else can put another in its place.
fn trusted(path: &Path) -> Result<Stamp, String> {
    let own = Uid::effective().as_raw();
    let look = |path: &Path| {
        fs::symlink_metadata(path).map_err(|error: io::Error| format!("{}: {error}", path.display()))
    };
    let file = look(path)?;
    if !file.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    if !is_program(path).map_err(|error| format!("{}: {error}", path.display()))? {
        // The C library would give it to a shell.
        return Err(format!("{} is no program: it begins as none", path.display()));
    }
    refuse(path, &file, own)?;
    for directory in path.ancestors().skip(1).filter(|above| above.is_absolute()) {
        refuse(directory, &look(directory)?, own)?;
    }
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Ok((
        file.dev(),
        file.ino(),
        file.size(),
        nanoseconds(file.mtime(), file.mtime_nsec()),
        nanoseconds(file.ctime(), file.ctime_nsec()),
    ))
}

fn is_program(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, 4), &mut start)?;
    Ok(start.starts_with(b"\x7fELF") || start.starts_with(b"#!"))
}

fn refuse(path: &Path, found: &Metadata, own: u32) -> Result<(), String> {
    let path = path.display();
    if found.uid() != 0 && found.uid() != own {
        return Err(format!(
            "{path} belongs to user {}: only what belongs to root may replace the program",
            found.uid()
        ));
    }
    // In a sticky directory, such as /tmp, nobody can move what is another's.
    let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
    if found.mode() & 0o022 != 0 && !sticky {
        return Err(format!(
            "{path} can be written by others (mode {:04o}): `chmod go-w {path}`",
            found.mode() & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("agent-fips-proxy");
        fs::write(&path, text).unwrap();
        mode(&path, 0o755);
        path
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn tried(text: &str) -> Result<Candidate, String> {
        let folder = tempfile::tempdir().unwrap();
        let trial = Trial {
            path: program(folder.path(), text),
            flags: vec!["--config".into(), "/x".into()],
            variables: vec![("PATH".into(), "/usr/bin:/bin".into())],
        };
        trial.run().await
    }

    const GOOD: &str = r#"#!/bin/sh
if [ "$1" = version ]; then echo '{"version":"9.9.9","handover":[1,2],"else":0}'; exit 0; fi
[ "$*" = "config check --config /x" ]
"#;

    #[tokio::test]
    async fn a_fit_one_is_found_fit() {
        assert_eq!(tried(GOOD).await.unwrap().version, "9.9.9");
    }

    #[tokio::test]
    async fn an_unfit_one_is_refused_with_the_reason() {
        let crashes = "#!/bin/sh\nkill -SEGV $$\n";
        let no_form = GOOD.replace("[1,2]", "[2]");
        let older = GOOD.replace("handover", "nothing");
        let refuses = GOOD.replace("[ \"$*\"", "echo 'site: no such site' >&2; [ \"no $*\"");
        for (text, words) in [
            ("", "is no program"),
            ("echo hello", "is no program"),
            ("#!/bin/sh\necho hello\n", "does not answer as ours does"),
            (crashes, "was ended by signal 11"),
            ("#!/bin/sh\necho broken >&2; exit 3\n", "exit code 3: broken"),
            (&no_form, "cannot take over"),
            (&older, "cannot take over"),
            (&refuses, "no such site"),
        ] {
            let refusal = tried(text).await.unwrap_err();
            assert!(refusal.contains(words), "{text:?}: {refusal}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_given_up() {
        // Time passes when nothing else can happen.
        let refusal = tried("#!/bin/sh\nsleep 1000\n").await.unwrap_err();
        assert!(refusal.contains("did not end within 20 s"), "{refusal}");
    }

    #[tokio::test]
    async fn what_others_can_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = program(folder.path(), GOOD);
        trusted(&path).unwrap();
        mode(&path, 0o775);
        assert!(trusted(&path).unwrap_err().contains("chmod go-w"));
        mode(&path, 0o755);
        mode(folder.path(), 0o777);
        assert!(trusted(&path).unwrap_err().contains("can be written by others"));
        mode(folder.path(), 0o1777);
        trusted(&path).unwrap();
        mode(folder.path(), 0o755);
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(trusted(&path).unwrap_err().contains("belongs to user 12345"));
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(trusted(&link).unwrap_err().contains("no regular file"));
    }

    #[tokio::test]
    async fn a_change_after_the_trial_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let trial = Trial {
            path: program(folder.path(), GOOD),
            flags: vec!["--config".into(), "/x".into()],
            variables: vec![("PATH".into(), "/usr/bin:/bin".into())],
        };
        let candidate = trial.run().await.unwrap();
        candidate.unchanged().unwrap();
        fs::write(&candidate.path, "#!/bin/sh\n").unwrap();
        assert!(
            candidate
                .unchanged()
                .unwrap_err()
                .contains("changed while it was tried")
        );
    }
}
