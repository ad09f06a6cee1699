//! The table as docs/RESILIENCE.md shows it: `cargo xtask docs` writes it, and with `--check` compares it.

use std::collections::HashSet;
use std::fmt::Write as _;

use anyhow::Result;
use harness::{check, check_eq};

use crate::AREAS;
use crate::table::{ALWAYS, Row};

/// Rows that there must be at least.
const ROWS: usize = 40;

/// Markdown: what holds always, and a table for each area.
pub fn text() -> Result<String> {
    let mut text = "In every row:\n\n".to_owned();
    for always in ALWAYS {
        writeln!(text, "- {always}.")?;
    }
    for (area, rows) in AREAS {
        writeln!(
            text,
            "\n### {area}\n\n| fault | what goes wrong | what must hold |\n|---|---|---|"
        )?;
        for row in *rows {
            let holds: Vec<String> = row.holds.iter().map(ToString::to_string).collect();
            writeln!(text, "| `{}` | {} | {} |", row.name, row.fault, holds.join("; "))?;
        }
    }
    Ok(text)
}

/// Enough rows, each with a name of its own, and each says what goes wrong and what must hold.
pub fn the_table_is_whole() -> Result<()> {
    let rows: Vec<&Row> = AREAS.iter().flat_map(|(_, rows)| rows.iter()).collect();
    check!(rows.len() >= ROWS, "{} rows", rows.len());
    let names: HashSet<&str> = rows.iter().map(|row| row.name).collect();
    check_eq!(names.len(), rows.len(), "names");
    for row in rows {
        let said = !row.name.is_empty() && !row.fault.is_empty() && !row.holds.is_empty();
        check!(said, "{}: not said what goes wrong or what must hold", row.name);
        check!(
            !row.fault.contains('|'),
            "{}: it does not fit into the page",
            row.name
        );
    }
    Ok(())
}
