//! `status --watch`: the status again and again. A screen of its own on a terminal; elsewhere text, or a line of JSON each time, for
//! whoever keeps it in a file.

mod draw;
mod sample;
mod screen;
mod stop;
mod table;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ratatui::crossterm::event::{self, Event};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Exit;
use super::output::{complain, say};
use super::status::{self, Report};
use crate::supervise::admin::{self, Answer, Request};
use screen::Screen;
use stop::Stop;

/// Between two looks at the keyboard: what a finger does not feel.
const BLINK: Duration = Duration::from_millis(100);
/// Never faster: each look costs the proxy a walk through its figures.
const SHORTEST: Duration = Duration::from_millis(200);

/// What one look brought.
type Look = Result<Value, String>;

/// Asks the proxy that answers at `socket` every `interval` until somebody has seen enough. It need not run: the screen says so and
/// goes on asking.
pub(super) fn run(socket: &Path, interval: Duration, json: bool) -> Exit {
    let stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => {
            complain!("agent-fips-proxy: cannot listen for signals: {error}");
            return Exit::Internal;
        }
    };
    let looks = looks(socket.to_owned(), interval.max(SHORTEST));
    let smart = std::env::var_os("TERM").is_some_and(|term| term != "dumb" && !term.is_empty());
    if !json && smart && io::stdout().is_terminal() && io::stdin().is_terminal() {
        on_terminal(&looks, &stop)
    } else {
        as_lines(&looks, &stop, json)
    }
}

/// Looks on a thread of its own, so that a proxy that does not answer keeps nobody from leaving.
fn looks(socket: PathBuf, interval: Duration) -> Receiver<Look> {
    // One at a time: whoever reads slowly gets the newest but one, and nothing piles up.
    let (tell, told) = sync_channel(1);
    thread::spawn(move || look_until_nobody_listens(&socket, interval, &tell));
    told
}

fn look_until_nobody_listens(socket: &Path, interval: Duration, tell: &SyncSender<Look>) {
    loop {
        let began = Instant::now();
        let look = match admin::ask(socket, Request::Status) {
            Ok(Answer::Ok(body)) => Ok(body),
            Ok(Answer::Error(message)) => Err(message),
            Err(error) => Err(status::why_unreachable(socket, &error)),
        };
        if tell.send(look).is_err() {
            return;
        }
        thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}

/// The screen, until `q`, a signal, or a terminal that has gone.
fn on_terminal(looks: &Receiver<Look>, stop: &Stop) -> Exit {
    let mut terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => {
            complain!(
                "agent-fips-proxy: cannot take the terminal: {error}; `status --watch | cat` needs none"
            );
            return Exit::Unavailable;
        }
    };
    let ended = show(&mut terminal, looks, stop);
    ratatui::restore();
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain!("agent-fips-proxy: the terminal failed: {error}");
            Exit::Unavailable
        }
    }
}

fn show(terminal: &mut ratatui::DefaultTerminal, looks: &Receiver<Look>, stop: &Stop) -> io::Result<()> {
    let mut screen = Screen::default();
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut screen, Instant::now()))?;
        // Drawn again at a key, a new size or a new look, and for the age of the last one.
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            if stop.asked() {
                return Ok(());
            }
            if event::poll(BLINK)? {
                match event::read()? {
                    Event::Key(key) if screen.key(key) => return Ok(()),
                    _ => break,
                }
            }
            if let Ok(look) = looks.try_recv() {
                screen.take(look, Instant::now());
                break;
            }
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// Text, or a line of JSON, for each look.
fn as_lines(looks: &Receiver<Look>, stop: &Stop, json: bool) -> Exit {
    loop {
        let look = match looks.recv_timeout(BLINK) {
            Ok(look) => look,
            Err(RecvTimeoutError::Timeout) if !stop.asked() => continue,
            Err(_) => return Exit::Ok,
        };
        match look {
            Ok(body) if json => say!("{body}"),
            Ok(body) => match serde_json::from_value::<Report>(body) {
                Ok(report) => {
                    say!("--- {}", now());
                    status::print(&report);
                }
                Err(error) => complain!("agent-fips-proxy: {}", sample::other_version(&error)),
            },
            Err(why) => complain!("agent-fips-proxy: {why}"),
        }
    }
}

fn now() -> String {
    OffsetDateTime::from(SystemTime::now())
        .replace_nanosecond(0)
        .ok()
        .and_then(|now| now.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
