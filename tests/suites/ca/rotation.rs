//! Rotation with processes that run, permissions as the command line sees them, and exit codes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use harness::{capture, check, check_eq};

use super::LocalAuthority;

/// A process that trusts the authority by its environment; ended when dropped.
struct Agent(Child);

impl Agent {
    fn start(authority: &LocalAuthority) -> Result<Self> {
        let child = Command::new("sleep")
            .arg("600")
            .env_clear()
            .env("SSL_CERT_DIR", authority.dir().join("trust"))
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    /// The same in a mount namespace of its own, where the folder has another name, as in a pod.
    fn start_in_a_pod(authority: &LocalAuthority) -> Result<Self> {
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind \"$1\" /mnt && exec sleep 600")
            .arg("sh")
            .arg(authority.dir().join("trust"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SSL_CERT_DIR", "/nonexistent:/mnt")
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn a_rotation_waits_for_those_that_run() -> Result<()> {
    let authority = LocalAuthority::new()?;
    let old = authority.id()?;
    check_eq!(
        authority.run(&["rotate", "--finish"])?.status.code(),
        Some(64),
        "finish without a rotation"
    );
    let agent = Agent::start(&authority)?;
    // Start times and publications have whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    authority.good(&["rotate"])?;
    check_eq!(
        authority.run(&["rotate"])?.status.code(),
        Some(64),
        "a second rotation"
    );
    let show = authority.show()?;
    check_eq!(show["signing"], "current", "which one signs");
    check_eq!(show["authorities"].as_array().map_or(0, Vec::len), 2, "published");
    let restart: Vec<u64> = show["trust"]["restart"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_u64)
        .collect();
    check!(restart.contains(&u64::from(agent.pid())), "{show:#}");
    let text = authority.good(&["show"])?;
    check!(
        text.contains(&format!("sleep (pid {})", agent.pid())) && text.contains("RESTART IT"),
        "{text}"
    );
    let refused = authority.run(&["rotate", "--finish"])?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    check_eq!(
        refused.status.code(),
        Some(69),
        "finish while an Agent knows only the old one"
    );
    check!(error.contains(&format!("pid {}", agent.pid())), "{error}");
    drop(agent);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let restarted = Agent::start(&authority)?;
    authority.good(&["rotate", "--finish"])?;
    let pod = Agent::start_in_a_pod(&authority)?;
    harness::eventually("the process in a pod", std::time::Duration::from_secs(20), || {
        let show = authority.show()?;
        let processes = show["trust"]["processes"].as_array().cloned().unwrap_or_default();
        Ok(processes
            .iter()
            .any(|one| one["pid"] == pod.pid() && one["by"] == "SSL_CERT_DIR")
            .then_some(()))
    })?;
    check!(authority.id()? != old, "the old one is still current");
    check!(
        !authority.dir().join(format!("{old}.key")).exists(),
        "the old key is still there"
    );
    let show = authority.show()?;
    check!(
        show["trust"]["processes"].as_array().is_some_and(|all| all
            .iter()
            .any(|one| one["pid"] == restarted.pid() && one["by"] == "SSL_CERT_DIR")),
        "{show:#}"
    );
    Ok(())
}

pub(super) fn permissions_are_looked_at() -> Result<()> {
    let authority = LocalAuthority::new()?;
    let key = authority.key()?;
    for mode in [0o644, 0o640, 0o602] {
        fs::set_permissions(&key, Permissions::from_mode(mode))?;
        let output = authority.run(&["show"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        check_eq!(output.status.code(), Some(78), "show with a key of mode {mode:o}");
        check!(
            said.contains(&format!("mode {mode:04o}")) && said.contains("ca init --replace"),
            "{said}"
        );
    }
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    authority.good(&["show"])?;
    // Somebody who is not root: certificates yes, key no.
    let mut command = authority.command(&["show"])?;
    let output = capture(command.uid(65534).gid(65534))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check_eq!(output.status.code(), Some(77), "show as nobody");
    check!(
        said.contains("not checked") && said.contains(&authority.id()?),
        "{said}"
    );
    for words in [&["init", "--replace"][..], &["rotate"]] {
        let mut command = authority.command(words)?;
        let output = capture(command.uid(65534).gid(65534))?;
        check_eq!(output.status.code(), Some(77), "{words:?} as nobody");
    }
    // Somebody else's key.
    std::os::unix::fs::chown(&key, Some(65534), None)?;
    let output = authority.run(&["show"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    check_eq!(
        output.status.code(),
        Some(78),
        "show with a key of somebody else's"
    );
    check!(said.contains("belongs to the user 65534"), "{said}");
    Ok(())
}

pub(super) fn exit_codes() -> Result<()> {
    let authority = LocalAuthority::none()?;
    for (words, code) in [
        (&["show"][..], 69),
        (&["rotate"], 69),
        (&["install"], 69),
        (&["init", "--if-missing", "--replace"], 64),
        (&["rotate", "--force"], 64),
        (&["nonsense"], 64),
        (&["init"], 0),
        (&["init"], 64),
        (&["init", "--if-missing"], 0),
        (&["init", "--set", "ca.validity_days=366"], 78),
        (&["show", "--set", "site=datadoghq.eu"], 78),
        (&["init", "--set", "ca.certificate_file=/x"], 78),
        (
            &[
                "init",
                "--set",
                "ca.certificate_file=/x",
                "--set",
                "ca.key_file=/y",
            ],
            64,
        ),
        (&["init", "--replace"], 0),
        (&["show"], 0),
    ] {
        let output = authority.run(words)?;
        check_eq!(
            output.status.code(),
            Some(code),
            "ca {words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
