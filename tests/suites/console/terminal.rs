//! A pseudo-terminal with a program on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::eventually;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(30);
const LINES: u16 = 30;
const COLUMNS: u16 = 100;

/// The terminal.
pub struct Terminal {
    keyboard: File,
    line: OwnedFd,
    said: Arc<Mutex<Vec<u8>>>,
    child: Option<Child>,
}

impl Terminal {
    /// Opens one.
    pub fn open() -> Result<Self> {
        let size = Winsize {
            ws_row: LINES,
            ws_col: COLUMNS,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None)?;
        let keyboard = File::from(pair.master);
        let mut screen = keyboard.try_clone()?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&said);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // EIO: nobody has the other side open any more.
            while let Ok(length @ 1..) = screen.read(&mut piece) {
                let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
                written.extend_from_slice(&piece[..length]);
            }
        });
        Ok(Self {
            keyboard,
            line: pair.slave,
            said,
            child: None,
        })
    }

    /// Starts a program on it.
    pub fn run(&mut self, command: &mut Command) -> Result<()> {
        let end = || self.line.try_clone();
        let command = command.env("TERM", "xterm").env_remove("NO_COLOR");
        self.child = Some(command.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?);
        Ok(())
    }

    /// Its settings: echo, line mode and the like, with the control characters.
    pub fn settings(&self) -> Result<Termios> {
        Ok(tcgetattr(&self.line)?)
    }

    /// Everything that was written to it.
    pub fn all(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// What stands on it now, line by line.
    pub fn screen(&self) -> String {
        let mut screen = vt100::Parser::new(LINES, COLUMNS, 0);
        screen.process(&self.said.lock().unwrap_or_else(PoisonError::into_inner));
        screen.screen().contents()
    }

    /// Waits until this stands on it.
    pub fn shows(&self, text: &str) -> Result<()> {
        eventually(text, LIMIT, || Ok(self.screen().contains(text).then_some(())))
            .with_context(|| self.screen())
    }

    /// Keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// A signal to the program.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("nothing runs")?;
        Ok(kill(inner(child.id())?, signal)?)
    }

    /// Waits for the program's end; its exit code.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        let child = self.child.as_mut().context("nothing runs")?;
        let status = eventually("its end", LIMIT, || Ok(child.try_wait()?))?;
        Ok(status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `nsenter` runs the program in its own place.
pub fn inner(pid: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(pid)?))
}
