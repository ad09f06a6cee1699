//! The log and the access log of the real binary: nobody waits for whoever reads them, what is lost is counted and told,
//! and nothing is lost otherwise.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::agent::{Load, Report, curl};
use harness::proxy::{Launch, Proxy};
use harness::world::{API_KEY, World};
use harness::{check, check_eq, eventually};

/// Long enough that two thousand access lines are more than the queue holds (2 MiB), short enough that a line is one write.
const LONG_PATH: usize = 2500;

/// Requests whose access lines are long.
fn requests(world: &World, number: u32) -> Result<Report> {
    let url = format!("http://127.0.0.1:9808/{}", "p".repeat(LONG_PATH));
    let number = number.to_string();
    let words = [
        "--url",
        &url,
        "--clients",
        "8",
        "--requests",
        &number,
        "--per-connection",
        "1000",
        "--api-key",
        API_KEY,
    ];
    Load::start(&world.host, None, &words)?.wait()
}

fn lost(proxy: &Proxy<'_>, process: &str, kind: &str) -> Result<f64> {
    let labels = [("process", process), ("kind", kind)];
    Ok(proxy
        .metrics()?
        .sum("agent_fips_proxy_log_lines_lost_total", &labels))
}

/// Access lines that came out, each a whole line of JSON.
fn access_lines(proxy: &Proxy<'_>) -> Result<f64> {
    for line in proxy.log().lines() {
        serde_json::from_str::<serde_json::Value>(line).with_context(|| format!("not a line: {line}"))?;
    }
    Ok(f64::from(u32::try_from(proxy.access().len())?))
}

/// Nobody reads standard error for a while: every request is served, commands are answered, warnings survive, what was lost is
/// told by metrics, `status`, the page and, once it is read again, the log.
pub(super) fn a_stuck_reader_stops_no_request() -> Result<()> {
    let world = World::new()?;
    let mut proxy = Launch::new(&world.host)
        .config(&world.config())?
        .unread()
        .start()?;
    let report = requests(&world, 2000)?;
    check!(report.all(202), "{report:?}");
    let key = format!("DD-API-KEY: {API_KEY}");
    let refused = [
        "-H",
        &key,
        "-H",
        "Content-Length: 1",
        "-H",
        "Content-Length: 2",
        "http://127.0.0.1:9808/",
    ];
    let answer = curl(&world.host, None, &refused)?;
    check_eq!(answer.status, 400, "{answer:?}");
    let gone = lost(&proxy, "worker", "access")?;
    check!(gone > 500.0, "{gone} of 2000 access lines are lost");
    check_eq!(lost(&proxy, "worker", "warning")?, 0.0, "warnings");
    check_eq!(lost(&proxy, "master", "detail")?, 0.0, "lines of the master");
    let status = proxy.status()?;
    check_eq!(
        status["log_lost"]["worker"]["access"].as_f64(),
        Some(gone),
        "{status}"
    );
    let (_, page) = proxy.get("/")?;
    check!(page.contains("lost by the worker"), "{page}");
    check!(
        proxy.log().is_empty(),
        "the case reads nothing yet: {}",
        proxy.log()
    );

    proxy.read()?;
    eventually("all lines that were kept", Duration::from_secs(20), || {
        let all = access_lines(&proxy)? + gone;
        check!(all <= 2001.0, "{all} access lines, lost ones included");
        Ok((all >= 2000.0).then_some(()))
    })?;
    let log = proxy.log();
    check!(log.contains("log lines were lost"), "told: {log}");
    check!(log.contains("\"outcome\":\"bad_request\""), "the warning: {log}");
    let report = requests(&world, 10)?;
    check!(report.all(202), "{report:?}");
    eventually("lines as usual", Duration::from_secs(20), || {
        Ok((access_lines(&proxy)? + gone >= 2010.0).then_some(()))
    })?;
    check_eq!(lost(&proxy, "worker", "access")?, gone, "nothing more is lost");
    eventually("the end of the loss", Duration::from_secs(30), || {
        Ok(proxy.log().contains("not lost any more").then_some(()))
    })?;
    check!(proxy.stop()?.success(), "{}", proxy.log());
    Ok(())
}

/// A stop is not held up by a log that nobody reads.
pub(super) fn a_stuck_reader_stops_no_stop() -> Result<()> {
    let world = World::new()?;
    let mut proxy = Launch::new(&world.host)
        .config(&world.config())?
        .unread()
        .start()?;
    let report = requests(&world, 500)?;
    check!(report.all(202), "{report:?}");
    let start = Instant::now();
    check!(proxy.stop()?.success(), "a stop is good");
    let took = start.elapsed();
    check!(took < harness::patient(Duration::from_secs(8)), "{took:?}");
    Ok(())
}

/// A stop right behind the last request: every line is there, in order, and the last words of both processes.
pub(super) fn a_stop_loses_no_line() -> Result<()> {
    let world = World::new()?;
    let mut proxy = Launch::new(&world.host).config(&world.config())?.start()?;
    let report = requests(&world, 1000)?;
    check!(report.all(202), "{report:?}");
    check!(proxy.stop()?.success(), "{}", proxy.log());
    eventually("every line", Duration::from_secs(5), || {
        Ok((proxy.log().contains("\"drained\"") && access_lines(&proxy)? >= 1000.0).then_some(()))
    })
    .with_context(|| format!("{:?} access lines", access_lines(&proxy)))?;
    check_eq!(access_lines(&proxy)?, 1000.0, "access lines");
    let log = proxy.log();
    let last = log.lines().rfind(|line| line.contains("\"target\":\"access\""));
    let place = |text: &str| log.find(text).unwrap_or_default();
    check!(
        place("\"drained\"") > place(last.unwrap_or_default()),
        "the worker's last word comes last: {log}"
    );
    check!(!log.contains("lines were lost"), "{log}");
    Ok(())
}
