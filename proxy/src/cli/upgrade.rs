//! `upgrade`: the program that is installed now takes over from the one that runs.

use super::{Exit, InputArgs};
use crate::cli::output::{complain, say};
use crate::supervise::admin::{self, Answer, Request};

/// `upgrade`. Waits until a worker of the new program serves.
pub(super) fn run(inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let socket = &loaded.config.status.socket;
    match admin::ask(socket, Request::Upgrade) {
        Ok(Answer::Ok(body)) => {
            let version = |key: &str| body[key].as_str().unwrap_or("unknown").to_owned();
            match (version("from"), version("to")) {
                (from, to) if from == to => {
                    say!(
                        "version {to} has taken over from version {from}: the same number, the file as it is now"
                    );
                }
                (from, to) => say!("version {to} has taken over from version {from}"),
            }
            Exit::Ok
        }
        Ok(Answer::Error(message)) => {
            complain!("agent-fips-proxy: no upgrade: {message}");
            Exit::Unavailable
        }
        Err(error) => super::status::unreachable(socket, &error),
    }
}
