//! `config check`, `config show`, `config default`.

use super::{Exit, InputArgs};
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
        print!("{}", config::default_file());
        return Exit::Ok;
    }
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    match args.verb {
        ConfigVerb::Show => print!("{}", config::show(&loaded)),
        ConfigVerb::Check | ConfigVerb::Default => println!("the configuration is good"),
    }
    Exit::Ok
}
