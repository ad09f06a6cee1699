//! What is fuzzed of netlink. See [`crate::fuzz`].
#![expect(clippy::panic, reason = "that is how a finding is reported")]

use netlink_packet_route::RouteNetlinkMessage;

use super::netlink::{Exchange, Protocol, Read, encode};
use super::routes::Rule;
use super::{chain, gateways, links};

/// The messages of a datagram, as an answer to request 1.
pub(in crate::intercept) fn answers<M: Protocol>(datagram: &[u8]) -> Vec<Read<M>> {
    let mut exchange = Exchange::new(1);
    if let Err(refusal) = exchange.absorb(datagram) {
        assert!(!refusal.into_error("fuzz").to_string().is_empty());
    }
    for unread in exchange.answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert!(!unread.why.is_empty() && unread.payload.len() < datagram.len());
    }
    exchange.answers
}

/// See [`crate::fuzz::netlink`].
pub(crate) fn netlink(datagram: &[u8]) {
    for answer in &answers(datagram) {
        if let Some(entry) = chain::read(answer, &|_, _| false) {
            assert!(!entry.ours && !entry.to_string().is_empty());
        }
        match answer {
            Ok(RouteNetlinkMessage::NewLink(message)) => {
                if let Ok(link) = links::read_link(message) {
                    assert!(!link.name.is_empty() && link.peer != Some(0));
                }
            }
            Ok(RouteNetlinkMessage::NewAddress(message)) => drop(links::read_address(message)),
            Ok(RouteNetlinkMessage::NewNsId(message)) => {
                assert!(links::read_netns_id(message).is_none_or(|number| number >= 0));
            }
            Ok(RouteNetlinkMessage::NewRoute(message)) => drop(gateways::read(message)),
            Ok(RouteNetlinkMessage::NewRule(message)) => rule(&Rule::read(message)),
            Ok(_) | Err(_) => {}
        }
    }
}

/// A rule that was read can be written, and is read as the same.
fn rule(rule: &Rule) {
    assert!(!rule.describe().is_empty());
    let request = RouteNetlinkMessage::NewRule(rule.message());
    // A name may be longer than what is ever asked.
    let Ok(bytes) = encode(request, 0, 1) else { return };
    let mut exchange = Exchange::<RouteNetlinkMessage>::new(1);
    assert!(matches!(exchange.absorb(&bytes), Ok(false)));
    let [Ok(RouteNetlinkMessage::NewRule(again))] = exchange.answers.as_slice() else {
        panic!("a rule became {:?}", exchange.answers);
    };
    let mut expected = rule.clone();
    // Not among what ours have.
    expected.oif = None;
    assert_eq!(Rule::read(again), expected);
}
