//! What is wrong now, in the sentences that `status` and the log use, and what helps.

use serde::{Deserialize, Serialize};

use super::{ProductState, ProductStatus};
use crate::observe::distrust;
use crate::supervise::protocol::{MasterStatus, WorkerStatus};

/// Something that somebody should do something about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// How grave it is.
    pub level: Level,
    /// What is wrong.
    pub what: String,
    /// What helps; absent where what is wrong says it.
    pub cure: Option<String>,
}

/// How grave a warning is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Data does not arrive, or goes around the proxy.
    Error,
    /// It will come to that, or something is not as it should be.
    Warning,
}

/// Everything that is wrong, the gravest first; without a worker, what the master knows.
pub fn warnings(master: &MasterStatus, worker: Option<&WorkerStatus>) -> Vec<Warning> {
    let mut list = List::default();
    list.of_the_master(master);
    match worker {
        Some(worker) => list.of_the_worker(worker),
        None => list.error(
            "no worker answers".to_owned(),
            "the log says why it ended; it is started again",
        ),
    }
    // Stable: within a level the order is that of the chapters above.
    list.0.sort_by_key(|warning| warning.level);
    list.0
}

#[derive(Default)]
struct List(Vec<Warning>);

impl List {
    fn add(&mut self, level: Level, what: String, cure: Option<String>) {
        self.0.push(Warning { level, what, cure });
    }

    fn error(&mut self, what: String, cure: &str) {
        self.add(Level::Error, what, Some(cure.to_owned()));
    }

    fn warning(&mut self, what: String, cure: &str) {
        self.add(Level::Warning, what, Some(cure.to_owned()));
    }

    fn of_the_master(&mut self, master: &MasterStatus) {
        for reason in master.not_ready() {
            let cure = cure_of_readiness(&reason).map(str::to_owned);
            self.add(Level::Error, format!("not ready: {reason}"), cure);
        }
        let interception = &master.interception;
        if interception.enabled
            && !interception.attached
            && !interception.requested
            && let Some(detail) = &interception.detail
        {
            self.warning(
                format!("nothing is intercepted: {detail}"),
                "`agent-fips-proxy doctor` names what is missing; for the explicit ports alone set intercept.enabled to false",
            );
        }
        for leak in interception.kernel.iter().flat_map(|kernel| &kernel.leaked) {
            self.error(
                format!("went around the proxy: {leak}"),
                "the reason in brackets says how; what helps for each is in OPERATIONS, \"Leaks\"",
            );
        }
        if master.log_lost.any() {
            self.warning(
                format!("log lines of the master were lost: {}", master.log_lost),
                LOG,
            );
        }
    }

    fn of_the_worker(&mut self, worker: &WorkerStatus) {
        for product in &worker.products {
            self.of_a_product(product);
        }
        for alarm in &worker.trust.alarms {
            self.add(Level::Error, alarm.clone(), None);
        }
        if let Some(problem) = &worker.authority_problem {
            self.error(
                format!("the local authority is not used: {problem}"),
                "`agent-fips-proxy ca show` tells more; then reload",
            );
        }
        if let Some(authority) = &worker.authority {
            if authority.signing.is_none() {
                self.error(
                    "the local authority has ended: nothing can be signed".to_owned(),
                    "`agent-fips-proxy ca rotate`, then reload",
                );
            }
            if let Some(warning) = &authority.warning {
                self.add(Level::Warning, format!("local authority: {warning}"), None);
            }
        }
        for client in &worker.https.distrusting {
            let process = client.process.as_ref().map(ToString::to_string);
            self.error(
                format!(
                    "{} does not trust the local authority and gets nowhere: asking for {}, {}",
                    process.unwrap_or_else(|| "a client".to_owned()),
                    client.name,
                    client.said
                ),
                &distrust::cure(&client.name, client.process.as_ref()),
            );
        }
        for session in &worker.https.sessions {
            if let Some(below) = &session.tls.below {
                self.warning(
                    format!(
                        "{} TLS sessions of Agents with an intake were below the policy ({below}: {} {})",
                        session.sessions, session.tls.version, session.tls.suite
                    ),
                    "let the session end here (`ca init`, `ca install`), or see to the Agent's own cryptography; \
                     intercept.https_below_policy decides what happens to it",
                );
            }
        }
        for stale in &worker.dns.stale {
            self.warning(
                format!(
                    "{}: its last good addresses are used, {} s old: {}",
                    stale.name, stale.age_s, stale.problem
                ),
                "see that the name servers of /etc/resolv.conf answer",
            );
        }
        if worker.log_lost.any() {
            self.warning(
                format!("log lines of the worker were lost: {}", worker.log_lost),
                LOG,
            );
        }
    }

    fn of_a_product(&mut self, product: &ProductStatus) {
        let recent = &product.recent;
        let state = match product.state {
            ProductState::Idle | ProductState::Ok => return,
            ProductState::Failing => "failing",
            ProductState::Down => "down",
        };
        let mut said = Vec::new();
        if recent.failed > 0 {
            said.push(format!(
                "{} of {} requests failed",
                recent.failed, recent.requests
            ));
        }
        for (n, class) in [(recent.answered_5xx, "5xx"), (recent.answered_4xx, "4xx")] {
            if n > 0 {
                said.push(format!("the intake answered {n} with {class}"));
            }
        }
        let last = product.last_failure.as_ref().filter(|_| recent.failed > 0);
        let cure = match last {
            Some(last) => cure_of_outcome(&last.outcome),
            None if recent.answered_5xx > 0 => {
                "the intake's own trouble: Agents try again; https://status.datadoghq.com and its sisters tell more"
            }
            None => "is the Agent's API key one of this site (`site`)?",
        };
        let last = last.map_or(String::new(), |last| {
            let error = last
                .error
                .as_ref()
                .map_or(String::new(), |error| format!(": {error}"));
            format!("; the last, {}{error}", last.outcome)
        });
        self.error(
            format!(
                "{} is {state}: in the last minute {}{last}",
                product.title,
                said.join(", ")
            ),
            cure,
        );
    }
}

const LOG: &str =
    "whoever reads standard error (the journal?) is too slow or stuck; log.access: false writes less";

/// What helps against a reason of [`MasterStatus::not_ready`], by how it begins.
fn cure_of_readiness(reason: &str) -> Option<&'static str> {
    Some(match reason.split_once([' ', ':'])?.0 {
        "listener" => {
            "`ss -ltnp` names who holds the port: stop that program (haproxy of the older proxy?), or change \
             explicit.port_range_start and the Agent's fips.port_range_start"
        }
        "interception" => "`agent-fips-proxy doctor` says what this host allows, and the cure",
        "self-test" => {
            "`agent-fips-proxy doctor` looks at what stands in the way: classifiers, firewall, rules, sysctls"
        }
        _ => return None,
    })
}

/// What helps against requests that end so.
fn cure_of_outcome(outcome: &str) -> &'static str {
    match outcome {
        "upstream_connect" => {
            "see that this host (or the Agent's pod) may open TCP to port 443 of the addresses below: firewall, routes, outbound proxy"
        }
        "upstream_timeout" => {
            "the way to the intake, or the intake, is slow: firewall that drops? upstream.connect_timeout, upstream.response_timeout"
        }
        "upstream_tls" => {
            "does something on the way open TLS? Then its root into upstream.ca_file; a private gateway's certificate \
             must be for the intake's name"
        }
        "upstream_proxy" => "the outbound proxy: upstream.proxy.url, its credentials and its rules",
        "upstream_protocol" => "the intake, or what stands before it, breaks connections: Agents try again",
        "no_address" => {
            "see that the name servers of /etc/resolv.conf answer; a private endpoint needs its network in upstream.allow_private"
        }
        "overloaded" => "limits.max_connections, limits.max_connections_per_agent; does an Agent run wild?",
        "not_allowed" => {
            "explicit.allowed_users and explicit.allowed_cgroups say who may use the explicit ports"
        }
        "misdirected" => {
            "the Agent asks for a name that is not this site's: compare the Agent's `site` with ours"
        }
        "bad_request" | "unsupported" => {
            "a client sends what is not relayed: the log line `request failed` names it"
        }
        "draining" => "the worker is being replaced: Agents try again",
        _ => "the log line `request failed` says more; TROUBLESHOOTING lists the outcomes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::view::{LastFailure, Recent};
    use crate::relay::outcome::Outcome;
    use crate::supervise::protocol::ListenerStatus;

    #[test]
    fn a_busy_port_comes_with_its_cure() {
        let master = MasterStatus {
            listeners: vec![ListenerStatus {
                name: "metrics".to_owned(),
                address: "127.0.0.1:9804".parse().unwrap(),
                bound: false,
                error: Some("address already in use".to_owned()),
            }],
            ..MasterStatus::default()
        };
        let found = warnings(&master, None);
        assert_eq!(
            found[0].what,
            "not ready: listener metrics on 127.0.0.1:9804: address already in use"
        );
        assert!(found[0].cure.as_ref().unwrap().contains("port_range_start"));
        assert_eq!(found[1].what, "no worker answers");
    }

    #[test]
    fn a_product_says_what_failed_and_how() {
        let mut product = ProductStatus {
            title: "Logs".to_owned(),
            state: ProductState::Down,
            recent: Recent {
                requests: 3,
                failed: 3,
                ..Recent::default()
            },
            last_failure: Some(LastFailure {
                outcome: "upstream_connect".to_owned(),
                error: Some("cannot connect to 203.0.113.10:443: refused".to_owned()),
                seconds_ago: 1,
            }),
            ..ProductStatus::default()
        };
        let told = |product: &ProductStatus| {
            let mut list = List::default();
            list.of_a_product(product);
            list.0
        };
        assert_eq!(
            told(&product)[0].what,
            "Logs is down: in the last minute 3 of 3 requests failed; the last, upstream_connect: cannot connect to \
             203.0.113.10:443: refused"
        );
        product.state = ProductState::Failing;
        product.recent = Recent {
            requests: 2,
            answered: 2,
            answered_4xx: 2,
            ..Recent::default()
        };
        let refused = &told(&product)[0];
        assert_eq!(
            refused.what,
            "Logs is failing: in the last minute the intake answered 2 with 4xx"
        );
        assert!(refused.cure.as_ref().unwrap().contains("API key"));
        product.state = ProductState::Idle;
        assert!(told(&product).is_empty());
    }

    #[test]
    fn the_outcomes_with_a_cure_exist() {
        let known: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.label()).collect();
        let other = cure_of_outcome("anything else");
        let cured = known
            .iter()
            .filter(|label| cure_of_outcome(label) != other)
            .count();
        assert_eq!(cured, 12, "one of those above is misspelt");
    }
}
