//! Draws the screen: two lines of state, what is wrong, one table, one line of keys. At any size: what does not fit is cut, and the
//! table scrolls.

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Tabs};

use super::screen::Screen;
use super::table::{self, Column, Tab};
use crate::cli::status::Report;

/// What is wrong gets this part of the screen at most.
const ALARMS: u16 = 3;
/// Between two columns.
const GAP: u16 = 1;

/// Draws it. `NO_COLOR` (no-color.org) is honoured: then only bold and reverse are left.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &mut Screen, now: Instant) {
    let alarms = match (&screen.trouble, &screen.sample) {
        (Some(why), _) => vec![format!("no answer: {why}")],
        (None, Some(sample)) => table::alarms(&sample.report),
        (None, None) => Vec::new(),
    };
    let alarms = wrongs(&alarms, frame.area());
    let shown = u16::try_from(alarms.len()).unwrap_or_default();
    let [head, wrong, tabs, body, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(shown),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    if let Some(sample) = &screen.sample {
        frame.render_widget(Paragraph::new(header(&sample.report)), head);
    } else {
        frame.render_widget(Paragraph::new("agent-fips-proxy: waiting for an answer"), head);
    }
    frame.render_widget(Paragraph::new(alarms).style(bad()), wrong);
    let titles = Tab::ALL.iter().enumerate();
    let titles = titles.map(|(index, tab)| format!("{} {}", index + 1, tab.title()));
    frame.render_widget(
        Tabs::new(titles)
            .select(screen.tab as usize)
            .highlight_style(Style::new().add_modifier(Modifier::REVERSED)),
        tabs,
    );
    rows(frame, screen, body);
    let age = screen.sample.as_ref().map_or_else(String::new, |sample| {
        let seconds = now.saturating_duration_since(sample.at).as_secs();
        match screen.paused {
            true => format!("PAUSED, {seconds} s old"),
            false => format!("{seconds} s old"),
        }
    });
    frame.render_widget(
        Paragraph::new("q quit  Tab next  arrows scroll  p pause")
            .style(Style::new().add_modifier(Modifier::DIM)),
        keys,
    );
    frame.render_widget(Paragraph::new(age).alignment(Alignment::Right), keys);
}

fn header(report: &Report) -> Vec<Line<'static>> {
    let state = match report.ready {
        true => Span::styled("ready", colour(Color::Green)),
        false => Span::styled("NOT READY", bad()),
    };
    let interception = match (report.interception.enabled, report.interception.attached) {
        (false, _) => "interception off".to_owned(),
        (true, false) => "interception NOT ATTACHED".to_owned(),
        (true, true) => {
            let kernel = report.interception.kernel.as_ref();
            format!(
                "interception on  Agents {}",
                kernel.map_or(0, |kernel| kernel.agents.len())
            )
        }
    };
    let module = report.module.as_ref().map_or_else(
        || "no worker answers".to_owned(),
        |module| {
            let certificate = module.certificate.as_deref().unwrap_or("no certificate");
            format!("{} {certificate}", module.version)
        },
    );
    vec![
        Line::from(vec![
            Span::styled(
                format!("agent-fips-proxy {}", report.version),
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Span::raw(format!("  {}  ", report.site)),
            state,
        ]),
        Line::from(format!(
            "{interception}  connections {}  {module}  policy {}",
            report.connections, report.tls_policy
        )),
    ]
}

/// What is wrong, in whole sentences as long as they fit.
fn wrongs(alarms: &[String], area: Rect) -> Vec<Line<'static>> {
    let (width, budget) = (usize::from(area.width.max(1)), usize::from(area.height / ALARMS));
    let mut lines: Vec<Line<'static>> = Vec::new();
    for (index, alarm) in alarms.iter().enumerate() {
        let characters: Vec<char> = format!("! {alarm}").chars().collect();
        let wrapped = characters
            .chunks(width)
            .map(|part| Line::from(part.iter().collect::<String>()));
        let left = alarms.len() - index;
        // One line stays for how many there are.
        let room = budget.saturating_sub(lines.len() + usize::from(left > 1));
        if wrapped.len() > room {
            lines.push(Line::from(format!("! {left} more: agent-fips-proxy status")));
            break;
        }
        lines.extend(wrapped);
    }
    lines.truncate(budget);
    lines
}

/// The table of the page, from `screen.scroll` on.
fn rows(frame: &mut Frame<'_>, screen: &mut Screen, area: Rect) {
    let Some(sample) = &screen.sample else { return };
    let table = table::table(screen.tab, sample);
    if table.rows.is_empty() {
        frame.render_widget(Paragraph::new(table.empty), area);
        return;
    }
    screen.page = usize::from(area.height.saturating_sub(1));
    screen.scroll = screen.scroll.min(table.rows.len().saturating_sub(screen.page));
    let widths = table.columns.iter().map(|column| match column.width {
        0 => Constraint::Fill(1),
        width => Constraint::Length(width),
    });
    let header = table
        .columns
        .iter()
        .map(|column| cell(column, column.title.to_owned()));
    let rows = table
        .rows
        .into_iter()
        .skip(screen.scroll)
        .take(screen.page)
        .map(|row| {
            let cells = table.columns.iter().zip(row.cells);
            let drawn = Row::new(cells.map(|(column, text)| cell(column, text)));
            if row.bad { drawn.style(bad()) } else { drawn }
        });
    frame.render_widget(
        Table::new(rows.collect::<Vec<_>>(), widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)))
            .column_spacing(GAP),
        area,
    );
}

fn cell(column: &Column, text: String) -> Cell<'static> {
    let line = Line::from(text);
    Cell::from(match column.number {
        true => line.right_aligned(),
        false => line,
    })
}

fn bad() -> Style {
    colour(Color::Red).add_modifier(Modifier::BOLD)
}

fn colour(colour: Color) -> Style {
    match std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        true => Style::new(),
        false => Style::new().fg(colour),
    }
}
