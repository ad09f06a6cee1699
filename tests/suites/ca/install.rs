//! `ca install` and `ca uninstall` on systems of the test: what they write, that it is all gone afterwards, and that nothing
//! else changed by a byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use harness::{capture, check, check_eq, succeed};
use tempfile::TempDir;

use super::{LocalAuthority, text};

/// Everything below a folder: mode, and bytes or target.
fn snapshot(root: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let bytes = if metadata.is_symlink() {
                fs::read_link(&path)?.into_os_string().into_encoded_bytes()
            } else if metadata.is_dir() {
                pending.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path)?
            };
            found.insert(path.strip_prefix(root)?.to_owned(), (metadata.mode(), bytes));
        }
    }
    Ok(found)
}

fn differences<V: PartialEq>(a: &BTreeMap<PathBuf, V>, b: &BTreeMap<PathBuf, V>) -> Vec<PathBuf> {
    a.keys()
        .chain(b.keys())
        .filter(|path| a.get(*path) != b.get(*path))
        .cloned()
        .collect()
}

/// A small Debian: roots, a unit with a drop-in of the operator's, a root of the company's.
fn system() -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    for (path, text) in [
        (
            "etc/ssl/certs/ca-certificates.crt",
            "# the distribution's roots\n",
        ),
        (
            "etc/systemd/system/datadog-agent.service.d/10-limits.conf",
            "[Service]\nLimitNOFILE=1\n",
        ),
        ("usr/local/share/ca-certificates/company.crt", "the company's\n"),
        ("etc/datadog-agent/environment", "DD_SITE=ddog-gov.com\n"),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(path, text)?;
    }
    Ok(root)
}

pub(super) fn install_and_uninstall_leave_the_system_as_it_was() -> Result<()> {
    let root = system()?;
    let at = root.path().display().to_string();
    let authority = LocalAuthority::none()?;
    let run = |words: &[&str]| authority.good(&[words, &["--root", &at]].concat());
    run(&["init"])?;
    let before = snapshot(root.path())?;
    let words = ["install", "--host-store", "--unit", "my-app.service"];
    run(&words)?;
    let after = snapshot(root.path())?;
    let written: Vec<String> = differences(&before, &after)
        .iter()
        .filter(|path| root.path().join(path).is_file())
        .map(|path| path.display().to_string())
        .filter(|path| !path.starts_with("tmp"))
        .collect();
    check_eq!(
        written.len(),
        4,
        "three drop-ins and a root of the host: {written:?}"
    );
    let units = root.path().join("etc/systemd/system");
    let trust = authority.dir().join("trust");
    for unit in ["datadog-agent.service.d", "datadog-agent-.service.d"] {
        let drop_in = text(&units.join(unit).join("50-agent-fips-proxy.conf"))?;
        check!(
            drop_in.contains("Environment=\"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\"")
                && drop_in.contains(&format!("Environment=\"SSL_CERT_DIR={}\"", trust.display()))
                && !drop_in.contains("REQUESTS_CA_BUNDLE"),
            "{drop_in}"
        );
    }
    let other = text(&units.join("my-app.service.d/50-agent-fips-proxy.conf"))?;
    check!(
        other.contains("REQUESTS_CA_BUNDLE=") && other.contains("NODE_EXTRA_CA_CERTS="),
        "{other}"
    );
    let bundle = text(
        &root
            .path()
            .join(authority.dir().strip_prefix("/")?)
            .join("bundle.pem"),
    )?;
    check!(
        bundle.contains("# the distribution's roots") && bundle.contains("BEGIN CERTIFICATE"),
        "{bundle}"
    );
    // Once more changes nothing.
    let again = run(&[&words[..], &["--json"]].concat())?;
    check!(
        serde_json::from_str::<serde_json::Value>(&again)?["changed"] == false,
        "{again}"
    );
    check_eq!(
        differences(&after, &snapshot(root.path())?),
        Vec::<PathBuf>::new(),
        "a second install"
    );
    // A rotation is followed in the bundle and the store.
    run(&["rotate"])?;
    let anchors = fs::read_dir(root.path().join("usr/local/share/ca-certificates"))?.count();
    check_eq!(anchors, 3, "the company's and both of ours");
    run(&["rotate", "--finish"])?;
    // The folder of the authority is what it is after the rotation; all else must be as before.
    let own = authority.dir().strip_prefix("/")?.to_owned();
    let outside = |all: BTreeMap<PathBuf, (u32, Vec<u8>)>| -> BTreeMap<_, _> {
        all.into_iter()
            .filter(|(path, _)| !path.starts_with(&own))
            .collect()
    };
    run(&["uninstall"])?;
    check_eq!(
        differences(&outside(before), &outside(snapshot(root.path())?)),
        Vec::<PathBuf>::new(),
        "after uninstall"
    );
    let there = root.path().join(own);
    check!(
        !there.join("bundle.pem").exists() && !there.join("environment").exists(),
        "the bundle or the environment file is left"
    );
    let nothing = run(&["uninstall"])?;
    check!(nothing.contains("nothing of ours"), "{nothing}");
    Ok(())
}

pub(super) fn foreign_files_are_left_alone() -> Result<()> {
    let root = system()?;
    let at = root.path().display().to_string();
    let authority = LocalAuthority::none()?;
    let install = ["install", "--root", &at];
    // No authority yet.
    check_eq!(
        authority.run(&install)?.status.code(),
        Some(69),
        "install without an authority"
    );
    authority.good(&["init", "--root", &at])?;
    // A drop-in of our name that somebody else wrote.
    let drop_in = root
        .path()
        .join("etc/systemd/system/datadog-agent.service.d/50-agent-fips-proxy.conf");
    fs::write(&drop_in, "[Service]\n")?;
    let refused = authority.run(&install)?;
    check_eq!(refused.status.code(), Some(78), "a foreign drop-in");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    check!(error.contains("was not written by us"), "{error}");
    authority.good(&["uninstall", "--root", &at])?;
    check_eq!(
        text(&drop_in)?,
        "[Service]\n",
        "the foreign drop-in after uninstall"
    );
    fs::remove_file(&drop_in)?;
    // A file that only looks like ours in the store of the host.
    let anchors = root.path().join("usr/local/share/ca-certificates");
    fs::write(
        anchors.join("agent-fips-proxy-0123456789abcdef.crt"),
        "not a certificate",
    )?;
    // The Agent's own environment wins over a drop-in.
    fs::write(
        root.path().join("etc/datadog-agent/environment"),
        "SSL_CERT_DIR=/etc/company\n",
    )?;
    let said = authority.good(&["install", "--host-store", "--root", &at])?;
    check!(
        said.contains("warning") && said.contains("/etc/datadog-agent/environment sets SSL_CERT_DIR"),
        "{said}"
    );
    // Another file in a folder that we made keeps the folder.
    let folder = root.path().join("etc/systemd/system/datadog-agent-.service.d");
    fs::write(folder.join("99-operator.conf"), "[Service]\n")?;
    authority.good(&["uninstall", "--root", &at])?;
    check!(
        folder.join("99-operator.conf").exists(),
        "the operator's drop-in is gone"
    );
    check!(
        anchors.join("agent-fips-proxy-0123456789abcdef.crt").exists(),
        "a file that is no certificate of ours is gone"
    );
    for unit in ["../evil.service", "no-suffix", ".service", "a b.service"] {
        let refused = authority.run(&["install", "--root", &at, "--unit", unit])?;
        check_eq!(refused.status.code(), Some(64), "--unit {unit}");
    }
    Ok(())
}

/// With the distribution's own tool, on a copy of this machine's `/etc` that only a mount namespace of the test sees.
pub(super) fn the_distributions_own_store() -> Result<()> {
    let authority = LocalAuthority::new()?;
    let folder = tempfile::tempdir()?;
    let leaf = super::stolen::intake_leaf(&authority, folder.path())?;
    let layers = tempfile::tempdir()?;
    // /run is hidden, so that no service manager is told anything.
    let script = r#"set -eu
        mount -t tmpfs afp-test "$1"
        for place in /etc /usr/local/share; do
            mkdir -p "$1$place.upper" "$1$place.work"
            mount -t overlay overlay -o "lowerdir=$place,upperdir=$1$place.upper,workdir=$1$place.work" "$place"
        done
        mkdir -p /usr/local/share/ca-certificates
        mount -t tmpfs afp-test /run
        shift
        leaf=$1; shift
        # Java's store, made by a hook of the distribution's, has the time of its making in it.
        state() { (cd /etc/ssl && find . -path ./certs/java -prune -o -type f -exec sha256sum {} + | sort; find . -type l -printf '%p %l\n' | sort); }
        trusted() { openssl verify -CApath /etc/ssl/certs "$leaf" >/dev/null 2>&1 && echo yes || echo no; }
        update-ca-certificates --fresh >/dev/null 2>&1
        state > /run/before
        echo "before: $(trusted)"
        "$@" install --host-store >/dev/null
        echo "installed: $(trusted)"
        "$@" rotate >/dev/null
        echo "rotating: $(trusted)"
        "$@" uninstall >/dev/null
        echo "uninstalled: $(trusted)"
        state > /run/after
        cmp /run/before /run/after && echo "the same""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--", "bash", "-c"])
        .arg(script)
        .arg("bash")
        .arg(layers.path())
        .arg(&leaf);
    // The verb comes from the script, the rest stays.
    let proxy = authority.command(&[])?;
    let wrapper = folder.path().join("ca");
    let words: Vec<String> = proxy
        .get_args()
        .skip(1)
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nexec '{}' ca \"$@\" {}\n",
            proxy.get_program().to_string_lossy(),
            words.join(" ")
        ),
    )?;
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    command
        .arg(&wrapper)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let said = succeed(&mut command)?;
    check_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "before: no",
            "installed: yes",
            "rotating: yes",
            "uninstalled: no",
            "the same"
        ],
        "the distribution's store"
    );
    Ok(())
}

/// systemd itself reads the drop-ins: a key that it does not know makes it name the file, for each unit of the Agent.
pub(super) fn every_unit_of_the_agent_is_reached() -> Result<()> {
    let root = system()?;
    let at = root.path().display().to_string();
    let authority = LocalAuthority::none()?;
    authority.good(&["init", "--root", &at])?;
    authority.good(&["install", "--root", &at])?;
    let units = root.path().join("etc/systemd/system");
    for folder in ["datadog-agent.service.d", "datadog-agent-.service.d"] {
        let path = units.join(folder).join("50-agent-fips-proxy.conf");
        fs::write(&path, text(&path)? + "NoSuchKey=1\n")?;
    }
    for unit in [
        "datadog-agent",
        "datadog-agent-trace",
        "datadog-agent-process",
        "datadog-agent-sysprobe",
        "datadog-agent-security",
        "datadog-agent-installer",
        "datadog-agent-data-plane",
        "datadog-agent-exp",
        "datadog-agent-trace-exp",
        "datadog-agent-installer-exp",
        "datadog-apm-inject",
    ] {
        let name = format!("{unit}.service");
        fs::write(
            units.join(&name),
            "[Unit]\nDescription=test\n[Service]\nExecStart=/bin/true\n",
        )?;
        let output = capture(
            Command::new("systemd-analyze")
                .args(["verify", &name])
                .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display())),
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let reached = said.contains("50-agent-fips-proxy.conf") && said.contains("NoSuchKey");
        check_eq!(reached, unit.starts_with("datadog-agent"), "{unit}: {said}");
        check!(
            !said.contains("Invalid") && !said.contains("Failed to parse"),
            "{unit}: {said}"
        );
    }
    Ok(())
}
