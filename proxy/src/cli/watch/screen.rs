//! What the screen shows and what keys change in it; nothing here knows a terminal's size or colours.

use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::Look;
use super::sample::Sample;
use super::table::Tab;

/// The screen.
#[derive(Default)]
pub(super) struct Screen {
    pub(super) sample: Option<Sample>,
    /// Why the last look brought nothing.
    pub(super) trouble: Option<String>,
    pub(super) tab: Tab,
    /// The first row that is shown. `draw` keeps it within the table.
    pub(super) scroll: usize,
    /// Rows that fit; written by `draw`.
    pub(super) page: usize,
    /// Looks are passed over: somebody is reading.
    pub(super) paused: bool,
}

impl Screen {
    /// A new look.
    pub(super) fn take(&mut self, look: Look, at: Instant) {
        if self.paused {
            return;
        }
        match look.and_then(|body| Sample::new(body, at, self.sample.as_ref())) {
            Ok(sample) => {
                self.sample = Some(sample);
                self.trouble = None;
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    /// A key. True when somebody has seen enough.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return true,
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.turn(self.tab.next()),
            KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => self.turn(self.tab.previous()),
            KeyCode::Char(digit @ '1'..='9') => {
                if let Some(tab) = Tab::numbered(digit) {
                    self.turn(tab);
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll = self.scroll.saturating_add(self.page.max(1)),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(self.page.max(1)),
            KeyCode::Home | KeyCode::Char('g') => self.scroll = 0,
            KeyCode::End | KeyCode::Char('G') => self.scroll = usize::MAX,
            _ => {}
        }
        false
    }

    fn turn(&mut self, tab: Tab) {
        self.tab = tab;
        self.scroll = 0;
    }
}
