//! `cargo xtask docs`: the pages of docs/reference, printed by the program from the tables that it uses.

use anyhow::{Context, Result, bail};

use crate::{build, sh};

/// File in docs/reference, and the page that the program prints for it.
const PAGES: &[(&str, &str)] = &[("CONFIG.md", "config"), ("PRODUCTS.md", "products")];

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
        let path = folder.join(file);
        if !options.check {
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            bail!("docs/reference/{file} is stale: run `cargo xtask docs` and commit the result");
        }
    }
    Ok(())
}
