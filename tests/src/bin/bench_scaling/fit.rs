//! Measured points, the straight line through them, and how far they are from it.

use serde_json::{Value, json};

/// What grows with what.
pub struct Table {
    /// The heading.
    pub title: String,
    /// What is counted, with its unit: the first column.
    pub of: String,
    /// The other columns, with their units.
    pub columns: Vec<String>,
    /// Points: how many, and a value for each column.
    pub rows: Vec<(f64, Vec<f64>)>,
    /// What to know about it.
    pub note: String,
}

/// `value = fixed + each * n`, by least squares.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// At nothing.
    pub fixed: f64,
    /// For one more.
    pub each: f64,
    /// The largest distance of a point from the line, as a part of the largest value.
    pub residual: f64,
}

impl Table {
    /// No point yet.
    pub fn new(title: &str, of: &str, columns: &[&str], note: &str) -> Self {
        Self {
            title: title.to_owned(),
            of: of.to_owned(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            rows: Vec::new(),
            note: note.to_owned(),
        }
    }

    /// One more point.
    pub fn add(&mut self, n: usize, values: Vec<f64>) {
        eprintln!("{}: {n} {values:.1?}", self.title);
        self.rows.push((number(n), values));
    }

    /// The line of each column.
    pub fn lines(&self) -> Vec<Line> {
        (0..self.columns.len())
            .map(|column| {
                let points: Vec<_> = self.rows.iter().map(|(n, values)| (*n, values[column])).collect();
                line(&points)
            })
            .collect()
    }

    /// For `docs/SCALING.md`.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}\n\n| {} |", self.title, self.note, self.of);
        self.columns
            .iter()
            .for_each(|column| text.push_str(&format!(" {column} |")));
        text.push_str("\n|---:|");
        self.columns.iter().for_each(|_| text.push_str("---:|"));
        for (n, values) in &self.rows {
            text.push_str(&format!("\n| {n} |"));
            values
                .iter()
                .for_each(|value| text.push_str(&format!(" {} |", short(*value))));
        }
        text.push_str("\n| **fixed + each** |");
        for line in self.lines() {
            text.push_str(&format!(" {} + {} |", short(line.fixed), short(line.each)));
        }
        text.push_str("\n| largest residual |");
        for line in self.lines() {
            text.push_str(&format!(" {:.0} % |", 100.0 * line.residual));
        }
        text.push('\n');
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let lines: Vec<Value> = self
            .lines()
            .iter()
            .map(|line| json!({"fixed": line.fixed, "each": line.each, "residual": line.residual}))
            .collect();
        json!({"title": self.title, "of": self.of, "columns": self.columns, "rows": self.rows, "lines": lines})
    }
}

/// Counts here are far below 2^32.
pub fn number(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size < 0.000_5 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}

fn line(points: &[(f64, f64)]) -> Line {
    let count = number(points.len()).max(1.0);
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let square: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let product: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let each = if square > 0.0 { product / square } else { 0.0 };
    let fixed = y - each * x;
    let largest = points
        .iter()
        .map(|point| point.1.abs())
        .fold(f64::MIN_POSITIVE, f64::max);
    let residual = points
        .iter()
        .map(|point| (point.1 - fixed - each * point.0).abs())
        .fold(0.0, f64::max)
        / largest;
    Line {
        fixed,
        each,
        residual,
    }
}
