//! `reference`: the generated pages of docs/reference, from the tables that the program itself uses.

use super::Exit;
use crate::cli::output::say;
use crate::{catalog, config};

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
}

/// `reference`
pub(super) fn run(args: &ReferenceArgs) -> Exit {
    match args.page {
        Page::Config => say!("{}", config::reference().trim_end()),
        Page::Products => say!("{}", catalog::reference().trim_end()),
    }
    Exit::Ok
}
