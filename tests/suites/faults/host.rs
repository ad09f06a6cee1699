//! Rows: the host that the proxy runs on. Its name server, disk, descriptors, memory and clock, and what the interception hangs on.

use std::time::Duration;

use crate::table::Hold::{Answered, Logs, Relayed, Status, Untouched, Within};
use crate::table::{Ask, BROKEN4, Dns, Inject, Leads, REFUSING, ROW, Row};

#[path = "host/interception.rs"]
mod interception;
#[path = "host/resources.rs"]
mod resources;

/// Where no intake can be.
const PRIVATE: &[std::net::IpAddr] = &[std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3))];

const YEAR: i64 = 366 * 24 * 3600;
const LED: Leads = Leads::Dns(&[BROKEN4], 1);

pub const ROWS: &[Row] = &[
    Row {
        name: "dns_down_at_start",
        fault: "the name server says nothing when the proxy starts, and the name was never known",
        inject: Inject::Own {
            begin: |_| Ok(()),
            end: |stage| stage.set.lead(LED),
        },
        leads: Leads::Hosts(&[]),
        asks: &[Ask::Get, Ask::Post(20_000)],
        holds: &[Answered(503, "no_address"), Untouched, Within(10)],
        ..ROW
    },
    Row {
        name: "dns_down_later",
        fault: "the name server says nothing any more",
        inject: Inject::Dns(Dns::Silence),
        leads: LED,
        warm: true,
        holds: &[
            Relayed(202),
            Within(10),
            Status("/dns/stale/0/age_s"),
            Logs("its last addresses are used"),
        ],
        ..ROW
    },
    Row {
        name: "dns_fails_later",
        fault: "the name server says SERVFAIL",
        inject: Inject::Dns(Dns::Failure),
        leads: LED,
        warm: true,
        holds: &[Relayed(202), Within(10), Logs("its last addresses are used")],
        ..ROW
    },
    Row {
        name: "dns_forgets_the_name",
        fault: "the name server says that the name does not exist",
        inject: Inject::Dns(Dns::Unknown),
        leads: LED,
        warm: true,
        holds: &[Relayed(202), Within(10)],
        ..ROW
    },
    Row {
        name: "dns_says_garbage",
        fault: "the name server answers with bytes that are no message",
        inject: Inject::Dns(Dns::Garbage),
        leads: LED,
        warm: true,
        holds: &[Relayed(202), Within(10)],
        ..ROW
    },
    Row {
        name: "dns_leads_to_a_private_address",
        fault: "the name server leads the name to 10.1.2.3",
        inject: Inject::Dns(Dns::Leads(PRIVATE)),
        leads: LED,
        holds: &[Answered(503, "no_address"), Untouched],
        ..ROW
    },
    Row {
        name: "dns_leads_to_a_dead_address",
        fault: "the name server leads the name to where nothing listens",
        inject: Inject::Dns(Dns::Leads(&[REFUSING])),
        leads: LED,
        holds: &[Answered(502, "upstream_connect"), Untouched],
        ..ROW
    },
    Row {
        name: "dns_is_slow",
        fault: "the name server takes 700 ms for each answer",
        inject: Inject::Dns(Dns::Slow(700)),
        leads: LED,
        holds: &[Relayed(202), Within(10)],
        ..ROW
    },
    Row {
        name: "dns_moves_before_its_ttl_ends",
        fault: "the intake moves to another address; the old one takes no connection, and its answer counts for an hour more",
        inject: Inject::Own {
            begin: |stage| {
                let answer = stage.ask(Ask::Get)?;
                harness::check_eq!(answer.status, 502, "{answer:?}");
                // Servers are asked again at most so often.
                std::thread::sleep(Duration::from_secs(6));
                stage.set.lead(LED)
            },
            end: |_| Ok(()),
        },
        leads: Leads::Dns(&[REFUSING], 3600),
        holds: &[Relayed(202), Within(10)],
        ..ROW
    },
    Row {
        name: "clock_jumps_ahead",
        fault: "the worker's wall clock is an hour ahead",
        inject: Inject::Clock(3600),
        warm: true,
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "clock_jumps_back",
        fault: "the worker's wall clock is an hour behind",
        inject: Inject::Clock(-3600),
        warm: true,
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "clock_jumps_past_a_certificate",
        fault: "the worker's wall clock is 20 years ahead, behind the end of the intake's certificate, which takes no part in the load",
        inject: Inject::Own {
            begin: |stage| {
                stage.certificate_for(Duration::from_secs(10 * YEAR.unsigned_abs()))?;
                let answer = stage.warm()?;
                harness::check_eq!(answer.status, 202, "{answer:?}");
                stage.begin(&Inject::Clock(20 * YEAR))?;
                stage.restart();
                Ok(())
            },
            end: |stage| stage.end(&Inject::Clock(0), ROW.leads),
        },
        holds: &[Answered(502, "upstream_tls"), Untouched],
        ..ROW
    },
    resources::DISK_FULL,
    resources::DESCRIPTORS,
    resources::MEMORY,
    interception::CGROUP_REMOVED,
    interception::BPFFS_UNMOUNTED,
    interception::VETH_RENAMED,
];
