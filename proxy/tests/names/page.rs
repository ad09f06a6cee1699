//! Holds docs/reference/NAMES.md against the tables of this test: each line of the page is shown by a row, with the example that
//! the page gives, and each row is a line of the page.

use std::collections::BTreeMap;

use crate::world::Case;

const PAGE: &str = include_str!("../../../docs/reference/NAMES.md");

/// A line of the page's tables.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    examples: Vec<String>,
    connection: String,
    request: String,
}

/// Every table of the page has these columns.
const COLUMNS: [&str; 6] = [
    "line",
    "asked for",
    "example",
    "what happens",
    "connection",
    "request",
];

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn lines() -> BTreeMap<String, Line> {
    let mut lines = BTreeMap::new();
    for row in PAGE.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        if cells.iter().all(|cell| cell.chars().all(|c| "-|:".contains(c))) {
            continue;
        }
        assert_eq!(cells.len(), COLUMNS.len(), "{row}");
        if cells[0] == COLUMNS[0] {
            assert_eq!(cells, COLUMNS);
            continue;
        }
        let name = quoted(cells[0]).remove(0);
        let line = Line {
            examples: quoted(cells[2]),
            connection: cells[4].to_owned(),
            request: cells[5].to_owned(),
        };
        assert!(!line.examples.is_empty(), "no example: {row}");
        assert_eq!(lines.insert(name, line), None, "twice: {row}");
    }
    lines
}

#[test]
fn the_page_and_the_rows_say_the_same() {
    let lines = lines();
    assert!(lines.len() >= 45, "{} lines were read", lines.len());
    let cases: Vec<Case> = crate::cases();
    assert!(cases.len() >= 300, "{} rows", cases.len());
    for case in &cases {
        let line = lines
            .get(case.line)
            .unwrap_or_else(|| panic!("the page has no line for {case:?}"));
        let connection = format!("`{}`, `{}`", case.decision, case.outcome.label());
        assert_eq!(line.connection, connection, "{case:?}");
        let request = case
            .request
            .map_or_else(|| "-".to_owned(), |outcome| format!("`{}`", outcome.label()));
        assert_eq!(line.request, request, "{case:?}");
    }
    for (name, line) in &lines {
        let asked: Vec<&str> = cases
            .iter()
            .filter(|case| case.line == name)
            .map(|case| case.asked.as_str())
            .collect();
        assert!(!asked.is_empty(), "no row for {name}");
        for example in &line.examples {
            assert!(
                asked.contains(&example.as_str()),
                "{name}: the example `{example}` is no row; rows: {asked:#?}"
            );
        }
    }
}
