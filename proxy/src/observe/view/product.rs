//! One product: what it did, what it does now, and how its intake answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::relay::upstream::resolve::Known;

/// One product's figures since the worker started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProductStatus {
    /// The product's name; `-` for requests that belong to none.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// How it is doing.
    pub state: ProductState,
    /// Requests by outcome.
    pub requests: BTreeMap<String, u64>,
    /// Body bytes from Agents.
    pub bytes_up: u64,
    /// Body bytes to Agents.
    pub bytes_down: u64,
    /// The last minute.
    pub recent: Recent,
    /// The last hour.
    pub history: History,
    /// The last request that failed.
    pub last_failure: Option<LastFailure>,
    /// Handshakes with its intake by what they agreed on.
    pub tls: Vec<UpstreamTlsStatus>,
    /// Addresses of its intake, as connections met them.
    pub upstream: Vec<UpstreamStatus>,
}

impl ProductStatus {
    /// Requests that the intake answered.
    pub fn ok(&self) -> u64 {
        self.requests.get("ok").copied().unwrap_or_default()
    }

    /// All others.
    pub fn failed(&self) -> u64 {
        self.requests.values().sum::<u64>().saturating_sub(self.ok())
    }
}

/// How a product is doing, by the requests of the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductState {
    /// There were none.
    #[default]
    Idle,
    /// All were relayed, and the intake took them.
    Ok,
    /// Some failed, or the intake answered 5xx, or it refused (4xx) more than half of them.
    Failing,
    /// Some failed, and none was answered by the intake.
    Down,
}

impl ProductState {
    /// Its name, as when serialised.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Ok => "ok",
            Self::Failing => "failing",
            Self::Down => "down",
        }
    }
}

/// What was counted between a moment about a minute ago and now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recent {
    /// How long that is: up to 70 s, less when the worker is younger.
    pub seconds: f64,
    /// Requests that ended.
    pub requests: u64,
    /// Those that failed, see [`Outcome::is_failure`](crate::relay::outcome::Outcome::is_failure).
    pub failed: u64,
    /// Those that the intake answered.
    pub answered: u64,
    /// Of these, with 4xx.
    pub answered_4xx: u64,
    /// Of these, with 5xx.
    pub answered_5xx: u64,
    /// Requests in a second.
    pub requests_per_second: f64,
    /// Body bytes from Agents in a second.
    pub bytes_up_per_second: f64,
    /// Body bytes to Agents in a second.
    pub bytes_down_per_second: f64,
    /// Half of the requests took at most so many milliseconds: estimated from the histogram, between whose bounds values are
    /// taken to be spread evenly. Absent without requests.
    pub p50_ms: Option<f64>,
    /// The same of 99 in 100. At most 30,000, whatever it was.
    pub p99_ms: Option<f64>,
}

impl Recent {
    /// What these requests say of the product.
    pub fn state(&self) -> ProductState {
        let refused = self.answered_4xx * 2 > self.answered;
        match self {
            Self { requests: 0, .. } => ProductState::Idle,
            Self {
                failed: 1..,
                answered: 0,
                ..
            } => ProductState::Down,
            Self { failed: 1.., .. }
            | Self {
                answered_5xx: 1.., ..
            } => ProductState::Failing,
            _ if refused => ProductState::Failing,
            _ => ProductState::Ok,
        }
    }
}

/// Requests over the last hour, kept in memory only: a new worker begins anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// How long each point is.
    pub seconds: u64,
    /// Requests that ended, oldest point first; fewer points while the worker is younger than an hour.
    pub requests: Vec<u32>,
    /// Those of them that failed or were answered 5xx.
    pub failed: Vec<u32>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// How it ended.
    pub outcome: String,
    /// Why, redacted as in the log; absent where the outcome says all.
    pub error: Option<String>,
    /// Seconds since then.
    pub seconds_ago: u64,
}

/// Handshakes with the same parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamTlsStatus {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: String,
    /// IANA suite name.
    pub suite: String,
    /// Key exchange group.
    pub group: String,
    /// How many handshakes.
    pub handshakes: u64,
}

/// One address of an intake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// The address; the outbound proxy's where one is used.
    pub address: SocketAddr,
    /// The intake name of the last connection.
    pub name: String,
    /// What was resolved for it: the same name, the operator's endpoint, or the outbound proxy.
    pub host: String,
    /// Whether it takes connections.
    pub health: Health,
    /// Connections that were made.
    pub connections: u64,
    /// Seconds since the last one; absent when there was none.
    pub connected_seconds_ago: Option<u64>,
    /// What the last one agreed on: version, suite, group.
    pub tls: Option<String>,
    /// The last time that it took none; absent when it always did.
    pub last_error: Option<UpstreamError>,
    /// What is known of `host`; absent for an address that was dialled as the Agent gave it.
    pub dns: Option<Known>,
}

/// Whether an address takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The last one was made.
    Ok,
    /// The last one was not: other addresses are asked first.
    Ejected {
        /// Failures in a row.
        failures: u32,
        /// Seconds until it is checked again, beside the next connection that is needed; 0: it is due.
        seconds: u64,
    },
}

/// Why an address took no connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamError {
    /// As in the log.
    pub why: String,
    /// Seconds since then.
    pub seconds_ago: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_what_the_requests_say() {
        let recent = |requests, failed, answered, answered_4xx, answered_5xx| Recent {
            requests,
            failed,
            answered,
            answered_4xx,
            answered_5xx,
            ..Recent::default()
        };
        for (recent, state) in [
            (recent(0, 0, 0, 0, 0), ProductState::Idle),
            (recent(10, 0, 10, 0, 0), ProductState::Ok),
            (recent(10, 0, 10, 5, 0), ProductState::Ok),
            (recent(10, 0, 10, 6, 0), ProductState::Failing),
            (recent(10, 0, 10, 0, 1), ProductState::Failing),
            (recent(10, 1, 9, 0, 0), ProductState::Failing),
            (recent(10, 10, 0, 0, 0), ProductState::Down),
            // Clients that went away say nothing of the intake.
            (recent(2, 0, 0, 0, 0), ProductState::Ok),
        ] {
            assert_eq!(recent.state(), state, "{recent:?}");
        }
    }
}
