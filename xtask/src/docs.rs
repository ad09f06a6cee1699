//! `cargo xtask docs`: the pages of docs/reference, printed by the program from the tables that it uses, and tables of other pages
//! that are printed by the suites which play them.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::test::suite_command;
use crate::{build, sh};

/// File in docs/reference, and the page that the program prints for it.
const PAGES: &[(&str, &str)] = &[("CONFIG.md", "config"), ("PRODUCTS.md", "products")];

/// File in docs, and the suite that prints its table. It stands between [`BEGIN`] and [`END`].
const TABLES: &[(&str, &str)] = &[("RESILIENCE.md", "faults")];
/// See [`TABLES`].
const BEGIN: &str = "<!-- table: cargo xtask docs -->\n";
/// See [`TABLES`].
const END: &str = "<!-- end of the table -->\n";

/// Options of `cargo xtask docs`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Change nothing; fail when a page is not what the program prints
    #[arg(long)]
    pub check: bool,
}

/// Writes the pages, or compares them.
pub fn run(options: &Options) -> Result<()> {
    sh::run(sh::cargo().args(["build", "--locked", "--quiet", "--package", "agent-fips-proxy"]))?;
    let folder = sh::root().join("docs/reference");
    std::fs::create_dir_all(&folder)?;
    for (file, page) in PAGES {
        let text = sh::output(sh::command(build::binary(true)).args(["reference", page]))?;
        settle(&folder.join(file), &text, options)?;
    }
    for (file, suite) in TABLES {
        let table = sh::output(suite_command(suite).arg("--page"))?;
        let path = sh::root().join("docs").join(file);
        let page =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let parts = page.split_once(BEGIN);
        let (head, tail) = parts
            .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)))
            .with_context(|| format!("no place for a table in {}", path.display()))?;
        settle(&path, &[head, BEGIN, &table, END, tail].concat(), options)?;
    }
    Ok(())
}

/// Writes a page, or compares it.
fn settle(path: &Path, text: &str, options: &Options) -> Result<()> {
    if !options.check {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    } else if std::fs::read_to_string(path).unwrap_or_default() != text {
        bail!(
            "{} is stale: run `cargo xtask docs` and commit the result",
            path.display()
        );
    }
    Ok(())
}
