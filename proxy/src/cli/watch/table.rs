//! The tables of the screen, as words: every cell is text, and what is wrong is said in words, not by a colour alone.

use super::sample::{Rates, Sample};
use crate::cli::status::Report;
use crate::intercept::tc::InterfaceState;
use crate::observe::view::ProductState;

/// One of the screen's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tab {
    #[default]
    Products,
    Agents,
    Intakes,
    Listeners,
    SelfTests,
}

impl Tab {
    pub(super) const ALL: [Self; 5] = [
        Self::Products,
        Self::Agents,
        Self::Intakes,
        Self::Listeners,
        Self::SelfTests,
    ];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Products => "Products",
            Self::Agents => "Agents",
            Self::Intakes => "Intakes",
            Self::Listeners => "Listeners",
            Self::SelfTests => "Self-tests",
        }
    }

    /// The page of a digit, counted from 1.
    pub(super) fn numbered(digit: char) -> Option<Self> {
        let number = usize::try_from(digit.to_digit(10)?).ok()?;
        Self::ALL.get(number.checked_sub(1)?).copied()
    }

    pub(super) fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    pub(super) fn previous(self) -> Self {
        Self::ALL[(self as usize + Self::ALL.len() - 1) % Self::ALL.len()]
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Its width in characters; 0 for the one that takes what is left.
    pub(super) width: u16,
    /// Numbers stand to the right.
    pub(super) number: bool,
}

const fn text(title: &'static str, width: u16) -> Column {
    Column {
        title,
        width,
        number: false,
    }
}

const fn number(title: &'static str, width: u16) -> Column {
    Column {
        title,
        width,
        number: true,
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    /// Something is wrong with it.
    pub(super) bad: bool,
}

/// A page's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
    /// What stands there when there are no rows.
    pub(super) empty: &'static str,
}

/// The table of a page.
pub(super) fn table(tab: Tab, sample: &Sample) -> Table {
    let report = &sample.report;
    match tab {
        Tab::Products => products(sample),
        Tab::Agents => agents(report),
        Tab::Intakes => intakes(report),
        Tab::Listeners => listeners(report),
        Tab::SelfTests => self_tests(report),
    }
}

fn products(sample: &Sample) -> Table {
    let rows = sample.report.products.iter().map(|product| {
        let rates = sample.rates.get(&product.name);
        let rate = |of: fn(&Rates) -> f64| rates.map_or_else(|| "-".to_owned(), |rates| rate(of(rates)));
        let failures: Vec<String> = product
            .requests
            .iter()
            .filter(|(outcome, _)| *outcome != "ok")
            .map(|(outcome, n)| format!("{outcome} {n}"))
            .collect();
        Row {
            cells: vec![
                product.name.clone(),
                product.state.name().to_owned(),
                rate(|rates| rates.ok),
                rate(|rates| rates.failed),
                bytes_rate(rates.map(|rates| rates.up)),
                bytes_rate(rates.map(|rates| rates.down)),
                milliseconds(product.recent.p50_ms),
                milliseconds(product.recent.p99_ms),
                count(product.ok()),
                failures.join(", "),
            ],
            bad: matches!(product.state, ProductState::Failing | ProductState::Down),
        }
    });
    Table {
        columns: vec![
            text("product", 18),
            text("state", 7),
            number("ok/s", 5),
            number("fail/s", 6),
            number("up/s", 6),
            number("down/s", 6),
            number("p50", 6),
            number("p99", 6),
            number("ok", 6),
            text("failures since start", 0),
        ],
        rows: rows.collect(),
        empty: "no request yet",
    }
}

fn agents(report: &Report) -> Table {
    let mut rows = Vec::new();
    if let Some(kernel) = &report.interception.kernel {
        rows.extend(kernel.agents.iter().map(|agent| Row {
            cells: vec![
                agent.datapath.map_or("NOT TAKEN", |taken| taken.name()).to_owned(),
                agent.selector.to_string(),
                agent.why.clone(),
            ],
            bad: agent.datapath.is_none() && !agent.waiting,
        }));
        rows.extend(kernel.leaked.iter().map(|leak| Row {
            cells: vec!["LEAKED".to_owned(), leak.agent.clone(), leak.what()],
            bad: true,
        }));
        rows.extend(kernel.interfaces.iter().map(|interface| Row {
            cells: vec![
                interface.state.to_string(),
                interface.name.clone(),
                interface.what(),
            ],
            bad: interface.state != InterfaceState::Active,
        }));
    }
    Table {
        columns: vec![
            text("taken by", 9),
            text("Agent or interface", 36),
            text("why", 0),
        ],
        rows,
        empty: "no Agent: interception is off, or nothing matches intercept.agents",
    }
}

fn intakes(report: &Report) -> Table {
    let mut rows: Vec<Row> = report
        .upstream_tls
        .iter()
        .map(|tls| Row {
            cells: vec![
                count(tls.handshakes),
                format!("{} {} {}", tls.version, tls.suite, tls.group),
            ],
            bad: false,
        })
        .collect();
    rows.extend(report.dns.stale.iter().map(|stale| Row {
        cells: vec![
            format!("{} s old", stale.age_s),
            format!("{}: its last good addresses: {}", stale.name, stale.problem),
        ],
        bad: true,
    }));
    Table {
        columns: vec![number("handshakes", 12), text("agreed on with intakes", 0)],
        rows,
        empty: "no session with an intake yet",
    }
}

fn listeners(report: &Report) -> Table {
    let rows = report.listeners.iter().map(|listener| Row {
        cells: vec![
            listener.name.clone(),
            listener.address.to_string(),
            listener.error.clone().unwrap_or_else(|| "bound".to_owned()),
        ],
        bad: !listener.bound,
    });
    Table {
        columns: vec![text("listener", 24), text("address", 28), text("state", 0)],
        rows: rows.collect(),
        empty: "no listener",
    }
}

fn self_tests(report: &Report) -> Table {
    let rows = report.self_tests.iter().map(|test| {
        let result = match (&test.error, test.passed()) {
            (Some(error), _) => format!("FAILED {} times: {error}", test.failures),
            (None, true) => "passed".to_owned(),
            (None, false) => "not tried yet".to_owned(),
        };
        Row {
            cells: vec![test.way.clone(), result],
            bad: test.error.is_some(),
        }
    });
    Table {
        columns: vec![text("connection of our own", 32), text("result", 0)],
        rows: rows.collect(),
        empty: "none yet",
    }
}

/// What is wrong, one line each with its cure; the gravest first.
pub(super) fn alarms(report: &Report) -> Vec<String> {
    let warnings = report.warnings.iter();
    warnings
        .map(|warning| match &warning.cure {
            Some(cure) => format!("{}: {cure}", warning.what),
            None => warning.what.clone(),
        })
        .collect()
}

/// A number with a unit that keeps it short: `9999`, `10.0k`, `1.2M`.
pub(super) fn count(n: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    match n {
        0..10_000 => n.to_string(),
        _ => short(n as f64, 1000.0, ["k", "M", "G", "T"]),
    }
}

fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        ..9.95 => format!("{per_second:.1}"),
        ..9999.5 => format!("{per_second:.0}"),
        _ => short(per_second, 1000.0, ["k", "M", "G", "T"]),
    }
}

/// A time of the last minute's requests.
fn milliseconds(time: Option<f64>) -> String {
    match time {
        None => "-".to_owned(),
        Some(time @ ..9.95) => format!("{time:.1}ms"),
        Some(time @ ..999.5) => format!("{time:.0}ms"),
        Some(time) => format!("{:.1}s", time / 1000.0),
    }
}

fn bytes_rate(per_second: Option<f64>) -> String {
    match per_second {
        None => "-".to_owned(),
        Some(..1023.5) => format!("{:.0}B", per_second.unwrap_or_default()),
        Some(bytes) => short(bytes, 1024.0, ["K", "M", "G", "T"]),
    }
}

/// `value` in the first of the units in which it has at most four digits.
fn short(mut value: f64, step: f64, units: [&str; 4]) -> String {
    let mut unit = "";
    for next in units {
        value /= step;
        unit = next;
        if value < 999.5 {
            break;
        }
    }
    match value {
        ..99.95 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    }
}
