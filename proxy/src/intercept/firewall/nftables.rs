//! The chains and rules of nf_tables, read by netlink: what decides over a packet with our mark, and no more.

use std::collections::BTreeMap;

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::rules::{Chain, Rule, Table, Test, Verdict};
use crate::intercept::error::InterceptError;
use crate::intercept::tc::{Connection, Protocol, attributes};

// All numbers are those of linux/netfilter/nf_tables.h.
/// `NFNL_SUBSYS_NFTABLES`, and of its messages those that list.
const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;
/// `NFTA_CHAIN_*`
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
/// `NFTA_HOOK_HOOKNUM`
const HOOK_NUMBER: u16 = 1;
/// `NFTA_RULE_*`
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_META_DREG`, `NFTA_META_KEY`; of the keys, the mark and the name of the incoming interface
const META_TO: u16 = 1;
const META_KEY: u16 = 2;
const KEY_MARK: u32 = 3;
const KEY_IIFNAME: u32 = 6;
/// `NFTA_BITWISE_MASK`, `NFTA_BITWISE_XOR`
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
/// `NFTA_CMP_OP` (`NFT_CMP_EQ` is 0, `NFT_CMP_NEQ` 1), `NFTA_CMP_DATA`
const COMPARE_HOW: u16 = 2;
const COMPARE_WITH: u16 = 3;
/// `NFTA_IMMEDIATE_DATA`
const IMMEDIATE_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`, and the match's data: extensions of iptables
const EXTENSION_NAME: u16 = 1;
const EXTENSION_DATA: u16 = 3;
/// `NF_DROP`
const DROP: u32 = 0;

/// Every table of the families that IP packets for this host meet.
///
/// # Errors
/// nf_tables could not be asked. A kernel without it has no tables, which is no error.
pub(super) fn tables() -> Result<Vec<Table>, InterceptError> {
    let mut netlink = match Connection::open() {
        // A kernel without netfilter's netlink has no nf_tables either.
        Err(error) if error.errno() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        other => other?,
    };
    let chains = list(&mut netlink, "list the chains of nf_tables", GET_CHAIN)?;
    let rules = match chains.is_empty() {
        true => Vec::new(),
        false => list(&mut netlink, "list the rules of nf_tables", GET_RULE)?,
    };
    Ok(assemble(&chains, &rules))
}

fn assemble(chains: &[Vec<u8>], rules: &[Vec<u8>]) -> Vec<Table> {
    let mut tables: BTreeMap<(u8, String), Table> = BTreeMap::new();
    for (family, table, name, chain) in chains.iter().filter_map(|message| read_chain(message)) {
        let Some(family_name) = family_name(family) else {
            continue;
        };
        tables
            .entry((family, table.clone()))
            .or_insert_with(|| Table {
                tool: "nftables",
                family: family_name,
                name: table,
                chains: BTreeMap::new(),
            })
            .chains
            .insert(name, chain);
    }
    // The kernel lists a chain's rules in their order.
    for (family, table, chain, rule) in rules.iter().filter_map(|message| read_rule(message)) {
        if let Some(table) = tables.get_mut(&(family, table))
            && let Some(chain) = table.chains.get_mut(&chain)
        {
            chain.rules.push(rule);
        }
    }
    tables.into_values().collect()
}

fn family_name(family: u8) -> Option<&'static str> {
    match i32::from(family) {
        1 => Some("inet"),
        libc::AF_INET => Some("ip"),
        libc::AF_INET6 => Some("ip6"),
        _ => None,
    }
}

/// Family, table and name of a chain, and the chain without its rules.
fn read_chain(message: &[u8]) -> Option<(u8, String, String, Chain)> {
    let family = *message.first()?;
    let (mut table, mut name, mut chain) = (None, None, Chain::default());
    for (kind, value) in attributes(message.get(FAMILY_HEADER..)?).ok()? {
        match kind {
            CHAIN_TABLE => table = text(value),
            CHAIN_NAME => name = text(value),
            CHAIN_POLICY => chain.drops = number(value) == Some(DROP),
            CHAIN_HOOK => chain.hook = find(value, HOOK_NUMBER).and_then(number),
            _ => {}
        }
    }
    Some((family, table?, name?, chain))
}

/// Family, table and chain of a rule, and the rule.
fn read_rule(message: &[u8]) -> Option<(u8, String, String, Rule)> {
    let family = *message.first()?;
    let (mut table, mut chain) = (None, None);
    let mut expressions: &[u8] = &[];
    for (kind, value) in attributes(message.get(FAMILY_HEADER..)?).ok()? {
        match kind {
            RULE_TABLE => table = text(value),
            RULE_CHAIN => chain = text(value),
            RULE_EXPRESSIONS => expressions = value,
            _ => {}
        }
    }
    let mut reading = Reading::default();
    for (_, expression) in attributes(expressions).ok()? {
        let name = find(expression, EXPRESSION_NAME).and_then(text)?;
        let data = find(expression, EXPRESSION_DATA).unwrap_or_default();
        reading.expression(&name, data);
    }
    Some((family, table?, chain?, reading.rule()))
}

/// What the last expression loaded, as far as it matters.
#[derive(Clone, Copy)]
enum Loaded {
    Device,
    Mark { mask: u32 },
    Other,
}

/// A rule while its expressions are read one after the other. That each works on what the one before it loaded is how
/// `nft` and `iptables-nft` write them; what does not fit is unknown.
struct Reading {
    tests: Vec<Test>,
    verdict: Verdict,
    loaded: Loaded,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            tests: Vec::new(),
            verdict: Verdict::Continue,
            loaded: Loaded::Other,
        }
    }
}

impl Reading {
    fn rule(self) -> Rule {
        Rule {
            tests: self.tests,
            verdict: self.verdict,
        }
    }

    fn expression(&mut self, name: &str, data: &[u8]) {
        let loaded = std::mem::replace(&mut self.loaded, Loaded::Other);
        match name {
            "meta" if find(data, META_TO).is_some() => {
                self.loaded = match find(data, META_KEY).and_then(number) {
                    Some(KEY_MARK) => Loaded::Mark { mask: u32::MAX },
                    Some(KEY_IIFNAME) => Loaded::Device,
                    _ => Loaded::Other,
                };
            }
            "bitwise" => {
                let operand = |kind| find(data, kind).and_then(word);
                if let (Loaded::Mark { .. }, Some(mask), Some(0)) =
                    (loaded, operand(BITWISE_MASK), operand(BITWISE_XOR))
                {
                    self.loaded = Loaded::Mark { mask };
                }
            }
            "cmp" => self.tests.push(compare(loaded, data).unwrap_or(Test::Unknown)),
            // They load, change or tell something, and let every packet pass.
            "meta" | "ct" | "payload" | "exthdr" | "socket" | "rt" | "fib" | "byteorder" | "counter"
            | "log" | "objref" | "last" | "notrack" => {}
            "immediate" => {
                if let Some(verdict) = verdict(data) {
                    self.verdict = verdict;
                }
            }
            "reject" => self.verdict = Verdict::Stop,
            "target" => match find(data, EXTENSION_NAME).and_then(text).as_deref() {
                Some("ACCEPT") => self.verdict = Verdict::Accept,
                Some("DROP" | "REJECT") => self.verdict = Verdict::Stop,
                _ => {}
            },
            "match" => match find(data, EXTENSION_NAME).and_then(text).as_deref() {
                Some("comment") => {}
                Some("mark") => self.tests.push(mark_match(data).unwrap_or(Test::Unknown)),
                _ => self.tests.push(Test::Unknown),
            },
            _ => self.tests.push(Test::Unknown),
        }
    }
}

/// A comparison of what was loaded.
fn compare(loaded: Loaded, data: &[u8]) -> Option<Test> {
    let not = match find(data, COMPARE_HOW).and_then(number)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let with = find(data, COMPARE_WITH)?;
    match loaded {
        Loaded::Mark { mask } => Some(Test::Mark {
            value: word(with)?,
            mask,
            not,
        }),
        Loaded::Device => {
            let name = find(with, DATA_VALUE)?;
            Some(Test::Device {
                // A name ends with a zero byte; without one it is the beginning of a name.
                prefix: !name.contains(&0),
                name: text(name)?,
                not,
            })
        }
        Loaded::Other => None,
    }
}

/// iptables' own match: `struct xt_mark_mtinfo1` (linux/netfilter/xt_mark.h) is value, mask and whether it is turned round.
fn mark_match(data: &[u8]) -> Option<Test> {
    let info = find(data, EXTENSION_DATA)?;
    let number = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    Some(Test::Mark {
        value: number(0)?,
        mask: number(4)?,
        not: *info.get(8)? != 0,
    })
}

/// What `immediate` decides; none when it loads something else.
fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = find(find(data, IMMEDIATE_DATA)?, DATA_VERDICT)?;
    let chain = || find(verdict, VERDICT_CHAIN).and_then(text);
    Some(match number(find(verdict, VERDICT_CODE)?)?.cast_signed() {
        0 => Verdict::Stop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => Verdict::Continue,
    })
}

/// The first attribute of this kind.
fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .ok()?
        .into_iter()
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// The 32 bits of a value that is compared as it is in memory.
fn word(data: &[u8]) -> Option<u32> {
    let value = find(data, DATA_VALUE)?;
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A message of nf_tables. There is no library for these; what is read of them is little.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NfTables {
    kind: u16,
    /// What follows netlink's header: `struct nfgenmsg`, then attributes.
    body: Vec<u8>,
}

impl NetlinkSerializable for NfTables {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for NfTables {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        if payload.len() < FAMILY_HEADER {
            return Err(DecodeError::from("it is shorter than its header"));
        }
        Ok(Self {
            kind: header.message_type,
            body: payload.to_vec(),
        })
    }
}

impl Protocol for NfTables {
    const NUMBER: isize = NETLINK_NETFILTER;

    fn read(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Self::deserialize(header, payload)
    }
}

/// Every message of a list, without its netlink header. One that cannot be read is passed over.
fn list(netlink: &mut Connection<NfTables>, what: &str, kind: u16) -> Result<Vec<Vec<u8>>, InterceptError> {
    // Every family, version 0.
    let body = vec![0; FAMILY_HEADER];
    match netlink.dump(what, &NfTables { kind, body }) {
        Ok(answers) => Ok(answers
            .into_iter()
            .filter_map(|answer| Some(answer.ok()?.body))
            .collect()),
        // nf_tables that is not there (not loaded, or not built) has no chains.
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok().map(str::to_owned)
}

/// nf_tables writes numbers in network order.
fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// What is made of a datagram whose messages are taken for chains and for rules.
#[cfg(any(test, feature = "fuzz"))]
pub(super) mod fuzz {
    use super::{NfTables, Table, assemble};
    use crate::intercept::tc::fuzz::answers;

    pub(in crate::intercept::firewall) fn tables(datagram: &[u8]) -> Vec<Table> {
        let messages = answers::<NfTables>(datagram).into_iter().flatten();
        let bodies: Vec<Vec<u8>> = messages.map(|message| message.body).collect();
        assemble(&bodies, &bodies)
    }
}

#[cfg(test)]
mod tests;
