//! The filter table of `iptables-legacy`, as its tool prints it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use super::rules::{Chain, Rule, Table, Test, Verdict};
use super::{FORWARD, LOCAL_IN};

/// The tables of both families, where they are in use and the tool is there.
pub(super) fn tables() -> Vec<Table> {
    [
        ("/proc/net/ip_tables_names", "iptables-legacy"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
    ]
    .into_iter()
    .filter(|(names, _)| {
        fs::read_to_string(names).is_ok_and(|text| text.lines().any(|line| line == "filter"))
    })
    .filter_map(|(_, tool)| {
        let output = Command::new(tool).arg("-S").output().ok()?;
        Some(table(tool, &String::from_utf8_lossy(&output.stdout)))
    })
    .collect()
}

/// What `-S` printed.
pub(super) fn table(tool: &'static str, text: &str) -> Table {
    let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
    let lines: Vec<Vec<String>> = text.lines().map(words).collect();
    for line in &lines {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        match line.as_slice() {
            ["-P", name, policy] => {
                let hook = match *name {
                    "INPUT" => Some(LOCAL_IN),
                    "FORWARD" => Some(FORWARD),
                    _ => None,
                };
                let chain = chains.entry((*name).to_owned()).or_default();
                (chain.hook, chain.drops) = (hook, *policy == "DROP");
            }
            ["-N", name] => {
                chains.entry((*name).to_owned()).or_default();
            }
            _ => {}
        }
    }
    for line in &lines {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        if let ["-A", name, rest @ ..] = line.as_slice() {
            let rule = rule(rest, &chains);
            chains.entry((*name).to_owned()).or_default().rules.push(rule);
        }
    }
    Table {
        tool,
        family: "",
        name: "filter".to_owned(),
        chains,
    }
}

fn rule(mut rest: &[&str], chains: &BTreeMap<String, Chain>) -> Rule {
    let mut rule = Rule {
        tests: Vec::new(),
        verdict: Verdict::Continue,
    };
    let mut not = false;
    loop {
        rest = match rest {
            [] => return rule,
            ["!", rest @ ..] => {
                not = true;
                rest
            }
            // Everything behind belongs to the target.
            ["-j", target, ..] => {
                rule.verdict = verdict(target, chains, Verdict::Jump);
                return rule;
            }
            ["-g", target, ..] => {
                rule.verdict = verdict(target, chains, Verdict::Goto);
                return rule;
            }
            ["-m", "comment", "--comment", _, rest @ ..] => rest,
            ["-m", "mark", rest @ ..] => rest,
            ["-i", name, rest @ ..] => {
                let beginning = name.strip_suffix('+');
                rule.tests.push(Test::Device {
                    name: beginning.unwrap_or(name).to_owned(),
                    prefix: beginning.is_some(),
                    not: std::mem::take(&mut not),
                });
                rest
            }
            ["--mark", mark, rest @ ..] => {
                rule.tests.push(self::mark(mark, std::mem::take(&mut not)));
                rest
            }
            [_, rest @ ..] => {
                rule.tests.push(Test::Unknown);
                not = false;
                rest
            }
        };
    }
}

fn verdict(target: &str, chains: &BTreeMap<String, Chain>, to: impl FnOnce(String) -> Verdict) -> Verdict {
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Stop,
        "RETURN" => Verdict::Return,
        name if chains.contains_key(name) => to(name.to_owned()),
        _ => Verdict::Continue,
    }
}

/// `0xd00000/0xf00000`, or a value alone.
fn mark(text: &str, not: bool) -> Test {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    match (number(value), number(mask)) {
        (Some(value), Some(mask)) => Test::Mark { value, mask, not },
        _ => Test::Unknown,
    }
}

/// The words of a line; one in quotation marks may hold spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut quoted = false;
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(characters.next()),
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rules::Packet;
    use super::*;
    use crate::config::Mark;

    const MARK: Mark = Mark {
        value: 0x00d0_0000,
        mask: 0x00f0_0000,
    };

    fn stops(text: &str) -> bool {
        let packet = Packet {
            mark: MARK,
            device: Some("veth7"),
        };
        table("iptables-legacy", text).stops("INPUT", packet)
    }

    /// RHEL's default, and what people add to it.
    #[test]
    fn printed_rules_are_read() {
        let rhel = "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n-N mine\n\
            -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n\
            -A INPUT -i lo -j ACCEPT\nHERE-A INPUT -j REJECT --reject-with icmp-host-prohibited\n";
        let with = |line: &str| stops(&rhel.replace("HERE", line));
        assert!(with(""));
        for cure in [
            "-A INPUT -m mark --mark 0xd00000/0xf00000 -j ACCEPT\n",
            "-A INPUT -m comment --comment \"a \\\"b\\\" -j DROP\" -m mark --mark 0xd00000/0xf00000 -j ACCEPT\n",
            "-A INPUT -i veth+ -j ACCEPT\n",
            "-A INPUT ! -i eth0 -j ACCEPT\n",
            "-A INPUT -j mine\n-A mine -i veth7 -j ACCEPT\n",
            "-A INPUT -j LOG --log-prefix x\n-A INPUT -g mine\n",
        ] {
            assert!(!with(cure), "{cure}");
        }
        for other in [
            "-A INPUT -m mark --mark 0x200000/0xf00000 -j ACCEPT\n",
            "-A INPUT -m mark ! --mark 0xd00000/0xf00000 -j ACCEPT\n",
            "-A OUTPUT -m mark --mark 0xd00000/0xf00000 -j ACCEPT\n",
            "-A INPUT ! -i veth7 -j ACCEPT\n",
            "-A INPUT -i eth0 -j ACCEPT\n",
            "-A INPUT -s 10.0.0.0/8 -j ACCEPT\n",
            "-A INPUT -j mine\n-A mine -j RETURN\n",
        ] {
            assert!(with(other), "{other}");
        }
        assert!(stops("-P INPUT DROP\n"));
        assert!(!stops("-P INPUT ACCEPT\n-P FORWARD DROP\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(-[APN] [A-Z]{1,3}( [-!a-z\"\\\\]{1,4}){0,6}\n){0,6}") {
            let _ = stops(&text);
        }
    }
}
