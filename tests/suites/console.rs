//! `status --watch` on a real terminal (a pseudo-terminal of the kernel's) and without one.

use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::agent::curl;
use harness::proxy::{Launch, binary};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, World};
use harness::{check, check_eq, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

#[path = "console/terminal.rs"]
mod terminal;

use terminal::Terminal;

const LIMIT: Duration = Duration::from_secs(30);
/// The other screen of a terminal, and back (xterm's 1049).
const OTHER_SCREEN: &str = "\u{1b}[?1049h";
const FIRST_SCREEN: &str = "\u{1b}[?1049l";
const CURSOR: &str = "\u{1b}[?25h";

fn main() -> ExitCode {
    run(vec![
        case("the_screen_lives_and_is_given_back", &[Need::Root], screen),
        case("signals_give_the_screen_back", &[Need::Root], signals),
        case("it_waits_for_a_proxy", &[Need::Root], waits),
        case("without_a_terminal_it_is_text", &[Need::Root], text),
        case("as_json_it_is_a_line_each", &[Need::Root], json),
        case("what_cannot_be_is_refused", &[Need::Root], refused),
    ])
}

const WATCH: &[&str] = &["status", "--watch", "--interval", "0.2"];

fn screen() -> Result<()> {
    let world = World::new()?;
    let proxy = world.start(&world.config())?;
    let mut terminal = Terminal::open()?;
    let before = terminal.settings()?;
    terminal.run(world.host.command(binary()?).args(WATCH))?;
    terminal.shows("no request yet")?;
    check!(
        terminal.settings()? != before,
        "keys come at once and are not echoed"
    );
    let key = format!("DD-API-KEY: {API_KEY}");
    let url = "http://localhost:9804/api/v2/series";
    let answer = curl(&world.host, None, &["-H", &key, "--data-binary", "x", url])?;
    check_eq!(answer.status, 202, "{answer:?}\n{}", proxy.log());
    terminal.shows("metrics")?;
    terminal.press("4")?;
    terminal.shows("127.0.0.1:9804")?;
    terminal.press("q")?;
    check_eq!(terminal.ended()?, Some(0), "exit code");
    check_eq!(terminal.settings()?, before, "the terminal's settings");
    let all = terminal.all();
    let (left, cursor) = (all.rfind(FIRST_SCREEN), all.rfind(CURSOR));
    check!(
        all.contains(OTHER_SCREEN) && left.is_some() && cursor.is_some(),
        "{all:?}"
    );
    check!(!all.contains(API_KEY), "the key");
    Ok(())
}

fn signals() -> Result<()> {
    let world = World::new()?;
    let _proxy = world.start(&world.config())?;
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut terminal = Terminal::open()?;
        let before = terminal.settings()?;
        terminal.run(world.host.command(binary()?).args(WATCH))?;
        terminal.shows("no request yet")?;
        terminal.signal(signal)?;
        check_eq!(terminal.ended()?, Some(0), "exit code after {signal}");
        check_eq!(
            terminal.settings()?,
            before,
            "the terminal's settings after {signal}"
        );
        check!(
            terminal.all().contains(FIRST_SCREEN),
            "{signal}: {:?}",
            terminal.all()
        );
    }
    Ok(())
}

fn waits() -> Result<()> {
    let world = World::new()?;
    let mut terminal = Terminal::open()?;
    terminal.run(world.host.command(binary()?).args(WATCH))?;
    terminal.shows("no proxy answers at")?;
    let proxy = Launch::new(&world.host).config(&world.config())?.start()?;
    terminal.shows("no request yet")?;
    drop(proxy);
    // The last look stays, and says how old it is.
    terminal.shows("no answer: ")?;
    terminal.press("\u{3}")?;
    check_eq!(terminal.ended()?, Some(0), "exit code");
    Ok(())
}

fn text() -> Result<()> {
    let world = World::new()?;
    let _proxy = world.start(&world.config())?;
    let mut command = world.host.command(binary()?);
    let mut child = command.args(WATCH).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut looks = 0;
    while looks < 3 {
        let line = lines.next().context("it ended")??;
        check!(!line.contains('\u{1b}'), "{line:?}");
        looks += usize::from(line.starts_with("--- 20") && line.ends_with('Z'));
    }
    // Whoever read has gone.
    drop(lines);
    let ended = eventually("its end", LIMIT, || Ok(child.try_wait()?))?;
    check_eq!(ended.code(), Some(0), "exit code");
    Ok(())
}

fn json() -> Result<()> {
    let world = World::new()?;
    let _proxy = world.start(&world.config())?;
    let mut command = world.host.command(binary()?);
    let mut child = command.args(WATCH).arg("--json").stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    for _ in 0..3 {
        let look: Value = serde_json::from_str(&lines.next().context("it ended")??)?;
        check_eq!(look["site"], Value::from("ddog-gov.com"), "{look}");
    }
    nix::sys::signal::kill(terminal::inner(child.id())?, Signal::SIGTERM)?;
    // To the end of its output.
    lines.last().transpose()?;
    check_eq!(child.wait()?.code(), Some(0), "exit code");
    Ok(())
}

fn refused() -> Result<()> {
    let world = World::new()?;
    for words in [
        &["status", "--watch", "--interval", "0"][..],
        &["status", "--watch", "--interval", "soon"],
        &["status", "--interval", "1"],
    ] {
        let output = world.host.command(binary()?).args(words).output()?;
        check_eq!(output.status.code(), Some(64), "{words:?}: {output:?}");
    }
    Ok(())
}
