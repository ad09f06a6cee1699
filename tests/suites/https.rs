//! Agents that speak HTTPS, against the real kernel: clients that nobody here wrote, unchanged and in an intercepted cgroup,
//! with their ordinary `https://` URLs; sessions that pass through; clients that do not trust us.

use std::process::ExitCode;

use anyhow::Result;
use harness::cgroup::Cgroup;
use harness::local_ca::LocalAuthority;
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::{Setup, World};
use serde_json::{Value, json};

#[path = "https/clients.rs"]
mod clients;
#[path = "https/distrust.rs"]
mod distrust;
#[path = "https/passthrough.rs"]
mod passthrough;
#[path = "https/policy.rs"]
mod policy;

fn main() -> ExitCode {
    let real = &[Need::Bpf, Need::Go, Need::Node, Need::Python];
    run(vec![
        case("clients_unchanged", real, clients::unchanged_with_an_http1_intake),
        case(
            "clients_unchanged_http2_intake",
            real,
            clients::unchanged_with_an_http2_intake,
        ),
        case("both_families_and_every_name", &[Need::Bpf], clients::every_name),
        case(
            "distrusting_clients_are_named",
            real,
            distrust::named_once_and_until_they_trust,
        ),
        case(
            "compiled_in_roots",
            &[Need::Bpf, Need::Go],
            distrust::compiled_in_roots_work_once_listed,
        ),
        case(
            "passthrough_within_policy",
            &[Need::Bpf],
            passthrough::within_the_policy_it_passes,
        ),
        case(
            "passthrough_below_policy",
            &[Need::Bpf],
            passthrough::below_the_policy_it_is_cut,
        ),
        case(
            "tcp_logs",
            &[Need::Bpf],
            passthrough::streams_are_never_terminated,
        ),
        case(
            "other_names_are_left_alone",
            &[Need::Bpf],
            passthrough::other_names_are_left_alone,
        ),
        case("refuse", &[Need::Bpf], policy::refuse_says_so),
        case(
            "auto_follows_the_authority",
            &[Need::Bpf],
            policy::auto_follows_the_authority,
        ),
        case(
            "terminate_makes_an_authority",
            &[Need::Bpf],
            policy::terminate_makes_an_authority,
        ),
        case(
            "terminate_without_an_authority_does_not_start",
            &[Need::Bpf],
            policy::an_unfit_authority_stops_the_start,
        ),
        case(
            "other_protocols",
            &[Need::Bpf],
            policy::what_is_not_relayed_is_counted,
        ),
    ])
}

/// A world whose Agents are in `agent`, and a local authority.
struct Stage {
    world: World,
    agent: Cgroup,
    authority: LocalAuthority,
}

impl Stage {
    fn new(setup: Setup) -> Result<Self> {
        Ok(Self {
            world: World::with(setup)?,
            agent: Cgroup::new("agent")?,
            authority: LocalAuthority::new()?,
        })
    }

    /// With the authority in `ca.dir`, and these settings of `intercept`.
    fn config(&self, intercept: &Value) -> Value {
        let mut config = self.world.intercepting(&self.agent);
        config["ca"] = json!({"dir": self.authority.dir()});
        if let (Some(here), Some(more)) = (config["intercept"].as_object_mut(), intercept.as_object()) {
            here.extend(more.clone());
        }
        config
    }

    fn start(&self, intercept: &Value) -> Result<Proxy<'_>> {
        Launch::new(&self.world.host)
            .config(&self.config(intercept))?
            .start()
    }
}
