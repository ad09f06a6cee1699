//! `self-test`: a connection from each Agent's scope through the live datapath, now.

use super::{Exit, InputArgs};
use crate::cli::output::{complain, millis, say};
use crate::supervise::admin::{self, Answer, Request};
use crate::supervise::prober::Tried;
use crate::supervise::prober::verdict::Verdict;

/// `self-test`
#[derive(clap::Args)]
pub struct SelfTestArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// `self-test`. Exit 0 only if everything passed.
pub(super) fn run(args: &SelfTestArgs, inputs: &InputArgs) -> Exit {
    let loaded = match inputs.load_or_exit() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let socket = &loaded.config.status.socket;
    let body = match admin::ask(socket, Request::SelfTest) {
        Ok(Answer::Ok(body)) => body,
        Ok(Answer::Error(message)) => {
            complain!("agent-fips-proxy: no self-test: {message}");
            return Exit::Unavailable;
        }
        Err(error) => return super::status::unreachable(socket, &error),
    };
    let verdict = match serde_json::from_value::<Verdict>(body.clone()) {
        Ok(verdict) => verdict,
        Err(error) => {
            complain!(
                "agent-fips-proxy: the running proxy is of another version and answers differently: {error}"
            );
            return Exit::Internal;
        }
    };
    if args.json {
        say!("{body:#}");
    } else {
        print(&verdict);
    }
    if verdict.ok { Exit::Ok } else { Exit::Unavailable }
}

fn print(verdict: &Verdict) {
    let mut failures = Vec::new();
    if verdict.interception != "on" {
        let off = !verdict.interception.starts_with("wanted");
        say!(
            "{}  interception is {}",
            if off { "note" } else { "FAIL" },
            verdict.interception
        );
        if !off {
            failures.push("interception".to_owned());
        }
    }
    for scope in &verdict.scopes {
        let way = scope.way.as_deref().unwrap_or("no way");
        let name = match &scope.agent {
            Some(agent) => format!("{agent}, {way}"),
            None => way.to_owned(),
        };
        line(&name, &scope.tried, scope.cure.as_deref(), &mut failures);
    }
    let good = verdict.ports.iter().filter(|port| port.tried.error.is_none());
    let slowest = good.clone().filter_map(|port| port.tried.took_us).max();
    if let Some(slowest) = slowest {
        let (good, all) = (good.count(), verdict.ports.len());
        say!(
            "OK    {good} of {all} explicit ports, the slowest in {}",
            millis(slowest)
        );
    }
    let bad: Vec<_> = verdict
        .ports
        .iter()
        .filter(|port| port.tried.error.is_some())
        .collect();
    for port in &bad {
        let name = format!("port {} ({})", port.address, port.name);
        line(&name, &port.tried, port.cure.as_deref(), &mut Vec::new());
    }
    match bad.as_slice() {
        [] => {}
        [port] => failures.push(format!("port {} ({})", port.address, port.name)),
        many => failures.push(format!("{} explicit ports", many.len())),
    }
    let module = &verdict.module;
    match (&module.error, module.integrity_us, module.known_answers_us) {
        (None, Some(integrity), Some(answers)) => say!(
            "OK    cryptographic module of the worker: integrity in {}, known answers in {}",
            millis(integrity),
            millis(answers)
        ),
        (error, ..) => {
            let error = error.as_deref().unwrap_or("no result");
            say!("FAIL  cryptographic module of the worker: {error}");
            if let Some(cure) = &module.cure {
                say!("      -> {cure}");
            }
            failures.push("cryptographic module".to_owned());
        }
    }
    if verdict.ok {
        say!("Runtime self test: OK");
    } else if failures.is_empty() {
        say!(
            "Runtime self test: FAILED: nothing to try: no Agent is intercepted and no explicit port is open"
        );
    } else {
        say!("Runtime self test: FAILED: {}", failures.join("; "));
    }
}

fn line(name: &str, tried: &Tried, cure: Option<&str>, failures: &mut Vec<String>) {
    match &tried.error {
        None => say!("OK    {name}: {}", tried.took_us.map_or_else(String::new, millis)),
        Some(error) => {
            say!("FAIL  {name}: {error}");
            if let Some(cure) = cure {
                say!("      -> {cure}");
            }
            failures.push(name.to_owned());
        }
    }
}
