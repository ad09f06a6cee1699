//! What a proxy that runs says of itself: it sees what can only be foreseen otherwise.

use crate::config::Config;
use crate::intercept::preflight::Check;
use crate::intercept::tc::{InterfaceState, InterfaceStatus};
use crate::supervise::admin;

use super::bad;

/// What matters here of its status.
pub(super) struct Running {
    /// Interfaces with a classifier of ours; empty while its programs are not loaded.
    pub(super) interfaces: Vec<InterfaceStatus>,
    /// What failed at its last look for Agents, or that it may not see some.
    trouble: Vec<String>,
}

/// Asks it; `None` when none runs. `Err`: it answers, and not with that.
pub(super) fn ask(config: &Config) -> Option<Result<Running, String>> {
    let mut status = match admin::ask(&config.status.socket, admin::Request::Status).ok()? {
        admin::Answer::Ok(status) => status,
        admin::Answer::Error(message) => return Some(Err(message)),
    };
    let kernel = &mut status["interception"];
    let part = |name: &str| kernel.get(name).cloned().filter(|part| !part.is_null());
    let read = || -> Result<Running, serde_json::Error> {
        Ok(Running {
            interfaces: part("interfaces").map_or(Ok(Vec::new()), serde_json::from_value)?,
            trouble: part("trouble").map_or(Ok(Vec::new()), serde_json::from_value)?,
        })
    };
    Some(read().map_err(|error| format!("it is of another version and answers differently: {error}")))
}

/// Agents that it does not take: what it says itself, and interfaces on which its classifier does not see an Agent's packets.
pub(super) fn checks(running: &Result<Running, String>) -> Vec<Check> {
    const CURE: &str = "what the message says; where the configuration says so already, reload";
    match running {
        Ok(running) => {
            let interfaces = running
                .interfaces
                .iter()
                .filter(|interface| interface.state != InterfaceState::Active)
                .map(|interface| format!("interface {interface}"));
            let all = running.trouble.iter().cloned().chain(interfaces);
            all.map(|detail| bad("running proxy", detail, CURE)).collect()
        }
        Err(why) => vec![Check {
            required: false,
            ..bad(
                "running proxy",
                format!("cannot be asked: {why}"),
                "restart it after an upgrade",
            )
        }],
    }
}
