//! What is in the packages.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use harness::systemd::dist;
use harness::{check, check_eq, succeed};
use serde_json::Value;

use crate::made::packages;

/// Validates CycloneDX by its own schema. Pinned: the schema of a version never changes.
const VALIDATOR: &str = "cyclonedx-python-lib[json-validation]==11.12.0";

/// lintian and rpmlint find nothing but what a file beside the packages names with its reason.
pub fn no_fault() -> Result<()> {
    let made = packages(1)?;
    let deb = succeed(
        Command::new("lintian")
            .args([
                "--allow-root",
                "--fail-on",
                "error,warning",
                "--tag-display-limit",
                "0",
            ])
            .arg(&made.deb),
    )?;
    check_eq!(deb.trim(), "", "lintian");
    let rpm = succeed(
        Command::new("rpmlint")
            .arg("--config")
            .arg(dist("rpm/rpmlint.toml"))
            .arg(&made.rpm),
    )?;
    check!(rpm.contains(" 0 errors, 0 warnings"), "{rpm}");
    Ok(())
}

/// The same files but for those of one distribution's ways; the same bytes, the same modes, root's; settings known as such.
pub fn one_list() -> Result<()> {
    let made = packages(1)?;
    let listed = succeed(Command::new("dpkg-deb").arg("--contents").arg(&made.deb))?;
    let mut deb = BTreeSet::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (mode, owner, path) = (words[0], words[1], words[5].trim_start_matches('.'));
        check_eq!(owner, "root/root", "{line}");
        let expected = match path {
            _ if path.ends_with('/') => "drwxr-xr-x",
            "/usr/bin/agent-fips-proxy" => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        check_eq!(mode, expected, "{line}");
        if !path.ends_with('/') {
            deb.insert(path.to_owned());
        }
    }
    let listed = succeed(
        Command::new("rpm")
            .args(["-qp", "--nosignature", "--queryformat"])
            .arg("[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEFLAGS:fflags}\n]")
            .arg(&made.rpm),
    )?;
    let mut rpm = BTreeSet::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        check_eq!(words[2], "root:root", "{line}");
        if !words[1].starts_with('d') {
            let flags = words.get(3).copied().unwrap_or_default();
            let setting = words[0].starts_with("/etc/");
            check_eq!(flags.contains('c'), setting, "settings are settings: {line}");
            rpm.insert(words[0].to_owned());
        }
    }
    let only =
        |a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> { a.difference(b).cloned().collect() };
    check_eq!(
        only(&deb, &rpm),
        [
            "/usr/share/doc/agent-fips-proxy/changelog.Debian.gz",
            "/usr/share/doc/agent-fips-proxy/changelog.gz",
            "/usr/share/doc/agent-fips-proxy/copyright",
            "/usr/share/doc/agent-fips-proxy/third-party.txt.gz",
            "/usr/share/lintian/overrides/agent-fips-proxy",
            "/usr/share/zsh/vendor-completions/_agent-fips-proxy",
        ],
        "only in the deb"
    );
    check_eq!(
        only(&rpm, &deb),
        [
            "/usr/share/doc/agent-fips-proxy/CHANGELOG.md",
            "/usr/share/licenses/agent-fips-proxy/LICENSE",
            "/usr/share/licenses/agent-fips-proxy/third-party.txt",
            "/usr/share/zsh/site-functions/_agent-fips-proxy",
        ],
        "only in the rpm"
    );
    let settings = succeed(
        Command::new("dpkg-deb")
            .arg("--info")
            .arg(&made.deb)
            .arg("conffiles"),
    )?;
    check_eq!(
        settings,
        "/etc/agent-fips-proxy/config.yaml\n/etc/default/agent-fips-proxy\n",
        "conffiles"
    );
    let licences = std::fs::read_to_string(made.folder.join("made/third-party.txt"))?;
    for name in ["aws-lc-fips-sys 0.13.11", "aya-ebpf ", "tokio "] {
        check!(licences.contains(name), "{name} is not in third-party.txt");
    }
    Ok(())
}

/// Every command has a page that `man` renders without a complaint, and the page of the settings has them all.
pub fn pages() -> Result<()> {
    let made = packages(1)?;
    let folder = made.folder.join("made");
    let mut count = 0;
    for section in ["man5", "man8"] {
        for entry in std::fs::read_dir(folder.join(section))? {
            let path = entry?.path();
            let output = harness::capture(
                Command::new("man")
                    .args(["--local-file", "--warnings"])
                    .arg(&path)
                    .env("MANWIDTH", "80")
                    .env("LC_ALL", "C.UTF-8"),
            )?;
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            check!(
                output.status.success() && complaints.is_empty(),
                "{}: {complaints}",
                path.display()
            );
            let text = String::from_utf8_lossy(&output.stdout);
            check!(
                text.contains("NAME") && text.contains("SEE ALSO"),
                "{}: {text}",
                path.display()
            );
            count += 1;
        }
    }
    check!(count > 20, "{count} pages");
    let settings = std::fs::read_to_string(folder.join("man5/agent-fips-proxy.yaml.5"))?;
    for key in agent_fips_proxy::config::keys::TABLE {
        check!(
            settings.contains(&key.variable()),
            "{} has no place in the page",
            key.path
        );
    }
    completes(&folder.join("completions"))
}

/// The shells themselves complete a verb with them; zsh, which has no way to be asked, at least reads its own.
fn completes(folder: &Path) -> Result<()> {
    let bash = "source \"$1/agent-fips-proxy.bash\"; COMP_WORDS=(agent-fips-proxy ca in); COMP_CWORD=2
        function=$(complete -p agent-fips-proxy); function=${function#*-F }
        ${function%% *} agent-fips-proxy in ca; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let fish = "source $argv[1]/agent-fips-proxy.fish; complete -C 'agent-fips-proxy ca in'";
    for (shell, script) in [
        ("bash", &["-c", bash, "bash"][..]),
        ("fish", &["--no-config", "-c", fish]),
    ] {
        let text = succeed(Command::new(shell).args(script).arg(folder).env("HOME", folder))?;
        let words: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        check_eq!(words, ["init", "install"], "{shell} of `ca in`");
    }
    succeed(
        Command::new("zsh")
            .arg("-n")
            .arg(folder.join("_agent-fips-proxy")),
    )
    .map(drop)
}

/// CycloneDX' own schema accepts it; the module, its certificate and both kinds of crates are in it.
pub fn sbom() -> Result<()> {
    let made = packages(1)?;
    let python = validator()?;
    let script = "import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
problem = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())
sys.exit(str(problem) if problem else 0)";
    succeed(Command::new(&python).args(["-c", script]).arg(&made.sbom))?;
    // A validator that accepts anything would not show.
    let broken = made.folder.join("broken.json");
    let text = std::fs::read_to_string(&made.sbom)?;
    std::fs::write(&broken, text.replace("\"library\"", "\"nothing\""))?;
    let output = harness::capture(Command::new(&python).args(["-c", script]).arg(&broken))?;
    std::fs::remove_file(&broken)?;
    check!(!output.status.success(), "the validator accepts what is wrong");

    let sbom: Value = serde_json::from_str(&text)?;
    let components = sbom["components"].as_array().context("components")?;
    let named = |name: &str| components.iter().find(|one| one["name"] == name);
    let module = components
        .iter()
        .find(|one| one["bom-ref"] == "module:aws-lc-fips")
        .context("no module")?;
    check_eq!(module["version"], "AWS-LC FIPS 3.1.0", "{module:#}");
    check_eq!(module["properties"][0]["value"], "#5314", "{module:#}");
    let programs = named("aya-ebpf").context("no crates of the programs")?;
    check_eq!(
        programs["properties"][0]["value"],
        "kernel (eBPF)",
        "{programs:#}"
    );
    check!(
        named("rustls").is_some() && named("clap_mangen").is_none(),
        "{sbom:#}"
    );
    let unlinked =
        named("aws-lc-sys").context("not in the tree any more: take it from the SBOM's maker, too")?;
    check_eq!(unlinked["scope"], "excluded", "{unlinked:#}");
    let needs = sbom["dependencies"].as_array().context("dependencies")?;
    let leads = needs
        .iter()
        .find(|one| one["ref"] == "pkg:cargo/aws-lc-fips-sys@0.13.11")
        .context("nobody needs the module")?;
    check!(
        leads["dependsOn"].to_string().contains("module:aws-lc-fips"),
        "{leads}"
    );
    let digest = harness::sha256(&std::fs::read(made.folder.join("agent-fips-proxy"))?);
    check_eq!(
        sbom["metadata"]["component"]["hashes"][0]["content"],
        digest.as_str(),
        "the program's digest"
    );
    Ok(())
}

/// A Python with the validator, made on first use.
fn validator() -> Result<std::path::PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("no checkout")?;
    let venv = checkout.join("target/venv-sbom");
    let python = venv.join("bin/python");
    let there =
        harness::capture(Command::new(&python).args(["-c", "import cyclonedx.validation.json, jsonschema"]));
    if !there.is_ok_and(|output| output.status.success()) {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        succeed(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .arg(VALIDATOR),
        )?;
    }
    Ok(python)
}
