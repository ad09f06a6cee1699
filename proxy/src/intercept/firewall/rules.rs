//! What a packet with our mark meets in a firewall's chains, as far as it can be told. Pure.

use std::collections::BTreeMap;

use crate::config::Mark;

/// Chains that jump to each other are followed this deep: `NFT_JUMP_STACK_SIZE` (linux/netfilter/nf_tables.h). The kernel
/// refuses deeper ones, and loops.
const DEEPEST: usize = 16;
/// Rules that are looked at for one packet at most.
const MOST: usize = 100_000;

/// A packet that we marked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Its mark; other bits may be set or not.
    pub(super) mark: Mark,
    /// What it came in by, where that is known.
    pub(super) device: Option<&'a str>,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// The interface that the packet came in by.
    Device {
        /// Its name, or how its name begins.
        name: String,
        /// True for a beginning.
        prefix: bool,
        /// True when it must be another one.
        not: bool,
    },
    /// The packet's mark.
    Mark {
        /// The bits that it must have, of `mask`.
        value: u32,
        /// The bits that are compared.
        mask: u32,
        /// True when it must be another one.
        not: bool,
    },
    /// Anything else.
    Unknown,
}

impl Test {
    /// Whether a packet passes it; none when that cannot be told.
    fn passes(&self, packet: Packet<'_>) -> Option<bool> {
        match self {
            Self::Device { name, prefix, not } => packet.device.map(|device| {
                let same = if *prefix {
                    device.starts_with(name.as_str())
                } else {
                    device == name
                };
                same != *not
            }),
            Self::Mark { value, mask, not } => {
                let differs = value ^ packet.mark.value;
                if differs & mask & packet.mark.mask != 0 {
                    Some(*not)
                } else if mask & !packet.mark.mask == 0 {
                    Some(!not)
                } else {
                    None
                }
            }
            Self::Unknown => None,
        }
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing that ends the chain: it counts, logs, marks.
    Continue,
    /// The packet passes this hook's chain.
    Accept,
    /// It is dropped or rejected.
    Stop,
    /// Back to where this chain was jumped to from, or to the policy.
    Return,
    /// To another chain, and back at its end.
    Jump(String),
    /// To another chain, and from its end to where this one was jumped to from.
    Goto(String),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) tests: Vec<Test>,
    pub(super) verdict: Verdict,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// The number of its hook; none for one that is only jumped to.
    pub(super) hook: Option<u32>,
    /// Its policy drops.
    pub(super) drops: bool,
    pub(super) rules: Vec<Rule>,
}

/// A table with its chains, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// `nftables`, or the tool that has to be used.
    pub(super) tool: &'static str,
    /// `inet`, `ip` or `ip6`.
    pub(super) family: &'static str,
    pub(super) name: String,
    pub(super) chains: BTreeMap<String, Chain>,
}

/// How a chain ends for a packet.
enum End {
    Accepted,
    Stopped,
    /// Neither: it goes on where the chain was jumped to from.
    Through,
}

impl Table {
    /// As people know it.
    pub(super) fn name(&self) -> String {
        match self.tool {
            "nftables" => format!("{} {} {}", self.tool, self.family, self.name),
            tool => tool.to_owned(),
        }
    }

    /// The chains of a hook, by name.
    pub(super) fn at(&self, hook: u32) -> impl Iterator<Item = &str> {
        self.chains
            .iter()
            .filter(move |(_, chain)| chain.hook == Some(hook))
            .map(|(name, _)| name.as_str())
    }

    /// True for a chain that drops whatever comes.
    pub(super) fn is_closed(&self, chain: &str) -> bool {
        self.chains
            .get(chain)
            .is_some_and(|chain| chain.drops && chain.rules.is_empty())
    }

    /// True when a chain of a hook stops the packet.
    pub(super) fn stops(&self, chain: &str, packet: Packet<'_>) -> bool {
        match self.walk(chain, packet, 0, &mut 0) {
            End::Accepted => false,
            End::Stopped => true,
            End::Through => self.chains.get(chain).is_some_and(|chain| chain.drops),
        }
    }

    fn walk(&self, name: &str, packet: Packet<'_>, depth: usize, seen: &mut usize) -> End {
        let Some(chain) = self.chains.get(name).filter(|_| depth <= DEEPEST) else {
            return End::Through;
        };
        for rule in &chain.rules {
            *seen += 1;
            if *seen > MOST {
                return End::Through;
            }
            if !rule.tests.iter().all(|test| test.passes(packet) == Some(true)) {
                continue;
            }
            match &rule.verdict {
                Verdict::Continue => {}
                Verdict::Accept => return End::Accepted,
                Verdict::Stop => return End::Stopped,
                Verdict::Return => return End::Through,
                Verdict::Goto(other) => return self.walk(other, packet, depth + 1, seen),
                Verdict::Jump(other) => match self.walk(other, packet, depth + 1, seen) {
                    End::Through => {}
                    end => return end,
                },
            }
        }
        End::Through
    }

    /// The command that lets marked packets pass. Tables named like those of iptables are iptables' own.
    pub(super) fn cure(&self, chain: &str, mark: Mark) -> String {
        let tool = match (self.tool, self.family, self.name.as_str(), chain) {
            ("nftables", "ip", "filter", "INPUT") => "iptables",
            ("nftables", "ip6", "filter", "INPUT") => "ip6tables",
            ("nftables", ..) => {
                let command = format!(
                    "nft insert rule {} {} {chain} meta mark and {:#x} == {:#x} accept",
                    self.family, self.name, mark.mask, mark.value
                );
                // It owns its table, and writes it anew.
                return match self.name.as_str() {
                    "firewalld" => format!(
                        "firewall-cmd --permanent --zone=trusted --add-interface=INTERFACE for the interface of each pod \
                         and firewall-cmd --reload (until the next reload: {command})"
                    ),
                    _ => command,
                };
            }
            (tool, ..) => tool,
        };
        format!(
            "{tool} -I {chain} -m mark --mark {:#x}/{:#x} -j ACCEPT",
            mark.value, mark.mask
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::LOCAL_IN;
    use super::*;

    const MARK: Mark = Mark {
        value: 0x00d0_0000,
        mask: 0x00f0_0000,
    };

    fn rule(tests: &[Test], verdict: Verdict) -> Rule {
        Rule {
            tests: tests.to_vec(),
            verdict,
        }
    }

    fn ours() -> Test {
        Test::Mark {
            value: MARK.value,
            mask: MARK.mask,
            not: false,
        }
    }

    fn table(chains: &[(&str, bool, &[Rule])]) -> Table {
        let chains = chains.iter().map(|(name, drops, rules)| {
            let chain = Chain {
                hook: (*name == "input").then_some(LOCAL_IN),
                drops: *drops,
                rules: rules.to_vec(),
            };
            ((*name).to_owned(), chain)
        });
        Table {
            tool: "nftables",
            family: "inet",
            name: "firewalld".to_owned(),
            chains: chains.collect(),
        }
    }

    fn stops(chains: &[(&str, bool, &[Rule])]) -> bool {
        let packet = Packet {
            mark: MARK,
            device: Some("veth7"),
        };
        table(chains).stops("input", packet)
    }

    #[test]
    fn a_policy_or_a_last_rule_stops() {
        let reject = rule(&[], Verdict::Stop);
        let established = rule(&[Test::Unknown], Verdict::Accept);
        assert!(!stops(&[("input", false, &[])]));
        assert!(stops(&[("input", true, std::slice::from_ref(&established))]));
        assert!(stops(&[("input", false, &[established.clone(), reject.clone()])]));
        assert!(!stops(&[(
            "input",
            false,
            &[rule(&[Test::Unknown], Verdict::Stop), established]
        )]));
        assert!(!stops(&[("input", true, &[rule(&[], Verdict::Accept), reject])]));
    }

    #[test]
    fn an_accepted_mark_must_come_first_and_from_this_chain() {
        let reject = rule(&[], Verdict::Stop);
        let accept = rule(&[ours()], Verdict::Accept);
        let jump = |name: &str| rule(&[], Verdict::Jump(name.to_owned()));
        assert!(!stops(&[("input", false, &[accept.clone(), reject.clone()])]));
        assert!(
            stops(&[("input", false, &[reject.clone(), accept.clone()])]),
            "too late"
        );
        assert!(
            stops(&[
                ("input", true, &[]),
                ("output", false, std::slice::from_ref(&accept))
            ]),
            "in a chain that packets do not come to"
        );
        assert!(!stops(&[
            ("input", true, &[jump("mine")]),
            ("mine", false, std::slice::from_ref(&accept))
        ]));
        assert!(
            stops(&[
                (
                    "input",
                    true,
                    &[rule(&[Test::Unknown], Verdict::Jump("mine".into()))]
                ),
                ("mine", false, &[accept])
            ]),
            "only sometimes"
        );
    }

    /// As firewalld lays its zones out.
    #[test]
    fn chains_are_followed() {
        let device = |name: &str, prefix, not| Test::Device {
            name: name.to_owned(),
            prefix,
            not,
        };
        let goto = |tests: &[Test], name: &str| rule(tests, Verdict::Goto(name.to_owned()));
        for (test, stopped) in [
            (device("veth7", false, false), false),
            (device("veth", true, false), false),
            (device("veth", false, false), true),
            (device("veth7", false, true), true),
            (device("lo", false, true), false),
            (Test::Unknown, true),
        ] {
            let zones = [goto(std::slice::from_ref(&test), "trusted"), goto(&[], "public")];
            let all: &[(&str, bool, &[Rule])] = &[
                (
                    "input",
                    false,
                    &[
                        rule(&[Test::Unknown], Verdict::Accept),
                        rule(&[], Verdict::Jump("zones".into())),
                        rule(&[], Verdict::Stop),
                    ],
                ),
                ("zones", false, &zones),
                ("trusted", false, &[rule(&[], Verdict::Accept)]),
                (
                    "public",
                    false,
                    &[rule(&[], Verdict::Continue), rule(&[], Verdict::Return)],
                ),
            ];
            assert_eq!(stops(all), stopped, "{test:?}");
        }
        let endless: &[(&str, bool, &[Rule])] =
            &[("input", true, &[rule(&[], Verdict::Jump("input".into()))])];
        assert!(stops(endless), "the kernel refuses it, and we do not hang");
    }

    #[test]
    fn marks_are_compared_by_their_bits() {
        for (value, mask, not, passes) in [
            (0x00d0_0000, 0x00f0_0000, false, Some(true)),
            (0x00d0_0000, 0x00f0_0000, true, Some(false)),
            (0x0080_0000, 0x0080_0000, false, Some(true)),
            (0x0020_0000, 0x00f0_0000, false, Some(false)),
            (0x0020_0000, 0x00f0_0000, true, Some(true)),
            (0x00d0_0000, u32::MAX, false, None),
            (0, u32::MAX, true, Some(true)),
        ] {
            let packet = Packet {
                mark: MARK,
                device: None,
            };
            let test = Test::Mark { value, mask, not };
            assert_eq!(test.passes(packet), passes, "{test:?}");
        }
    }

    #[test]
    fn cures_fit_the_table() {
        let mut table = table(&[]);
        assert!(table.cure("filter_INPUT", MARK).contains("--zone=trusted"));
        table.name = "mine".to_owned();
        assert_eq!(
            table.cure("in", MARK),
            "nft insert rule inet mine in meta mark and 0xf00000 == 0xd00000 accept"
        );
        (table.family, table.name) = ("ip6", "filter".to_owned());
        assert_eq!(
            table.cure("INPUT", MARK),
            "ip6tables -I INPUT -m mark --mark 0xd00000/0xf00000 -j ACCEPT"
        );
    }
}
