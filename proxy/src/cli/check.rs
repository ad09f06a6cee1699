//! `config check`, `config show`, `config default`, and `config migrate`, which is in `migrate`.

use super::migrate::{self, MigrateArgs};
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
    /// Print a configuration that takes over from datadog-fips-proxy and fits this host's Agent; nothing is written
    Migrate(MigrateArgs),
}

/// `config`
pub(super) fn run(args: &ConfigArgs, inputs: &InputArgs) -> Exit {
    match &args.verb {
        ConfigVerb::Default => {
            say!("{}", config::default_file().trim_end());
            return Exit::Ok;
        }
        ConfigVerb::Migrate(args) => return migrate::run(args),
        ConfigVerb::Check | ConfigVerb::Show => {}
    }
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    for warning in &loaded.warnings {
        complain!("warning: {warning}");
    }
    if matches!(args.verb, ConfigVerb::Show) {
        say!("{}", config::show(&loaded).trim_end());
    } else {
        say!("the configuration is good");
    }
    Exit::Ok
}
