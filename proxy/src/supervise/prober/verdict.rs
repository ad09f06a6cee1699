//! What `self-test` says: every Agent's scope, every explicit port and the cryptographic module, each with what failed, why, and
//! what to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Tried;
use crate::intercept::{AgentStatus, Taken};
use crate::self_test::Stage;
use crate::supervise::protocol::InterceptionStatus;
use crate::tls::module::SelfTest;

/// The way of the host's own Agents, as [`crate::intercept::Way`] calls it.
const HOST_WAY: &str = "host (cgroup)";

/// The whole answer; what `self-test --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Nothing failed, and something was tried.
    pub ok: bool,
    /// `on`, `off`, or why it is not attached, `wanted, ...` where somebody asked for it.
    pub interception: String,
    /// Agents and the ways that their connections are taken.
    pub scopes: Vec<Scope>,
    /// Ports of the Agent's `fips.*` range.
    pub ports: Vec<Port>,
    /// The module that every byte to the intake passes, in the worker that serves.
    pub module: Module,
}

/// One Agent in one network namespace, or a way that no Agent uses at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// What named the Agent; absent for a way without one.
    pub agent: Option<String>,
    /// `host (cgroup)`, `net:[4026532000] (tc)`; absent where there is none.
    pub way: Option<String>,
    /// What came of it.
    #[serde(flatten)]
    pub tried: Tried,
    /// What to do about it.
    pub cure: Option<String>,
}

/// One explicit port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The product.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// What came of it.
    #[serde(flatten)]
    pub tried: Tried,
    /// What to do about it.
    pub cure: Option<String>,
}

/// The integrity and known-answer tests of the module, run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Of the integrity test, in microseconds.
    pub integrity_us: Option<u64>,
    /// Of the known-answer tests, in microseconds.
    pub known_answers_us: Option<u64>,
    /// Why they did not pass, or were not run.
    pub error: Option<String>,
    /// What to do about it.
    pub cure: Option<String>,
}

/// What is judged.
pub struct Evidence<'a> {
    /// Who is there.
    pub interception: &'a InterceptionStatus,
    /// Cgroups that the kernel does not run these programs of ours for any more.
    pub unhooked: &'a [(PathBuf, Vec<&'static str>)],
    /// By way, and by [`port_way`].
    pub results: &'a BTreeMap<String, Tried>,
    /// The explicit ports that are bound, or should be: why not.
    pub ports: &'a [(String, SocketAddr, Option<String>)],
    /// What the worker says.
    pub module: Result<SelfTest, String>,
}

/// The name of an explicit port among the ways.
pub fn port_way(address: SocketAddr) -> String {
    format!("port {address}")
}

/// Puts it together.
pub fn judge(evidence: Evidence<'_>) -> Verdict {
    let scopes = scopes(&evidence);
    let ports: Vec<Port> = evidence
        .ports
        .iter()
        .map(|port| judge_port(port, evidence.results))
        .collect();
    let interception = evidence.interception;
    let wanted = interception.enabled && interception.requested;
    let module = Module::of(evidence.module);
    let failed = scopes.iter().any(|scope| scope.tried.error.is_some())
        || ports.iter().any(|port| port.tried.error.is_some())
        || module.error.is_some()
        || (wanted && !interception.attached);
    let tried = scopes.iter().any(|scope| scope.tried.took_us.is_some()) || !ports.is_empty();
    Verdict {
        ok: tried && !failed,
        interception: match (interception.enabled, interception.attached) {
            (false, _) => "off".to_owned(),
            (true, true) => "on".to_owned(),
            (true, false) => {
                let why = interception.detail.as_deref().unwrap_or("not attached yet");
                let how = if wanted {
                    "wanted, not attached"
                } else {
                    "not attached"
                };
                format!("{how}: {why}")
            }
        },
        scopes,
        ports,
        module,
    }
}

fn scopes(evidence: &Evidence<'_>) -> Vec<Scope> {
    let mut left: BTreeMap<&String, &Tried> = evidence
        .results
        .iter()
        .filter(|(way, _)| !way.starts_with("port "))
        .collect();
    let mut scopes = Vec::new();
    let agents = evidence
        .interception
        .kernel
        .iter()
        .flat_map(|kernel| &kernel.agents);
    // One without a process has no scope yet.
    for agent in agents.filter(|agent| !agent.waiting) {
        let name = Some(agent.selector.to_string());
        let Some(taken) = agent.datapath else {
            scopes.push(Scope {
                agent: name,
                way: None,
                tried: Tried::not(format!("it is not taken: {}", agent.why)),
                cure: Some("as it says; `agent-fips-proxy doctor` names the setting".to_owned()),
            });
            continue;
        };
        let unhooked = missing(agent, taken, evidence.unhooked);
        for namespace in &agent.namespaces {
            let way = match namespace.as_str() {
                "host" => HOST_WAY.to_owned(),
                namespace => format!("{namespace} ({})", taken.name()),
            };
            left.remove(&way);
            let tried = match (&unhooked, evidence.results.get(&way)) {
                (Some(why), _) => Tried::not(why.clone()),
                (None, Some(tried)) => tried.clone(),
                (None, None) => Tried::not("its network is not served yet".to_owned()),
            };
            scopes.push(Scope {
                agent: name.clone(),
                cure: cure(&tried, unhooked.is_some(), taken),
                way: Some(way),
                tried,
            });
        }
    }
    for (way, tried) in left {
        let taken = if way.ends_with("(tc)") {
            Taken::Tc
        } else {
            Taken::Cgroup
        };
        scopes.push(Scope {
            agent: None,
            way: Some(way.clone()),
            tried: tried.clone(),
            cure: cure(tried, false, taken),
        });
    }
    scopes
}

/// Why an Agent's own connections are not taken although ours are.
fn missing(agent: &AgentStatus, taken: Taken, unhooked: &[(PathBuf, Vec<&'static str>)]) -> Option<String> {
    let (cgroup, hooks) = unhooked
        .iter()
        .find(|(cgroup, _)| taken == Taken::Cgroup && agent.cgroups.contains(cgroup))?;
    Some(format!(
        "somebody detached {} from its cgroup {}",
        hooks.join(", "),
        cgroup.display()
    ))
}

fn cure(tried: &Tried, unhooked: bool, taken: Taken) -> Option<String> {
    const ANEW: &str = "`agent-fips-proxy intercept off` and `intercept on` attach everything anew";
    tried.error.as_ref()?;
    let words = match (tried.stage, taken) {
        _ if unhooked => format!("{ANEW}; find out who detaches programs of others"),
        (Some(Stage::Serve), _) => "the worker did not serve it: one that hangs is replaced after 15 s, which the log says; when all places are taken, limits.max_connections"
            .to_owned(),
        (Some(Stage::Take), _) => ANEW.to_owned(),
        (Some(Stage::Connect), Taken::Cgroup) => {
            format!("the loopback interface of that network must be up, and its firewall let it through; else {ANEW}")
        }
        (Some(Stage::Connect), Taken::Tc) => {
            "`agent-fips-proxy status` names a classifier that is shadowed, `agent-fips-proxy doctor` a firewall or a route that is in the way"
                .to_owned()
        }
        (None, _) => "try again in a moment; the log says more".to_owned(),
    };
    Some(words)
}

fn judge_port(
    (name, address, unbound): &(String, SocketAddr, Option<String>),
    results: &BTreeMap<String, Tried>,
) -> Port {
    let tried = match (unbound, results.get(&port_way(*address))) {
        (Some(why), _) => Tried::not(why.clone()),
        (None, Some(tried)) => tried.clone(),
        (None, None) => Tried::not("not tried".to_owned()),
    };
    let cure = tried.error.as_ref().map(|_| match tried.stage {
        _ if unbound.is_some() => format!("`ss -ltnp sport = :{}` shows who holds it", address.port()),
        Some(Stage::Serve) => {
            "the worker did not serve it: one that hangs is replaced after 15 s, which the log says; explicit.allowed_users and explicit.allowed_cgroups must allow the master's user"
                .to_owned()
        }
        Some(Stage::Take) => "another program answers there".to_owned(),
        Some(Stage::Connect) => "the loopback interface must be up, and the host's firewall let it through".to_owned(),
        None => "try again in a moment; the log says more".to_owned(),
    });
    Port {
        name: name.clone(),
        address: *address,
        tried,
        cure,
    }
}

impl Module {
    fn of(said: Result<SelfTest, String>) -> Self {
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).ok();
        match said {
            Ok(test) => Self {
                integrity_us: micros(test.integrity),
                known_answers_us: micros(test.known_answers),
                error: None,
                cure: None,
            },
            Err(error) => Self {
                integrity_us: None,
                known_answers_us: None,
                error: Some(error),
                cure: Some("`journalctl -u agent-fips-proxy` says what became of the worker".to_owned()),
            },
        }
    }
}
