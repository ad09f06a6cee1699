//! Rules and routes are made, kept and taken away without touching anybody else's; changes are noticed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use agent_fips_proxy::config::{Config, Mark};
use agent_fips_proxy::intercept::tc::{RouteChanges, Surplus, TcWatcher, routing};
use anyhow::{Context, Result};
use harness::vendor::tc;
use harness::{check, check_eq, succeed};

use crate::syncing::{Running, classic};
use crate::world::{DEVICE, ip, world};

/// Rules and routes of both families as `ip` shows them.
fn picture() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for words in [
        "-4 rule list",
        "-6 rule list",
        "-4 route show table all",
        "-6 route show table all",
    ] {
        lines.extend(ip(words)?.lines().map(|line| line.trim().to_owned()));
    }
    lines.sort();
    Ok(lines)
}

/// What is there beyond `before`.
fn beyond(before: &[String]) -> Result<Vec<String>> {
    let mut lines = picture()?;
    for line in before {
        let at = lines
            .iter()
            .position(|other| other == line)
            .with_context(|| format!("`{line}` is gone"))?;
        lines.remove(at);
    }
    Ok(lines)
}

fn devices(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

pub fn rules_and_routes() -> Result<()> {
    world(|world| {
        let netlink = &mut world.netlink;
        let mark = Config::default().intercept.mark;
        // Other people's, some at our preference and one in our table.
        for words in [
            "rule add pref 9 fwmark 0x200/0xf00 lookup 2004 protocol static",
            "rule add pref 8 iif eth9 lookup 100",
            "-6 rule add pref 8 iif eth9 lookup 100",
            "route add 203.0.113.0/24 dev veth0 table 3536",
            "route add 203.0.113.0/24 dev veth0 table 2004",
        ] {
            ip(words)?;
        }
        let before = picture()?;
        let first = routing::sync(netlink, mark, &devices(&[DEVICE, "cni0"]), Surplus::Remove)?;
        let expected = RouteChanges {
            added: 6,
            removed: 0,
            ipv6: true,
            in_front: Vec::new(),
        };
        check_eq!(first, expected, "first");
        let added = beyond(&before)?;
        check_eq!(added.len(), 6, "{added:?}");
        let rules: Vec<&String> = added.iter().filter(|line| line.contains("fwmark")).collect();
        check_eq!(rules.len(), 4, "{rules:?}");
        for rule in &rules {
            check!(
                rule.starts_with("8:")
                    && rule.contains("fwmark 0xd00000/0xf00000 iif ")
                    && rule.contains("lookup 3536"),
                "{rule}"
            );
            check!(rule.contains("proto 208"), "{rule}");
        }
        check!(
            added
                .iter()
                .any(|line| line.starts_with("local default dev lo table 3536 proto 208 scope host")),
            "{added:?}"
        );
        check!(
            added
                .iter()
                .any(|line| line.starts_with("local default dev lo table 3536 proto 208 metric")),
            "{added:?}"
        );
        let quiet = RouteChanges {
            added: 0,
            ..expected.clone()
        };
        check_eq!(
            routing::sync(netlink, mark, &devices(&[DEVICE, "cni0"]), Surplus::Remove)?,
            quiet,
            "again"
        );

        // The kernel follows them: a marked packet from the device is for this host.
        ip(&format!("route get 192.0.2.1 from 198.51.100.2 iif {DEVICE}"))
            .err()
            .context("routed unmarked")?;
        let marked = ip(&format!(
            "route get 192.0.2.1 from 198.51.100.2 iif {DEVICE} mark 0xd00000"
        ))?;
        check!(marked.starts_with("local 192.0.2.1"), "{marked}");
        let more_bits = ip(&format!(
            "route get 192.0.2.1 from 198.51.100.2 iif {DEVICE} mark 0xd04200"
        ))?;
        check!(more_bits.starts_with("local 192.0.2.1"), "{more_bits}");
        let six = ip(&format!(
            "-6 route get 2001:db8::9 from 2001:db8::2 iif {DEVICE} mark 0xd00000"
        ))?;
        check!(six.starts_with("local 2001:db8::9"), "{six}");

        // Somebody takes one away; one device less; another mark.
        ip(&format!(
            "rule delete pref 8 fwmark 0xd00000/0xf00000 iif {DEVICE} lookup 3536"
        ))?;
        ip("-6 route flush table 3536")?;
        check_eq!(
            routing::sync(netlink, mark, &devices(&[DEVICE, "cni0"]), Surplus::Remove)?.added,
            2,
            "put back"
        );
        check_eq!(
            routing::sync(netlink, mark, &devices(&[DEVICE]), Surplus::Remove)?.removed,
            2,
            "one device less"
        );
        let other = Mark {
            value: 0x10,
            mask: 0xf0,
        };
        let changed = routing::sync(netlink, other, &devices(&[DEVICE]), Surplus::Remove)?;
        check_eq!((changed.added, changed.removed), (2, 2), "another mark");

        // A foreign rule that takes marked packets first is named.
        ip("rule add pref 5 from 198.51.100.0/24 lookup 100")?;
        let named = routing::sync(netlink, other, &devices(&[DEVICE]), Surplus::Remove)?.in_front;
        check_eq!(named, ["IPv4 rule 5: lookup 100".to_owned()], "in front");
        ip("rule delete pref 5")?;

        check_eq!(routing::remove_all(netlink)?, 4, "taken away");
        check_eq!(picture()?, before, "before and after");
        check_eq!(routing::remove_all(netlink)?, 0, "again");
        Ok(())
    })
}

pub fn ipv6_may_be_off() -> Result<()> {
    world(|world| {
        for name in ["all", "default", "lo"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        let before = picture()?;
        let mark = Config::default().intercept.mark;
        for expected in [2, 0] {
            let changes = routing::sync(&mut world.netlink, mark, &devices(&[DEVICE]), Surplus::Remove)?;
            check_eq!((changes.added, changes.ipv6), (expected, false), "IPv4 only");
        }
        // Switched on later, then off again: what is left of it goes.
        for name in ["all", "lo"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
        let changes = routing::sync(&mut world.netlink, mark, &devices(&[DEVICE]), Surplus::Remove)?;
        check_eq!((changes.added, changes.ipv6), (2, true), "switched on");
        for name in ["all", "lo"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        let changes = routing::sync(&mut world.netlink, mark, &devices(&[DEVICE]), Surplus::Remove)?;
        check!(!changes.ipv6, "{changes:?}");
        routing::remove_all(&mut world.netlink)?;
        check_eq!(picture()?, before, "before and after");
        Ok(())
    })
}

/// What is in the way of every interface at once: rules before ours, and IPv6 that is off.
pub fn routing_trouble_is_told() -> Result<()> {
    world(|world| {
        let mut running = Running::start(world, &classic(10))?;
        running.sync(world)?;
        check!(running.table.ipv6, "IPv6 is on");
        check_eq!(running.tc.routing_trouble(), Vec::<String>::new(), "all is well");

        ip("rule add pref 5 from 198.51.100.0/24 lookup 100")?;
        running.sync(world)?;
        let trouble = running.tc.routing_trouble();
        check_eq!(trouble.len(), 1, "{trouble:?}");
        check!(
            trouble[0].contains("IPv4 rule 5: lookup 100") && trouble[0].contains("preference above 8"),
            "{trouble:?}"
        );
        ip("rule delete pref 5")?;
        running.sync(world)?;
        check_eq!(running.tc.routing_trouble(), Vec::<String>::new(), "it is gone");

        // Off everywhere: no pod has a way out by this host, and there is nothing to say.
        let off = |value: &str| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", value);
        off("1")?;
        running.sync(world)?;
        check!(!running.table.ipv6, "the table does not know that IPv6 is off");
        check_eq!(running.tc.routing_trouble(), Vec::<String>::new(), "no IPv6 here");
        ip(&format!("address add 2001:db8::1/64 dev {DEVICE} nodad"))?;
        running.sync(world)?;
        let trouble = running.tc.routing_trouble();
        check_eq!(trouble.len(), 1, "{trouble:?}");
        for words in [DEVICE, "net.ipv6.conf.lo.disable_ipv6", "intercept.on_failure"] {
            check!(trouble[0].contains(words), "no {words}: {trouble:?}");
        }
        off("0")?;
        running.sync(world)?;
        check!(running.table.ipv6, "IPv6 is on again");
        check_eq!(running.tc.routing_trouble(), Vec::<String>::new(), "on again");
        running.tc.remove_all(&mut running.table)?;
        Ok(())
    })
}

/// Something that happens, and how to make it happen.
type Change = (&'static str, fn() -> Result<()>);

/// A watcher in the calling thread's namespaces, and what happens when `change` does.
pub fn changes_are_noticed() -> Result<()> {
    world(|_| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut watcher = TcWatcher::new()?;
            let changes: [Change; 6] = [
                ("a link", || {
                    ip("link add veth8 type veth peer name veth9").map(drop)
                }),
                ("a qdisc", || tc("qdisc add dev veth8 clsact").map(drop)),
                ("a filter", || {
                    tc("filter add dev veth8 ingress prio 3 u32 match u32 0 0 classid 1:1").map(drop)
                }),
                ("a rule", || ip("rule add pref 77 lookup 77").map(drop)),
                ("an IPv6 rule", || ip("-6 rule add pref 77 lookup 77").map(drop)),
                ("many links", || {
                    let mut batch = String::new();
                    for index in 0..200 {
                        batch.push_str(&format!("link add many{index} type veth peer name more{index}\n"));
                    }
                    let file = tempfile_in_run(&batch)?;
                    succeed(Command::new("ip").args(["-batch", &file])).map(drop)
                }),
            ];
            for (what, change) in changes {
                // Nothing happens by itself, and a call that was given up loses nothing.
                let quiet = tokio::time::timeout(Duration::from_millis(300), watcher.changed()).await;
                check!(quiet.is_err(), "before {what}: a change out of nowhere");
                change()?;
                let short = tokio::time::timeout(Duration::from_millis(10), watcher.changed()).await;
                check!(short.is_err(), "{what}: not coalesced");
                let start = Instant::now();
                tokio::time::timeout(Duration::from_secs(5), watcher.changed())
                    .await
                    .with_context(|| format!("{what} was not noticed"))??;
                check!(
                    start.elapsed() < Duration::from_secs(2),
                    "{what}: {:?}",
                    start.elapsed()
                );
            }
            // A caller that is called away every few milliseconds is told too.
            tc("filter delete dev veth8 ingress")?;
            let start = Instant::now();
            while tokio::time::timeout(Duration::from_millis(20), watcher.changed())
                .await
                .is_err()
            {
                check!(
                    start.elapsed() < Duration::from_secs(2),
                    "a busy caller is not told"
                );
            }
            Ok(())
        })
    })
}

fn tempfile_in_run(text: &str) -> Result<String> {
    // The case's own bpffs holds no files; this goes with the process.
    let path = std::env::temp_dir().join(format!("afp-batch-{}", std::process::id()));
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}
