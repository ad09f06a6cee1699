//! Rules and routes that bring marked packets to this host's own sockets, and back out again what is ours only.
//!
//! Per device and family one rule, `fwmark V/M iif DEV lookup TABLE`, and per family one route, `local default dev lo`.
//! The `iif` is no luxury: with `src_valid_mark=1` a bare fwmark rule kills IPv4 (measured).

use std::collections::BTreeSet;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use nix::libc;

use super::netlink::{Netlink, Read};
use super::state::Surplus;
use crate::config::Mark;
use crate::intercept::error::InterceptError;

/// The preference of our rules: before those of CNIs, whose `from <pod>` would hide ours. Cilium takes 9, 10 and 100, AWS
/// 10 to 1536; 0 to 7 stay free for an operator who wants to overrule us.
pub const RULE_PREFERENCE: u32 = 8;
/// Our table: above the 0 to 255 that `rt_tables` names, and none of those in use by Cilium (2004 to 2006), AWS (2 and up,
/// 100 and up by interface) or WireGuard (51820).
pub const TABLE: u32 = 0x0dd0;
/// `FRA_PROTOCOL` (4.17) and `rtm_protocol`: how we know our own again. rtnetlink.h leaves values above 4 to user space;
/// 208 is not among those that it lists, nor in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 208;

/// `AF_INET`, `AF_INET6`
pub(super) const V4: u8 = 2;
pub(super) const V6: u8 = 10;

/// What [`sync`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Rules and routes that were missing.
    pub added: usize,
    /// Rules and routes of ours that nobody wants any more.
    pub removed: usize,
    /// False while IPv6 is switched off on this host: then the classifier takes none of its connections, and refuses them
    /// or lets them go as `intercept.on_failure` says.
    pub ipv6: bool,
    /// Foreign rules that catch marked packets before ours does, described.
    pub in_front: Vec<String>,
}

impl RouteChanges {
    /// What keeps marked packets from our listeners, one sentence each, with what to do. `ipv6` are interfaces by which
    /// IPv6 packets can come in.
    pub fn trouble(&self, ipv6: &BTreeSet<String>) -> Vec<String> {
        let mut found: Vec<String> = self
            .in_front
            .iter()
            .map(|rule| {
                format!(
                    "the foreign {rule} is asked before ours (preference {RULE_PREFERENCE}) and takes the packets that we \
                     mark: give it a preference above {RULE_PREFERENCE}, or set intercept.datapath: cgroup"
                )
            })
            .collect();
        // Without an address of the family nobody behind the interface has a way out by this host.
        if !self.ipv6 && !ipv6.is_empty() {
            let names: Vec<&str> = ipv6.iter().map(String::as_str).collect();
            found.push(format!(
                "IPv6 is off on this host's loopback and on at {}: IPv6 connections from there to the intake are refused, or \
                 leave without us where intercept.on_failure is open; set the sysctl net.ipv6.conf.lo.disable_ipv6 to 0, or \
                 intercept.datapath: cgroup",
                names.join(", ")
            ));
        }
        found
    }
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    family: u8,
    preference: u32,
    mark: u32,
    mask: u32,
    iif: Option<String>,
    pub(super) oif: Option<String>,
    table: u32,
    action: RuleAction,
    protocol: u8,
}

impl Rule {
    fn ours(family: u8, mark: Mark, device: &str) -> Self {
        Self {
            family,
            preference: RULE_PREFERENCE,
            mark: mark.value,
            mask: mark.mask,
            iif: Some(device.to_owned()),
            oif: None,
            table: TABLE,
            action: RuleAction::ToTable,
            protocol: PROTOCOL,
        }
    }

    fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL && self.table == TABLE && self.preference == RULE_PREFERENCE
    }

    pub(super) fn message(&self) -> RuleMessage {
        let mut message = get_rules(self.family);
        message.header.action = self.action;
        message.attributes = vec![
            RuleAttribute::Priority(self.preference),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(self.protocol.into()),
        ];
        if let Some(device) = &self.iif {
            message.attributes.push(RuleAttribute::Iifname(device.clone()));
        }
        message
    }

    pub(super) fn read(message: &RuleMessage) -> Self {
        let mut rule = Self {
            family: message.header.family.into(),
            preference: 0,
            mark: 0,
            mask: 0,
            iif: None,
            oif: None,
            table: message.header.table.into(),
            action: message.header.action,
            protocol: 0,
        };
        let mut mask = None;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => rule.preference = *preference,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(value) => mask = Some(*value),
                RuleAttribute::Iifname(device) => rule.iif = Some(device.clone()),
                RuleAttribute::Oifname(device) => rule.oif = Some(device.clone()),
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                _ => {}
            }
        }
        rule.mask = mask.unwrap_or(if rule.mark == 0 { 0 } else { u32::MAX });
        rule
    }

    /// True when it may take a packet with our mark that came in by one of our devices, before our rule does. Addresses
    /// and ports, which it may ask for besides, are not looked at.
    fn catches(&self, mark: Mark, devices: &BTreeSet<String>) -> bool {
        // 0 is the kernel's own `lookup local`.
        self.preference > 0
            && self.preference <= RULE_PREFERENCE
            && !self.is_ours()
            && self.oif.is_none()
            && self.iif.as_ref().is_none_or(|device| devices.contains(device))
            && (self.mark ^ mark.value) & self.mask & mark.mask == 0
    }

    pub(super) fn describe(&self) -> String {
        let family = if self.family == V6 { "IPv6" } else { "IPv4" };
        let mut text = format!("{family} rule {}:", self.preference);
        if self.mask != 0 {
            text.push_str(&format!(" fwmark {:#x}/{:#x}", self.mark, self.mask));
        }
        if let Some(device) = &self.iif {
            text.push_str(&format!(" iif {device}"));
        }
        text.push_str(&format!(" lookup {}", self.table));
        text
    }
}

/// Makes rules and routes equal to what these devices need, in both families. What is ours and not wanted any more, of
/// another mark too, goes unless it is to be kept. No devices, and nothing to be kept: nothing is left.
///
/// # Errors
/// The kernel's, for IPv4; for IPv6 unless it is switched off.
pub fn sync(
    netlink: &mut Netlink,
    mark: Mark,
    devices: &BTreeSet<String>,
    surplus: Surplus,
) -> Result<RouteChanges, InterceptError> {
    let mut changes = RouteChanges::default();
    for family in [V4, V6] {
        let there = rules(netlink, family)?;
        let wanted: Vec<Rule> = devices
            .iter()
            .map(|device| Rule::ours(family, mark, device))
            .collect();
        // The route before the rules that lead to it, and after them on the way out: a marked packet is never lost.
        let routed = match wanted.is_empty() {
            false => put_route(netlink, family),
            true => Ok(false),
        };
        let usable = match routed {
            Ok(added) => {
                changes.added += usize::from(added);
                !wanted.is_empty()
            }
            Err(error) if family == V6 && ipv6_is_off() => {
                tracing::debug!(%error, "IPv6 is off on this host");
                false
            }
            Err(error) => return Err(error),
        };
        if usable {
            for rule in wanted.iter().filter(|rule| !there.contains(rule)) {
                let what = format!("add the {}", rule.describe());
                let request = RouteNetlinkMessage::NewRule(rule.message());
                match netlink.request(&what, NLM_F_CREATE | NLM_F_EXCL, request) {
                    Ok(_) => changes.added += 1,
                    Err(error) if error.errno() == Some(libc::EEXIST) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if surplus == Surplus::Remove {
            for rule in there
                .iter()
                .filter(|rule| rule.is_ours() && !(usable && wanted.contains(rule)))
            {
                changes.removed += usize::from(delete_rule(netlink, rule)?);
            }
            if !usable {
                changes.removed += usize::from(delete_route(netlink, family)?);
            }
        }
        changes.ipv6 |= family == V6 && usable;
        changes.in_front.extend(
            there
                .iter()
                .filter(|rule| usable && rule.catches(mark, devices))
                .map(Rule::describe),
        );
    }
    Ok(changes)
}

/// Foreign rules that would catch marked packets of every interface before ours do, described.
///
/// # Errors
/// The kernel's.
pub fn in_front(netlink: &mut Netlink, mark: Mark) -> Result<Vec<String>, InterceptError> {
    let mut found = Vec::new();
    for family in [V4, V6] {
        found.extend(
            rules(netlink, family)?
                .iter()
                .filter(|rule| rule.catches(mark, &BTreeSet::new()))
                .map(Rule::describe),
        );
    }
    Ok(found)
}

/// Every rule of both families, described; ours say so.
///
/// # Errors
/// The kernel's.
pub fn list_rules(netlink: &mut Netlink) -> Result<Vec<String>, InterceptError> {
    let mut found = Vec::new();
    for family in [V4, V6] {
        found.extend(rules(netlink, family)?.iter().map(|rule| {
            let ours = if rule.is_ours() { "  OURS" } else { "" };
            format!("{}{ours}", rule.describe())
        }));
    }
    Ok(found)
}

/// The routes of our table in both families, as their messages say.
///
/// # Errors
/// The kernel's.
pub fn list_routes(netlink: &mut Netlink) -> Result<Vec<String>, InterceptError> {
    let mut found = Vec::new();
    for family in [V4, V6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family.into();
        let answers = match netlink.dump("list the routes", &RouteNetlinkMessage::GetRoute(message)) {
            Err(error) if family == V6 && is_no_family(&error) => continue,
            other => other?,
        };
        for answer in answers {
            if let Ok(RouteNetlinkMessage::NewRoute(route)) = answer
                && route.attributes.contains(&RouteAttribute::Table(TABLE))
            {
                let RouteHeader {
                    kind,
                    scope,
                    protocol,
                    ..
                } = route.header;
                let name = if family == V6 { "IPv6" } else { "IPv4" };
                found.push(format!(
                    "{name} {kind:?} scope {scope:?} protocol {protocol:?} {:?}",
                    route.attributes
                ));
            }
        }
    }
    Ok(found)
}

/// Takes away every rule and route of ours; returns how many.
///
/// # Errors
/// The kernel's.
pub fn remove_all(netlink: &mut Netlink) -> Result<usize, InterceptError> {
    let nobody = Mark { value: 0, mask: 0 };
    Ok(sync(netlink, nobody, &BTreeSet::new(), Surplus::Remove)?.removed)
}

/// The rules of a family. One that cannot be read is passed over: it is not ours.
fn rules(netlink: &mut Netlink, family: u8) -> Result<Vec<Rule>, InterceptError> {
    let request = RouteNetlinkMessage::GetRule(get_rules(family));
    let answers = match netlink.dump("list the routing rules", &request) {
        // A kernel without IPv6.
        Err(error) if family == V6 && is_no_family(&error) => return Ok(Vec::new()),
        other => other?,
    };
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            Ok(RouteNetlinkMessage::NewRule(message)) => Some(Rule::read(message)),
            _ => None,
        })
        // Without IPv6 the kernel answers with every other family's.
        .filter(|rule| rule.family == family)
        .collect())
}

fn get_rules(family: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: family.into(),
        ..RuleHeader::default()
    };
    message
}

/// True when it was there.
fn delete_rule(netlink: &mut Netlink, rule: &Rule) -> Result<bool, InterceptError> {
    let what = format!("delete the {}", rule.describe());
    unless_gone(netlink.request(&what, 0, RouteNetlinkMessage::DelRule(rule.message())))
}

/// True when it was missing.
fn put_route(netlink: &mut Netlink, family: u8) -> Result<bool, InterceptError> {
    let what = format!("add the local route of table {TABLE}");
    let request = RouteNetlinkMessage::NewRoute(route(family)?);
    match netlink.request(&what, NLM_F_CREATE | NLM_F_EXCL, request) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn delete_route(netlink: &mut Netlink, family: u8) -> Result<bool, InterceptError> {
    let what = format!("delete the local route of table {TABLE}");
    unless_gone(netlink.request(&what, 0, RouteNetlinkMessage::DelRoute(route(family)?)))
}

/// `local default dev lo table TABLE proto PROTOCOL`, as iproute2 asks for it.
fn route(family: u8) -> Result<RouteMessage, InterceptError> {
    let lo = nix::net::if_::if_nametoindex("lo").map_err(|errno| InterceptError::Netlink {
        request: "find the loopback interface lo".to_owned(),
        source: errno.into(),
        detail: String::new(),
    })?;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family.into(),
        protocol: PROTOCOL.into(),
        scope: if family == V4 {
            RouteScope::Host
        } else {
            RouteScope::Universe
        },
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(lo)];
    Ok(message)
}

/// False when the object was not there, or the kernel has no such family.
fn unless_gone(
    result: Result<Vec<Read<RouteNetlinkMessage>>, InterceptError>,
) -> Result<bool, InterceptError> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH)) || is_no_family(&error) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The kernel has no such family.
pub(super) fn is_no_family(error: &InterceptError) -> bool {
    matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// `ipv6.disable=1` at boot, no module, or `disable_ipv6` on `lo`, where our route would be. Of the calling thread's namespace.
fn ipv6_is_off() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").map_or(true, |text| text.trim() == "1")
}

#[cfg(test)]
mod tests;
