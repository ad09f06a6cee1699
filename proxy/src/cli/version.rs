//! `version`: this program, the crypto module in it, and its certificate.

use serde::Serialize;

use super::Exit;
use crate::cli::output::{complain, json, say};
use crate::supervise::handover;
use crate::tls::{self, ModuleStatus};

/// `version`
#[derive(clap::Args)]
pub struct VersionArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    ebpf_compiler: &'static str,
    /// From which programs it can take over in place: forms of the message.
    handover: &'static [u32],
    module: ModuleStatus,
}

/// `version`
pub(super) fn run(args: &VersionArgs) -> Exit {
    let module = match tls::module::start() {
        Ok(module) => module,
        Err(error) => {
            complain!("agent-fips-proxy: the crypto module is not usable: {error}");
            return Exit::Internal;
        }
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("AFP_GIT_COMMIT").unwrap_or("unknown"),
        ebpf_compiler: option_env!("AFP_EBPF_RUSTC").unwrap_or("none"),
        handover: &handover::FORMATS,
        module,
    };
    if args.json {
        return json(&report);
    }
    say!("agent-fips-proxy {} (commit {})", report.version, report.commit);
    say!("eBPF programs compiled by {}", report.ebpf_compiler);
    say!("{}", report.module);
    Exit::Ok
}
