//! `intercept on|off|status`: the run-time switch.

use super::{Exit, InputArgs};
use crate::cli::output::{complain, say};
use crate::intercept;
use crate::supervise::admin::{self, Answer, Request};

/// `intercept`
#[derive(clap::Args)]
pub struct InterceptArgs {
    #[command(subcommand)]
    verb: InterceptVerb,
}

#[derive(Clone, Copy, clap::Subcommand)]
enum InterceptVerb {
    /// Attach the hooks again
    On,
    /// Take the hooks away; explicit ports and requests in flight go on. Until the next reload or restart
    Off,
    /// Say whether the hooks are in place
    Status,
}

/// `intercept`
pub(super) fn run(args: &InterceptArgs, inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let socket = &loaded.config.status.socket;
    let request = match args.verb {
        InterceptVerb::On => Request::InterceptOn,
        InterceptVerb::Off => Request::InterceptOff,
        InterceptVerb::Status => Request::Status,
    };
    match admin::ask(socket, request) {
        Ok(Answer::Ok(body)) => {
            let state = if request == Request::Status {
                &body["interception"]
            } else {
                &body
            };
            let attached = state["attached"].as_bool().unwrap_or_default();
            say!("interception is {}", if attached { "on" } else { "off" });
            if let Some(detail) = state["detail"].as_str() {
                say!("{detail}");
            }
            Exit::Ok
        }
        Ok(Answer::Error(message)) => {
            complain!("agent-fips-proxy: {message}");
            Exit::Unavailable
        }
        // Nobody runs: the policy that a stopped proxy left in the kernel can still be switched off.
        Err(error) if matches!(args.verb, InterceptVerb::Off) && nobody_there(&error) => {
            match intercept::uninstall() {
                Ok(report) => {
                    say!("no proxy is running; {report}");
                    Exit::Ok
                }
                Err(error) => {
                    complain!("agent-fips-proxy: {error}");
                    Exit::from_intercept(&error)
                }
            }
        }
        Err(error) => super::status::unreachable(socket, &error),
    }
}

fn nobody_there(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
    )
}
