//! `reference`: the generated pages of docs/reference, from the tables that the program itself uses, and what `cargo xtask package`
//! makes manual pages and shell completions of. The program carries no generator of these: it only says what there is.

use super::Exit;
use crate::cli::output::{json, say};
use crate::{catalog, config};

mod commands;
mod settings;

/// `reference`
#[derive(clap::Args)]
pub struct ReferenceArgs {
    page: Page,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Page {
    /// Every setting
    Config,
    /// Every product: port, names
    Products,
    /// Every command with its arguments, as JSON
    Commands,
    /// Every setting, as JSON
    Settings,
}

/// `reference`
pub(super) fn run(args: &ReferenceArgs) -> Exit {
    match args.page {
        Page::Config => say!("{}", config::reference().trim_end()),
        Page::Products => say!("{}", catalog::reference().trim_end()),
        Page::Commands => return json(&commands::tree()),
        Page::Settings => return json(&settings::all()),
    }
    Exit::Ok
}
