//! The running proxy: the worker has the key although its user may not read the file, the master never has it, and both say
//! when the authority ends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::netns::Host;
use harness::proxy::{Launch, Proxy};
use harness::{check, check_eq, eventually};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{LocalAuthority, SITE, text};

fn config(authority: &LocalAuthority) -> Value {
    json!({
        "site": SITE,
        "intercept": {"enabled": false},
        "ca": {"dir": authority.dir()},
        "worker": {"user": "nobody"},
        "log": {"level": "trace"},
    })
}

fn start<'a>(host: &'a Host, authority: &LocalAuthority) -> Result<Proxy<'a>> {
    // With the rights of the unit (proxy/dist/agent-fips-proxy.service): root's files by their mode alone.
    Launch::new(host)
        .config(&config(authority))?
        .through(&[
            "setpriv",
            "--inh-caps=-all",
            "--bounding-set=-all,+bpf,+net_admin,+sys_admin,+sys_ptrace,+setuid,+setgid,+setpcap,+kill",
            "--",
        ])
        .start()
}

pub(super) fn the_worker_gets_the_key_by_descriptor() -> Result<()> {
    let authority = LocalAuthority::new()?;
    let host = Host::new(&[])?;
    let mut proxy = start(&host, &authority)?;
    let id = authority.id()?;
    let status = proxy.status()?;
    check!(
        status["authority"]["current"]["fingerprint"]
            .as_str()
            .is_some_and(|all| all.starts_with(&id)),
        "{:#}",
        status["authority"]
    );
    check_eq!(status["authority"]["signing"], "current", "{status:#}");
    check_eq!(status["authority_problem"], Value::Null, "{status:#}");
    let worker = proxy.worker()?;
    let user = text(Path::new(&format!("/proc/{worker}/status")))?;
    check!(user.contains("Uid:\t65534"), "the worker is not nobody: {user}");
    // The text of the key is in nobody's memory, the binary key not in the master's.
    let key = text(&authority.key()?)?;
    let line = key.lines().nth(1).context("no key")?.as_bytes().to_owned();
    let binary = der(&key)?;
    for (pid, name, needle) in [
        (proxy.pid(), "master", &line),
        (proxy.pid(), "master", &binary),
        (worker, "worker", &line),
    ] {
        check!(!memory_holds(pid, needle)?, "the key is in the {name}'s memory");
    }
    check!(
        !proxy
            .log()
            .as_bytes()
            .windows(line.len())
            .any(|window| window == line),
        "the key is in the log"
    );
    // The search finds what is there: the site's name.
    check!(
        memory_holds(worker, SITE.as_bytes())?,
        "the search of memory finds nothing"
    );
    // A rotation reaches a new worker by a reload, and the old one goes.
    authority.good(&["rotate"])?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("the next authority", Duration::from_secs(30), || {
        let status = proxy.status()?;
        Ok(status["authority"]["next"]["fingerprint"].as_str().map(drop))
    })?;
    authority.good(&["rotate", "--finish"])?;
    proxy.signal(Signal::SIGHUP)?;
    eventually("the end of the rotation", Duration::from_secs(30), || {
        let current = &proxy.status()?["authority"]["current"]["fingerprint"];
        Ok(current.as_str().filter(|now| !now.starts_with(&id)).map(drop))
    })?;
    check!(proxy.stop()?.success(), "the proxy did not stop in order");
    Ok(())
}

/// The private number in a PKCS #8 of P-256: the octets of the inner ECPrivateKey (RFC 5915).
fn der(pem: &str) -> Result<Vec<u8>> {
    use rustls_pki_types::PrivateKeyDer;
    use rustls_pki_types::pem::PemObject;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("the key")?;
    let bytes = key.secret_der();
    let at = bytes
        .windows(3)
        .position(|window| window == [1, 4, 32])
        .context("no octets in the key")?;
    Ok(bytes.get(at + 3..at + 35).context("a short key")?.to_vec())
}

/// Searches everything that a process has mapped for reading and writing.
fn memory_holds(pid: Pid, needle: &[u8]) -> Result<bool> {
    use std::os::unix::fs::FileExt;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut searched = 0;
    for line in text(Path::new(&format!("/proc/{pid}/maps")))?.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some(mode)) = (words.next(), words.next()) else {
            continue;
        };
        if !mode.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').context("maps")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // Guard pages and the like cannot be read.
        let Ok(read) = memory.read_at(&mut bytes, start) else {
            continue;
        };
        searched += read;
        if bytes[..read].windows(needle.len()).any(|window| window == needle) {
            return Ok(true);
        }
    }
    if searched == 0 {
        bail!("no memory of {pid} could be read");
    }
    Ok(false)
}

/// A local authority in the host's store is for Agents: towards an intake it must not count, or its key could make one.
pub(super) fn the_proxy_itself_does_not_trust_it() -> Result<()> {
    let authority = LocalAuthority::new()?;
    let ours = authority.dir().join("authorities.pem");
    let roots = |name: &str, file: &Path, set: Option<String>| -> Result<Value> {
        let mut command = std::process::Command::new(harness::proxy::binary()?);
        command
            .env_clear()
            .env(name, file)
            .args([
                "doctor",
                "--json",
                "--config",
                "/dev/null",
                "--env-file",
                "/dev/null",
            ])
            .args(["--set", "intercept.enabled=false"])
            .args(["--set", "ca.dir=/nonexistent"]);
        if let Some(set) = set {
            command.args(["--set", &set]);
        }
        let output = harness::capture(&mut command)?;
        if output.stdout.is_empty() {
            return Ok(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let checks = report["checks"].as_array().context("no checks")?;
        let found = checks.iter().find(|check| check["name"] == "trust roots");
        Ok(found.context("no check of the roots")?.clone())
    };
    let alone = roots("SSL_CERT_FILE", &ours, None)?;
    check!(
        alone["ok"] == false && alone["detail"].to_string().contains("no usable root"),
        "{alone:#}"
    );
    // Another authority under the same variable does count: what is refused is ours.
    let other = authority.dir().join("other.pem");
    fs::write(&other, harness::ca::Authority::new()?.pem())?;
    let beside = roots("SSL_CERT_FILE", &other, None)?;
    check!(beside["ok"] == true, "{beside:#}");
    for key in ["upstream.ca_file", "upstream.proxy.ca_file"] {
        let named = roots("NOTHING", &ours, Some(format!("{key}={}", ours.display())))?;
        let named = named.to_string();
        check!(
            named.contains(key) && named.contains("is a local authority's"),
            "{key}: {named}"
        );
    }
    Ok(())
}

/// What a start under `intercept.https: terminate` does when there is no authority yet: a process of its own makes it.
pub(super) fn a_missing_authority_is_made_by_a_process_of_its_own() -> Result<()> {
    let authority = LocalAuthority::none()?;
    let mut config = agent_fips_proxy::config::Config {
        site: SITE.parse().map_err(|error: String| anyhow::anyhow!(error))?,
        ..agent_fips_proxy::config::Config::default()
    };
    config.ca.dir = authority.dir();
    config.ca.validity_days = 90;
    let program = harness::proxy::binary()?;
    let ensure = || agent_fips_proxy::supervise::authority::ensure(&program, &config);
    ensure()?;
    let made = authority.id()?;
    let left = authority.show()?["authorities"][0]["not_after"]
        .as_i64()
        .unwrap_or_default()
        - agent_fips_proxy::tls::ca::now();
    check!((88 * 86_400..=90 * 86_400).contains(&left), "valid for {left} s");
    ensure()?;
    check_eq!(authority.id()?, made, "made again");
    config.ca.dir = "/proc/nowhere".into();
    let error = agent_fips_proxy::supervise::authority::ensure(&program, &config)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    check!(error.contains("/proc/nowhere"), "{error}");
    Ok(())
}

pub(super) fn the_end_is_announced() -> Result<()> {
    let authority = LocalAuthority::none()?;
    authority.good(&["init", "--set", "ca.validity_days=20"])?;
    let host = Host::new(&[])?;
    let mut proxy = start(&host, &authority)?;
    let status = proxy.status()?;
    let warning = status["authority"]["warning"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    check!(
        warning.contains("ends in 19 days") && warning.contains("ca rotate"),
        "{warning}"
    );
    let printed = proxy.cli(&["status"])?;
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    check!(printed.contains("WARNING: the local authority ends"), "{printed}");
    let metrics = proxy.metrics()?;
    check_eq!(
        metrics.sum("agent_fips_proxy_local_authority_ends_soon", &[]),
        1.0,
        "the metric"
    );
    check!(
        metrics.sum(
            "agent_fips_proxy_local_authority_end_timestamp_seconds",
            &[("role", "current")]
        ) > 1e9,
        "no time of the end"
    );
    eventually("the warning in the log", Duration::from_secs(10), || {
        Ok(proxy
            .log()
            .contains("the local authority ends in 19 days")
            .then_some(()))
    })?;
    check!(proxy.stop()?.success(), "the proxy did not stop in order");
    Ok(())
}

pub(super) fn an_unfit_authority_is_not_used() -> Result<()> {
    let authority = LocalAuthority::new()?;
    let key = authority.key()?;
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let host = Host::new(&[])?;
    let mut proxy = start(&host, &authority)?;
    let status = proxy.status()?;
    let problem = status["authority_problem"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    check!(
        problem.contains(&key.display().to_string()) && problem.contains("0644"),
        "{status:#}"
    );
    check_eq!(status["authority"], Value::Null, "{status:#}");
    check!(
        proxy.log().contains("may be read or written by others"),
        "{}",
        proxy.log()
    );
    // What works without an authority works.
    check!(status["ready"] == true, "{status:#}");
    check!(proxy.stop()?.success(), "the proxy did not stop in order");
    Ok(())
}
