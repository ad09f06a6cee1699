//! The harness on its own: a suite that trusts its tools only after they have been seen to catch what they must catch.

#[path = "selfcheck/account.rs"]
mod account;
#[path = "selfcheck/gateways.rs"]
mod gateways;
#[path = "selfcheck/pods.rs"]
mod pods;
#[path = "selfcheck/wire.rs"]
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use harness::agent::{Load, ask, curl, run_python};
use harness::ca::Fault;
use harness::cgroup::Cgroup;
use harness::intake::{Answer, Peer};
use harness::suite::{Need, case, run};
use harness::world::{BYSTANDER, Setup, VERSIONED, World};
use harness::{check, check_eq, eventually};

fn main() -> ExitCode {
    run(vec![
        case(
            "intake_records_what_curl_sends",
            &[Need::Root],
            intake_records_what_curl_sends,
        ),
        case("intake_speaks_http2", &[Need::Root], intake_speaks_http2),
        case("intake_finds_faults", &[Need::Root], intake_finds_faults),
        case(
            "intake_misbehaves_on_demand",
            &[Need::Root],
            intake_misbehaves_on_demand,
        ),
        case("leaks_are_caught", &[Need::Root], leaks_are_caught),
        case(
            "bad_certificates_are_bad",
            &[Need::Root],
            bad_certificates_are_bad,
        ),
        case("weak_peers_are_weak", &[Need::Root], weak_peers_are_weak),
        case(
            "outbound_proxy_finds_faults",
            &[Need::Root],
            gateways::outbound_proxy_finds_faults,
        ),
        case(
            "gateway_asks_who_comes",
            &[Need::Root],
            gateways::gateway_asks_who_comes,
        ),
        case("load_client_counts", &[Need::Root], load_client_counts),
        case(
            "an_account_sees_what_is_wrong",
            &[],
            account::an_account_sees_what_is_wrong,
        ),
        case(
            "python_client_runs",
            &[Need::Root, Need::Python],
            python_client_runs,
        ),
        case(
            "cgroup_holds_the_process",
            &[Need::Root],
            cgroup_holds_the_process,
        ),
        case("pods_reach_the_intake", &[Need::Cni], pods::pods_reach_the_intake),
        case(
            "pods_are_where_kubelet_puts_them",
            &[Need::Cni],
            pods::pods_are_where_kubelet_puts_them,
        ),
        case("wire_leaves_tls_alone", &[Need::Root], wire::tls_is_left_alone),
        case(
            "wire_finds_a_plain_request",
            &[Need::Root],
            wire::a_plain_request_is_found,
        ),
        case("wire_counts_every_byte", &[Need::Root], wire::every_byte_counts),
        case(
            "wire_tells_what_was_open_before",
            &[Need::Root],
            wire::what_was_open_before_is_told,
        ),
        case(
            "wire_counts_what_it_missed",
            &[Need::Root],
            wire::packets_without_room_are_counted,
        ),
        case("nothing_stays_behind", &[Need::Root], nothing_stays_behind),
    ])
}

/// curl straight to the intake, with these options before the URL.
fn direct(world: &World, options: &[&str], path: &str) -> Result<harness::agent::Curl> {
    let ca = world.host.folder().join("ca.pem").display().to_string();
    let url = format!("https://{VERSIONED}{path}");
    ask(
        &world.host,
        None,
        &[&["--cacert", &ca], options, &[&url]].concat(),
    )
}

fn intake_records_what_curl_sends() -> Result<()> {
    let world = World::new()?;
    let body = "x".repeat(100_000);
    let file = world.host.folder().join("body");
    std::fs::write(&file, &body)?;
    for (family, options) in [("203.0.113.10 443", ["-4"]), ("2001:db8:1::10 443", ["-6"])] {
        let data = format!("@{}", file.display());
        let answer = direct(
            &world,
            &[options[0], "--data-binary", &data],
            "/api/v2/series?x=1",
        )?;
        check_eq!(
            (answer.status, answer.peer.as_str()),
            (202, family),
            "{}",
            answer.error
        );
    }
    let seen = world.intake.seen();
    check_eq!(seen.len(), 2, "requests");
    for request in &seen {
        check_eq!(request.session.sni.as_deref(), Some(VERSIONED), "SNI");
        check_eq!(request.session.version, "TLSv1_3", "version");
        check_eq!(request.body_sha256, harness::sha256(body.as_bytes()), "digest");
        check_eq!(
            (request.body_len, request.target.as_str()),
            (100_000, "/api/v2/series?x=1"),
            "body and target"
        );
    }
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");
    check!(world.leaks().is_empty(), "leaks: {:?}", world.leaks());
    Ok(())
}

fn intake_speaks_http2() -> Result<()> {
    let world = World::with(Setup {
        http2: true,
        ..Setup::default()
    })?;
    let answer = direct(&world, &["--http2", "-d", "hello"], "/api/v2/logs")?;
    check_eq!(answer.status, 202, "{}", answer.error);
    let seen = world.intake.seen();
    check_eq!((seen[0].http, seen[0].body_len), ("2", 5), "protocol and body");
    check_eq!(world.intake.faults(), Vec::<String>::new(), "faults");
    Ok(())
}

fn intake_finds_faults() -> Result<()> {
    let world = World::new()?;
    let wrong = direct(&world, &["-H", "DD-API-KEY: nobody", "-H", "DD-API-KEY;"], "/key")?;
    check!(
        wrong.status == 202,
        "curl sends both keys and the first counts: {wrong:?}"
    );
    for (header, word) in [
        ("Host: elsewhere.ddog-gov.com", "under SNI"),
        ("x-test-sha256: 00", "is not the one sent"),
        ("Content-Encoding: lzma", "content-encoding"),
        ("Via: 1.1 proxy", "must not send via"),
        ("Content-Length: 3", "content-length"),
    ] {
        let options = ["-H", header, "-H", "Transfer-Encoding: chunked", "-d", "abc"];
        let options = if header.starts_with("Content-L") {
            &options[..]
        } else {
            &options[..2]
        };
        direct(&world, options, "/fault")?;
        let faults = world
            .intake
            .take()
            .iter()
            .flat_map(|seen| seen.faults.clone())
            .collect::<Vec<_>>();
        check!(
            faults.iter().any(|fault| fault.contains(word)),
            "{header}: {faults:?}"
        );
    }
    Ok(())
}

fn intake_misbehaves_on_demand() -> Result<()> {
    let world = World::new()?;
    let second = Duration::from_millis(300);
    for (answer, status, exit) in [
        (Answer::Accepted, 202, 0),
        (Answer::Status(418, "no".to_owned()), 418, 0),
        (Answer::Slow(second), 202, 0),
        (Answer::SlowBody(second), 202, 0),
        (Answer::EarlyHints, 202, 0),
        (Answer::OddChunks, 202, 0),
        (Answer::UntilClose("end".to_owned()), 200, 0),
        (Answer::CloseAfter, 202, 0),
        (Answer::CloseOnNext, 202, 0),
        (Answer::ResetBeforeHead, 0, 56),
        (Answer::ResetInBody, 202, 56),
    ] {
        world.intake.answer("/behave", answer.clone());
        let seen = direct(&world, &[], "/behave")?;
        check_eq!(
            (seen.status, seen.exit),
            (status, exit),
            "{answer:?}: {}",
            seen.error
        );
    }
    Ok(())
}

fn leaks_are_caught() -> Result<()> {
    let world = World::new()?;
    curl(&world.host, None, &[&format!("http://{BYSTANDER}/")])?;
    check!(
        world.leaks().is_empty(),
        "a bystander is no leak: {:?}",
        world.leaks()
    );
    let plain = curl(&world.host, None, &[&format!("http://{VERSIONED}/")])?;
    check_eq!(
        (plain.status, plain.body.as_str()),
        (200, "plain"),
        "the plain listener"
    );
    check_eq!(world.leaks().len(), 1, "port 80");
    curl(&world.host, None, &[&format!("http://{VERSIONED}:443/")])?;
    check_eq!(world.leaks().len(), 2, "port 443");
    Ok(())
}

fn bad_certificates_are_bad() -> Result<()> {
    for fault in [
        Fault::Expired,
        Fault::NotYetValid,
        Fault::SelfSigned,
        Fault::WrongName,
        Fault::UnknownAuthority,
    ] {
        let world = World::with(Setup {
            fault,
            ..Setup::default()
        })?;
        let answer = direct(&world, &[], "/")?;
        // 35 when OpenSSL fails on the signature before it can call the certificate untrusted (60).
        check!(
            answer.status == 0 && [35, 60].contains(&answer.exit),
            "{fault:?}: {answer:?}"
        );
        check_eq!(world.intake.count(), 0, "{fault:?}: requests");
        // Only the certificate is wrong: without verification the same request arrives.
        check_eq!(direct(&world, &["-k"], "/")?.status, 202, "{fault:?} with -k");
    }
    Ok(())
}

fn weak_peers_are_weak() -> Result<()> {
    for (peer, version, suite, group) in [
        (
            Peer::OnlyChaCha20,
            "TLSv1_3",
            "TLS13_CHACHA20_POLY1305_SHA256",
            "",
        ),
        (Peer::OnlyX25519, "TLSv1_3", "", "X25519"),
        (Peer::Tls12, "TLSv1_2", "", ""),
    ] {
        let world = World::with(Setup {
            peer,
            ..Setup::default()
        })?;
        let answer = direct(&world, &[], "/")?;
        check_eq!(answer.status, 202, "{peer:?}: {}", answer.error);
        let session = world.intake.seen().remove(0).session;
        check!(
            session.version == version && session.suite.contains(suite) && session.group.contains(group),
            "{peer:?}: {session:?}"
        );
        check!(
            peer == Peer::Tls12 || !session.approved(),
            "{peer:?} within the policy: {session:?}"
        );
    }
    let world = World::with(Setup {
        peer: Peer::Tls11,
        ..Setup::default()
    })?;
    let answer = direct(&world, &[], "/")?;
    check_eq!(answer.exit, 35, "{}", answer.error);
    // The client has its alert before the peer has written down why it sent it.
    let refused = eventually("the refusal", Duration::from_secs(5), || {
        Ok(Some(world.intake.refused()).filter(|refused| !refused.is_empty()))
    })?;
    check!(
        refused.len() == 1 && refused[0].error.starts_with("alert"),
        "{refused:?}"
    );
    Ok(())
}

fn load_client_counts() -> Result<()> {
    let world = World::new()?;
    let url = format!("http://{BYSTANDER}/x");
    let report = Load::start(
        &world.host,
        None,
        &[
            "--url",
            &url,
            "--ip",
            "both",
            "--clients",
            "4",
            "--requests",
            "40",
        ],
    )?
    .wait()?;
    check!(report.all(200) && report.count("connects") == 40, "{report:?}");
    check_eq!(world.plain.seen().len(), 40, "connections at the plain listener");
    world
        .host
        .set_names(&[("gone.example.net".to_owned(), [198, 51, 100, 1].into())])?;
    let report = Load::start(
        &world.host,
        None,
        &["--url", "http://gone.example.net/x", "--requests", "3"],
    )?
    .wait()?;
    check_eq!(report.errors("connect_ConnectionRefused"), 3, "{report:?}");
    Ok(())
}

fn python_client_runs() -> Result<()> {
    let world = World::new()?;
    let version = run_python(&world.host, None, "import datadog; print(datadog.__name__)")?;
    check_eq!(version.trim(), "datadog", "the module");
    Ok(())
}

fn cgroup_holds_the_process() -> Result<()> {
    let world = World::new()?;
    let cgroup = Cgroup::new("agent")?;
    let mut command = world.host.command("cat");
    command.arg("/proc/self/cgroup");
    let text = harness::succeed(&mut cgroup.wrap(&command))?;
    check!(text.contains(&format!("0::{}\n", cgroup.inside())), "{text}");
    Ok(())
}

fn nothing_stays_behind() -> Result<()> {
    let cgroup = Cgroup::new("agent")?;
    let world = World::new()?;
    let mut sleeper = cgroup.wrap(world.host.command("sleep").arg("60")).spawn()?;
    let place = harness::cgroup::mount()?.join(&cgroup.inside()[1..]);
    let folder = world.host.folder().to_owned();
    check!(place.exists() && folder.exists(), "the guard made its things");
    drop(world);
    let status = sleeper.wait()?;
    check!(
        !status.success(),
        "the process of the namespace was ended, not finished: {status}"
    );
    drop(cgroup);
    check!(
        !place.exists() && !folder.exists(),
        "the guards removed their things"
    );
    Ok(())
}
