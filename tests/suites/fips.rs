//! The cryptography: weak or wrong peers get no byte of a request, and the binary holds exactly one intact module.
//!
//! The `module_*` cases look at the binary that `AGENT_FIPS_PROXY_BIN` names: `cargo xtask audit` runs them against the
//! release build.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::ca::Fault;
use harness::intake::Peer;
use harness::proxy::{Launch, binary};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, SITE, Setup, World};
use harness::{capture, check, check_eq, succeed};
use serde_json::json;

/// The prefix that the crate gives to the certified module's symbols (`BORINGSSL_PREFIX`, aws-lc-fips-sys 0.13.11).
const PREFIX: &str = "aws_lc_fips_0_13_11_";

fn main() -> ExitCode {
    run(vec![
        case(
            "approved_peers_are_accepted",
            &[Need::Root],
            approved_peers_are_accepted,
        ),
        case(
            "wrong_certificates_get_no_byte",
            &[Need::Root],
            wrong_certificates_get_no_byte,
        ),
        case("weak_peers_get_no_byte", &[Need::Root], weak_peers_get_no_byte),
        case(
            "no_extended_master_secret_gets_no_byte",
            &[Need::Root, Need::OpenSsl],
            no_extended_master_secret,
        ),
        case("strict_refuses_tls_1_2", &[Need::Root], strict_refuses_tls12),
        case(
            "key_log_is_never_written",
            &[Need::Root],
            key_log_is_never_written,
        ),
        case("module_is_the_certified_one", &[], module_is_the_certified_one),
        case(
            "module_symbols_are_the_only_ones",
            &[],
            module_symbols_are_the_only_ones,
        ),
        case("module_flipped_byte_aborts", &[], module_flipped_byte_aborts),
        case("module_binary_is_hardened", &[], module_binary_is_hardened),
    ])
}

/// One request through a proxy with this policy to a world with this difference: status, what the intake saw, the log.
fn attempt(setup: Setup, policy: &str) -> Result<(u16, World, String)> {
    let world = World::with(setup)?;
    let mut config = world.config();
    config["upstream"]["tls_policy"] = json!(policy);
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let status = ask(&world)?;
    let log = match status {
        202 => proxy.log(),
        _ => proxy.access_line(|line| line["status"] == status)?.to_string(),
    };
    drop(proxy);
    Ok((status, world, log))
}

/// One POST on the metrics port.
fn ask(world: &World) -> Result<u16> {
    let words = ["-d", "secret-body", "http://localhost:9804/api/v2/series"];
    Ok(harness::agent::ask(&world.host, None, &words)?.status)
}

fn approved_peers_are_accepted() -> Result<()> {
    for (peer, policy, version) in [
        (Peer::Modern, "fips", "TLSv1_3"),
        (Peer::Modern, "strict", "TLSv1_3"),
        (Peer::Tls12, "fips", "TLSv1_2"),
    ] {
        let (status, world, log) = attempt(
            Setup {
                peer,
                ..Setup::default()
            },
            policy,
        )?;
        check_eq!(status, 202, "{peer:?} under {policy}: {log}");
        let session = world.intake.seen().remove(0).session;
        check_eq!(session.version, version, "{peer:?} under {policy}");
        check!(session.approved(), "{session:?}");
    }
    Ok(())
}

/// Acceptance 8, certificates.
fn wrong_certificates_get_no_byte() -> Result<()> {
    for (fault, words) in [
        (Fault::Expired, &["expired"][..]),
        (
            Fault::NotYetValid,
            &["not_yet_valid", "not yet valid", "not valid yet"],
        ),
        (
            Fault::SelfSigned,
            &["unknown_issuer", "unknown issuer", "not signed by a root"],
        ),
        (
            Fault::UnknownAuthority,
            &[
                "unknown_issuer",
                "unknown issuer",
                "signature",
                "not signed by a root",
            ],
        ),
        (
            Fault::WrongName,
            &["wrong_name", "not valid for name", "wrong name"],
        ),
    ] {
        let (status, world, log) = attempt(
            Setup {
                fault,
                ..Setup::default()
            },
            "fips",
        )?;
        refused(status, &world, &log, words).with_context(|| format!("{fault:?}"))?;
    }
    Ok(())
}

/// Acceptance 8, protocol versions, suites and groups.
fn weak_peers_get_no_byte() -> Result<()> {
    for peer in [Peer::OnlyChaCha20, Peer::OnlyX25519, Peer::Tls11] {
        let (status, world, log) = attempt(
            Setup {
                peer,
                ..Setup::default()
            },
            "fips",
        )?;
        refused(status, &world, &log, &["alert", "version", "suite", "handshake"])
            .with_context(|| format!("{peer:?}"))?;
    }
    Ok(())
}

fn strict_refuses_tls12() -> Result<()> {
    let (status, world, log) = attempt(
        Setup {
            peer: Peer::Tls12,
            ..Setup::default()
        },
        "strict",
    )?;
    refused(status, &world, &log, &["version", "alert"])
}

/// 502, nothing at the intake, and a reason in the log.
fn refused(status: u16, world: &World, log: &str, words: &[&str]) -> Result<()> {
    check_eq!(status, 502, "{log}");
    check_eq!(world.intake.count(), 0, "requests at the intake");
    check!(
        world.intake.connections() > 0,
        "the peer was never reached, which proves nothing"
    );
    let refusals = world.intake.refused();
    check!(
        refusals.iter().all(|refusal| refusal.application_bytes == 0),
        "{refusals:?}"
    );
    let lower = log.to_lowercase();
    check!(lower.contains("upstream_tls"), "outcome: {log}");
    check!(
        words.iter().any(|word| lower.contains(word)),
        "none of {words:?} in {log}"
    );
    Ok(())
}

/// TLS 1.2 without the extended master secret (RFC 7627) is outside the module's approved services. The peer is OpenSSL:
/// rustls has no such switch.
fn no_extended_master_secret() -> Result<()> {
    let world = World::new()?;
    let name = format!("metrics.agent.{SITE}");
    let leaf = world.authority.leaf(std::slice::from_ref(&name), Fault::None)?;
    let folder = world.host.folder();
    std::fs::write(folder.join("leaf.pem"), &leaf.pem)?;
    std::fs::write(
        folder.join("openssl.cnf"),
        "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nOptions = -ExtendedMasterSecret\n",
    )?;
    world.host.set_names(&[(name, harness::world::ELSEWHERE)])?;
    for (configuration, status) in [("/dev/null", 200), ("openssl.cnf", 502)] {
        let mut server = world.net.command("env");
        server
            .arg(format!("OPENSSL_CONF={}", folder.join(configuration).display()))
            .args([
                "openssl",
                "s_server",
                "-quiet",
                "-tls1_2",
                "-www",
                "-accept",
                "203.0.113.99:443",
                "-cert",
            ])
            .arg(folder.join("leaf.pem"))
            .arg("-key")
            .arg(folder.join("leaf.pem"))
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null());
        let mut server = server.spawn()?;
        let outcome = (|| {
            let proxy = Launch::new(&world.host).config(&world.config())?.start()?;
            let key = format!("DD-API-KEY: {API_KEY}");
            let words = ["-H", &key, "http://localhost:9804/"];
            harness::eventually("openssl s_server", Duration::from_secs(5), || {
                let direct = harness::agent::curl(&world.host, None, &["-k", "https://203.0.113.99/"])?;
                Ok((direct.status == 200).then_some(()))
            })?;
            let answer = harness::agent::curl(&world.host, None, &words)?;
            check_eq!(
                answer.status,
                status,
                "with {configuration}: {answer:?}\n{}",
                proxy.log()
            );
            if status == 502 {
                let line = proxy
                    .access_line(|line| line["outcome"] == "upstream_tls")?
                    .to_string()
                    .to_lowercase();
                check!(
                    line.contains("ems") || line.contains("extended"),
                    "the reason: {line}"
                );
            }
            Ok(())
        })();
        server.kill()?;
        server.wait()?;
        outcome?;
    }
    Ok(())
}

fn key_log_is_never_written() -> Result<()> {
    let world = World::new()?;
    let file = world.host.folder().join("keys");
    std::fs::set_permissions(
        world.host.folder(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )?;
    let proxy = Launch::new(&world.host)
        .config(&world.config())?
        .env("SSLKEYLOGFILE", &file.display().to_string())
        .start()?;
    check_eq!(ask(&world)?, 202, "{}", proxy.log());
    check!(!file.exists(), "SSLKEYLOGFILE was honoured");
    Ok(())
}

/// Acceptance 11: what the program says of itself.
fn module_is_the_certified_one() -> Result<()> {
    let text = succeed(Command::new(binary()?).args(["version", "--json"]))?;
    let version: serde_json::Value = serde_json::from_str(&text).context("version --json")?;
    let all = version.to_string();
    check!(
        all.contains("AWS-LC FIPS 3.1.0"),
        "the module's version string: {all}"
    );
    check!(all.contains("5314"), "the certificate: {all}");
    Ok(())
}

/// Acceptance 11: what is linked.
fn module_symbols_are_the_only_ones() -> Result<()> {
    let symbols = succeed(Command::new("nm").arg(binary()?))?;
    let count = |part: &str| symbols.lines().filter(|line| line.contains(part)).count();
    check!(
        count(PREFIX) > 1000,
        "symbols of the certified module: {}",
        count(PREFIX)
    );
    check!(
        symbols
            .lines()
            .any(|line| line.ends_with(&format!(" T {PREFIX}awslc_version_string"))),
        "the version function of the security policy's install check"
    );
    for banned in ["aws_lc_0_", "ring_core", "OPENSSL_init_ssl"] {
        check_eq!(count(banned), 0, "symbols {banned}");
    }
    let other: Vec<&str> = symbols
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .filter(|name| name.starts_with("aws_lc_") && !name.starts_with(PREFIX))
        .collect();
    check!(
        other.is_empty(),
        "another AWS-LC: {:?}",
        &other[..other.len().min(5)]
    );
    let libraries = succeed(Command::new("ldd").arg(binary()?))?;
    for banned in ["libssl", "libcrypto", "libgnutls", "libnss"] {
        check!(!libraries.contains(banned), "{banned} is loaded: {libraries}");
    }
    Ok(())
}

/// Acceptance 11: one byte of the module changed in a copy of the binary: it must abort before it does anything.
fn module_flipped_byte_aborts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let good = binary()?;
    let copy = folder.path().join("agent-fips-proxy");
    let mut bytes = std::fs::read(&good)?;
    let start = file_offset(&good, address(&good, "BORINGSSL_bcm_text_start")?)?;
    let end = file_offset(&good, address(&good, "BORINGSSL_bcm_text_end")?)?;
    check!(
        start < end && end <= bytes.len(),
        "the module's text lies at {start}..{end}"
    );

    // The untouched copy runs: the abort below is the byte's doing.
    write_executable(&copy, &bytes)?;
    let output = capture(Command::new(&copy).args(["version", "--json"]))?;
    check!(output.status.success(), "untouched copy: {output:?}");

    // The last function's end: no code path of start-up passes there before the integrity test.
    let at = end - 64;
    bytes[at] ^= 1;
    write_executable(&copy, &bytes)?;
    let output = capture(Command::new(&copy).args(["version", "--json"]))?;
    check_eq!(
        output.status.signal(),
        Some(nix::libc::SIGABRT),
        "byte {at} flipped: {output:?}"
    );
    check!(output.stdout.is_empty(), "it printed before the test: {output:?}");
    Ok(())
}

/// PIE, full RELRO, no executable stack, no writable and executable segment.
fn module_binary_is_hardened() -> Result<()> {
    let binary = binary()?;
    let segments = succeed(Command::new("readelf").arg("-lW").arg(&binary))?;
    let dynamic = succeed(Command::new("readelf").arg("-dW").arg(&binary))?;
    check!(
        segments.contains("DYN (Position-Independent Executable file)"),
        "PIE: {segments}"
    );
    check!(
        segments.contains("GNU_RELRO") && dynamic.contains("BIND_NOW"),
        "full RELRO: {dynamic}"
    );
    let flags = |line: &str| {
        line.split_whitespace()
            .skip(6)
            .take_while(|word| !word.starts_with(|c: char| c.is_ascii_digit()))
            .collect::<String>()
    };
    for line in segments.lines().map(str::trim) {
        if line.starts_with("GNU_STACK") {
            check_eq!(flags(line), "RW", "the stack's flags");
        }
        if line.starts_with("LOAD") {
            check!(
                !flags(line).contains('W') || !flags(line).contains('E'),
                "writable and executable: {line}"
            );
        }
    }
    check!(
        segments.contains("GNU_STACK"),
        "no GNU_STACK: the stack would be executable"
    );
    check!(
        !dynamic.contains("RPATH") && !dynamic.contains("RUNPATH"),
        "a library path is built in: {dynamic}"
    );
    Ok(())
}

/// The address of a symbol.
fn address(binary: &Path, symbol: &str) -> Result<usize> {
    let symbols = succeed(Command::new("nm").arg(binary))?;
    let line = symbols
        .lines()
        .find(|line| line.rsplit(' ').next().is_some_and(|name| name == symbol))
        .with_context(|| format!("{symbol} is not in {} (stripped?)", binary.display()))?;
    Ok(usize::from_str_radix(
        line.split(' ').next().unwrap_or_default(),
        16,
    )?)
}

/// Where an address of the image lies in the file, by the LOAD segments.
fn file_offset(binary: &Path, address: usize) -> Result<usize> {
    let segments = succeed(Command::new("readelf").arg("-lW").arg(binary))?;
    for line in segments
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("LOAD"))
    {
        let numbers: Vec<usize> = line
            .split_whitespace()
            .filter_map(|word| usize::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .collect();
        let [offset, start, _, size, ..] = numbers[..] else {
            bail!("readelf printed {line}")
        };
        if (start..start + size).contains(&address) {
            return Ok(address - start + offset);
        }
    }
    bail!("{address:#x} is in no LOAD segment of {}", binary.display())
}

fn write_executable(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).context("chmod")
}
