//! `config check`, `config show`, `config default`.

use super::{Exit, InputArgs};
use crate::cli::output::{complain, say};
use crate::config;

/// `config`
#[derive(clap::Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(clap::Subcommand)]
enum ConfigVerb {
    /// Say whether the configuration is good; every error with its place
    Check,
    /// Print every setting, its value and where the value came from
    Show,
    /// Print a configuration file with every setting, its default and what it does
    Default,
}

/// `config`
pub(super) fn run(args: &ConfigArgs, inputs: &InputArgs) -> Exit {
    if matches!(args.verb, ConfigVerb::Default) {
        say!("{}", config::default_file().trim_end());
        return Exit::Ok;
    }
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    for warning in &loaded.warnings {
        complain!("warning: {warning}");
    }
    match args.verb {
        ConfigVerb::Show => say!("{}", config::show(&loaded).trim_end()),
        ConfigVerb::Check | ConfigVerb::Default => say!("the configuration is good"),
    }
    Exit::Ok
}
