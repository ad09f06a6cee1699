//! `run`, and `worker`, which `run` starts.

use super::{Exit, InputArgs};
use crate::cli::output::complain;
use crate::config::Source;
use crate::intercept::preflight;
use crate::observe::logging;
use crate::supervise::{descriptors, handover, master, privileges, prober, worker};

/// `worker`
#[derive(clap::Args)]
pub struct WorkerArgs {
    /// Standard input is the channel to a master
    #[arg(long, hide = true)]
    channel: bool,
}

/// `probe`
#[derive(clap::Args)]
pub struct ProbeArgs {
    /// Standard input is the channel to a master
    #[arg(long, required = true, hide = true)]
    channel: bool,
}

/// `run`
pub(super) fn run(inputs: &InputArgs) -> Exit {
    let mut reloader = inputs.reloader();
    let loaded = match reloader.load() {
        Ok(loaded) => loaded,
        Err(errors) => {
            complain!("{errors}");
            return Exit::Config;
        }
    };
    logging::start(&loaded.config.log);
    if let Err(error) = privileges::narrow(&preflight::for_older_kernels()) {
        tracing::error!(%error, "cannot give up what is not needed");
        return Exit::NoPermission;
    }
    logging::detach();
    let inherited = match handover::inherited() {
        Ok(inherited) => inherited,
        Err(error) => {
            // Its listeners are open under numbers that nobody knows: only another process can have them.
            tracing::error!(%error, "cannot go on with what the program before left");
            return Exit::Internal;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), site = %loaded.config.site, "agent-fips-proxy starts");
    for setting in loaded
        .settings
        .iter()
        .filter(|setting| setting.source != Source::Default)
    {
        tracing::info!(key = %setting.key, value = %setting.value, source = %setting.source, "configured");
    }
    master::run(master::Start {
        loaded,
        reloader,
        flags: inputs.flags(),
        inherited,
    })
}

/// `probe`
pub(super) fn probe(_: &ProbeArgs) -> Exit {
    prober::child::run()
}

/// `worker`
pub(super) fn worker(args: &WorkerArgs, inputs: &InputArgs) -> Exit {
    if args.channel {
        return worker::run_for_master();
    }
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    logging::start(&loaded.config.log);
    match descriptors::activated() {
        Ok(descriptors) if !descriptors.is_empty() => worker::run_activated(loaded.config, descriptors),
        Ok(_) => {
            complain!(
                "agent-fips-proxy worker: no socket was passed. It is started by `agent-fips-proxy run`, or alone by a \
                 systemd .socket unit (LISTEN_FDS)"
            );
            Exit::Usage
        }
        Err(error) => {
            complain!("agent-fips-proxy worker: cannot take the service manager's sockets: {error}");
            Exit::Usage
        }
    }
}
