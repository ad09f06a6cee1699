//! `ca show`: what the authority says, whether it may sign, and who trusts it.

use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Done, Exit, Failure, describe, json};
use crate::cli::output::say;
use crate::tls::ca::authority::warning;
use crate::tls::ca::{self, Authorities, CaError, OpenAuthority, Published, Role};
use crate::trust::processes::Process;
use crate::trust::{BundleState, Files, drop_ins, host_store};

/// What `ca show --json` prints.
#[derive(Serialize)]
struct Report {
    authorities: Vec<Published>,
    /// Which one signs; absent when none may.
    signing: Option<Role>,
    /// Why none may sign, or why the next one may not.
    problem: Option<String>,
    /// The keys were read and checked; without root they cannot be.
    keys_checked: bool,
    /// What to do soon.
    warning: Option<String>,
    trust: Trust,
}

#[derive(Serialize)]
struct Trust {
    drop_ins: Vec<PathBuf>,
    host_store: Vec<PathBuf>,
    bundle: BundleState,
    processes: Vec<Process>,
    /// Processes that started before the newest authority was published.
    restart: Vec<u32>,
}

/// `ca show`. Exit 0 only when an authority is there and may sign.
pub(super) fn run(context: &Context) -> Done {
    let ca = &context.config.ca;
    let (published, opened) = match (&ca.certificate_file, &ca.key_file) {
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (context.place.at(certificate), context.place.at(key));
            let pem = std::fs::read_to_string(&certificate).map_err(CaError::file("read", &certificate))?;
            let one = Published::supplied(&certificate, pem)?;
            (
                vec![one],
                OpenAuthority::supplied(&certificate, &key).map(|one| vec![one]),
            )
        }
        _ => (context.store().published()?, context.store().open()),
    };
    let now = ca::now();
    let loaded = opened.and_then(|open| Authorities::load(&open, &context.domains(), now));
    let (signing, problem, keys_checked) = match &loaded {
        Ok((authorities, problem)) => (
            authorities.status(now).signing,
            problem.as_ref().map(ToString::to_string),
            true,
        ),
        Err(error) if error.is_privilege() => (None, None, false),
        Err(error) => (None, Some(error.to_string()), true),
    };
    let next = published.iter().find(|one| one.role == Role::Next);
    let first = published
        .first()
        .ok_or_else(|| Failure::from(CaError::None(ca.dir.clone())))?;
    let report = Report {
        signing,
        problem,
        keys_checked,
        warning: warning(first.role, &first.facts, next.map(|next| &next.facts), now),
        trust: trust(context, &published),
        authorities: published,
    };
    if context.json {
        json(&report);
    } else {
        print(&report, now);
    }
    Ok(match (report.signing, report.keys_checked) {
        (Some(_), _) => Exit::Ok,
        (None, false) => Exit::NoPermission,
        (None, true) => Exit::Config,
    })
}

fn trust(context: &Context, published: &[Published]) -> Trust {
    let processes = context.processes();
    let newest = published.iter().map(|one| one.published).max().unwrap_or(0);
    Trust {
        drop_ins: drop_ins::present(&context.place),
        host_store: host_store::Flavour::of(&context.place)
            .map(|flavour| flavour.present(&context.place))
            .unwrap_or_default(),
        bundle: Files::new(&context.place, &context.config.ca.dir)
            .map_or(BundleState::Absent, |files| files.bundle_state(&context.place)),
        restart: processes
            .iter()
            .filter(|process| process.is_older_than(newest) || (process.agent && process.by.is_none()))
            .map(|process| process.pid)
            .collect(),
        processes,
    }
}

fn print(report: &Report, now: i64) {
    for one in &report.authorities {
        let facts = &one.facts;
        let role = match one.role {
            Role::Current => "local authority",
            Role::Next => "next authority",
            Role::Supplied => "your authority",
        };
        say!("{role} {}", facts.id());
        say!("  subject      {}", facts.subject);
        say!("  SHA-256      {}", facts.fingerprint);
        say!("  certificate  {}", one.path.display());
        say!(
            "  valid        {} to {} ({} days left)",
            ca::moment(facts.not_before),
            facts.ends(),
            facts.days_left(now)
        );
        say!(
            "  may sign     {} and names below; {}",
            facts.permitted.join(", "),
            if facts.excludes_every_ip {
                "no IP address"
            } else {
                "IP ADDRESSES, TOO"
            }
        );
        if one.role != Role::Supplied {
            say!("  published    {}", ca::moment(one.published));
        }
    }
    match (report.signing, report.keys_checked) {
        (Some(Role::Next), _) => say!("signing      the next authority: the other one is at its end"),
        (Some(_), _) => say!("signing      yes: keys, constraints and validity were checked"),
        (None, false) => say!("signing      not checked: only root can look at the key"),
        (None, true) => say!("signing      NO"),
    }
    if let Some(problem) = &report.problem {
        say!("PROBLEM      {problem}");
    }
    if let Some(warning) = &report.warning {
        say!("WARNING      {warning}");
    }
    print_trust(&report.trust);
}

fn print_trust(trust: &Trust) {
    say!("who trusts it");
    if trust.drop_ins.is_empty() && trust.host_store.is_empty() && trust.processes.is_empty() {
        say!("  nobody: `agent-fips-proxy ca install`");
    }
    for path in &trust.drop_ins {
        say!("  drop-in      {}", path.display());
    }
    for path in &trust.host_store {
        say!("  host store   {}", path.display());
    }
    match trust.bundle {
        BundleState::Absent => {}
        BundleState::Current => say!("  bundle       up to date"),
        BundleState::Stale => {
            say!(
                "  bundle       STALE: the distribution's roots changed; `agent-fips-proxy ca install` writes it anew"
            );
        }
    }
    for process in &trust.processes {
        let kind = if process.agent { "Agent" } else { "process" };
        let how = match (process.by, process.readable) {
            (Some(variable), _) => format!("by {variable}"),
            (None, true) => "does not: none of its variables points here".to_owned(),
            (None, false) => "unknown: only root can read its environment".to_owned(),
        };
        let restart = if trust.restart.contains(&process.pid) && process.readable {
            ", RESTART IT"
        } else {
            ""
        };
        say!(
            "  {kind:<12} {}, started {}: {how}{restart}",
            describe(process),
            ca::moment(process.started)
        );
    }
}
