//! Tests of nf_tables' messages: laid out as the kernel does, and any bytes.

use proptest::prelude::*;

use super::super::rules::Packet;
use super::super::{FORWARD, LOCAL_IN};
use super::*;
use crate::config::Mark;
use crate::intercept::tc::encoded;

const MARK: Mark = Mark {
    value: 0x00d0_0000,
    mask: 0x00f0_0000,
};

/// An attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `struct nfgenmsg` of this family, then attributes.
fn message(family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    [&[family, 0, 0, 0][..], &attributes.concat()].concat()
}

fn chain(family: u8, name: &str, hook: Option<u32>, policy: u32) -> Vec<u8> {
    let mut all = vec![
        attribute(CHAIN_TABLE, b"filter\0"),
        attribute(CHAIN_NAME, format!("{name}\0").as_bytes()),
    ];
    if let Some(hook) = hook {
        let hook = [attribute(HOOK_NUMBER, &hook.to_be_bytes()), attribute(2, &[0; 4])];
        all.push(attribute(CHAIN_HOOK | 0x8000, &hook.concat()));
        all.push(attribute(CHAIN_POLICY, &policy.to_be_bytes()));
    }
    message(family, &all)
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    let inner = [
        attribute(EXPRESSION_NAME, format!("{name}\0").as_bytes()),
        attribute(EXPRESSION_DATA | 0x8000, &data.concat()),
    ];
    attribute(1 | 0x8000, &inner.concat())
}

fn rule(chain: &str, expressions: &[Vec<u8>]) -> Vec<u8> {
    message(
        2,
        &[
            attribute(RULE_TABLE, b"filter\0"),
            attribute(RULE_CHAIN, format!("{chain}\0").as_bytes()),
            attribute(3, &[0; 8]),
            attribute(RULE_EXPRESSIONS | 0x8000, &expressions.concat()),
        ],
    )
}

fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    attribute(kind | 0x8000, &attribute(DATA_VALUE, bytes))
}

fn load(key: u32) -> Vec<u8> {
    expression(
        "meta",
        &[
            attribute(META_KEY, &key.to_be_bytes()),
            attribute(META_TO, &1_u32.to_be_bytes()),
        ],
    )
}

fn equal(how: u32, bytes: &[u8]) -> Vec<u8> {
    expression(
        "cmp",
        &[
            attribute(1, &1_u32.to_be_bytes()),
            attribute(COMPARE_HOW, &how.to_be_bytes()),
            value(COMPARE_WITH, bytes),
        ],
    )
}

fn decide(code: i32, chain: &str) -> Vec<u8> {
    let mut verdict = attribute(VERDICT_CODE, &code.to_be_bytes());
    if !chain.is_empty() {
        verdict.extend(attribute(VERDICT_CHAIN, format!("{chain}\0").as_bytes()));
    }
    let data = attribute(
        IMMEDIATE_DATA | 0x8000,
        &attribute(DATA_VERDICT | 0x8000, &verdict),
    );
    expression("immediate", &[attribute(1, &0_u32.to_be_bytes()), data])
}

/// What our mark is compared with by `nft`.
fn marked(value_of: u32, mask: u32) -> Vec<Vec<u8>> {
    let bitwise = expression(
        "bitwise",
        &[
            value(BITWISE_MASK, &mask.to_ne_bytes()),
            value(BITWISE_XOR, &[0; 4]),
        ],
    );
    vec![load(KEY_MARK), bitwise, equal(0, &value_of.to_ne_bytes())]
}

/// And by the extension of iptables.
fn mark_extension(turned: u8) -> Vec<u8> {
    let info = [
        &MARK.value.to_ne_bytes()[..],
        &MARK.mask.to_ne_bytes(),
        &[turned, 0, 0, 0],
    ]
    .concat();
    expression(
        "match",
        &[
            attribute(EXTENSION_NAME, b"mark\0"),
            attribute(2, &1_u32.to_be_bytes()),
            attribute(EXTENSION_DATA, &info),
        ],
    )
}

fn name(device: &str) -> Vec<u8> {
    let mut bytes = device.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// Whether an input chain with these rules, and a chain `mine`, stops a marked packet of `veth7`.
fn stops(policy: u32, rules: &[Vec<u8>]) -> bool {
    let chains = [
        chain(2, "INPUT", Some(LOCAL_IN), policy),
        chain(2, "mine", None, 0),
        chain(2, "OUTPUT", Some(3), 1),
    ];
    let tables = assemble(&chains, rules);
    let packet = Packet {
        mark: MARK,
        device: Some("veth7"),
    };
    assert_eq!(tables.len(), 1);
    tables[0].stops("INPUT", packet)
}

/// `NFNL_SUBSYS_NFTABLES` and the message in one number, a dump, all families.
#[test]
fn a_list_is_asked_for_as_the_kernel_wants_it() {
    let request = NfTables {
        kind: GET_CHAIN,
        body: vec![0; FAMILY_HEADER],
    };
    assert_eq!(
        encoded(request, 0x300, 0),
        "14000000040a0103000000000000000000000000"
    );
}

#[test]
fn chains_of_ip_are_read() {
    let messages = [
        chain(2, "INPUT", Some(LOCAL_IN), DROP),
        chain(10, "INPUT", Some(LOCAL_IN), 1),
        chain(1, "INPUT", Some(FORWARD), DROP),
        // bridge
        chain(7, "INPUT", Some(LOCAL_IN), DROP),
        message(2, &[attribute(CHAIN_NAME, b"mine\0")]),
        chain(2, "INPUT", Some(LOCAL_IN), DROP)[..9].to_vec(),
        Vec::new(),
    ];
    let tables = assemble(&messages, &[]);
    let found: Vec<(&str, bool, Option<u32>)> = tables
        .iter()
        .map(|table| {
            let chain = &table.chains["INPUT"];
            (table.family, chain.drops, chain.hook)
        })
        .collect();
    assert_eq!(
        found,
        [
            ("inet", true, Some(FORWARD)),
            ("ip", true, Some(LOCAL_IN)),
            ("ip6", false, Some(LOCAL_IN))
        ]
    );
}

#[test]
fn an_accepted_mark_lets_packets_pass_in_its_own_chain_only() {
    let accept = |chain: &str, tests: Vec<Vec<u8>>| rule(chain, &[tests, vec![decide(1, "")]].concat());
    let ours = || marked(MARK.value, MARK.mask);
    let counter = || expression("counter", &[attribute(1, &[0; 8])]);
    assert!(stops(DROP, &[]));
    assert!(!stops(DROP, &[accept("INPUT", ours())]));
    assert!(!stops(
        DROP,
        &[accept("INPUT", vec![mark_extension(0), counter()])]
    ));
    assert!(!stops(
        DROP,
        &[rule("INPUT", &[decide(-3, "mine")]), accept("mine", ours())]
    ));
    for (rules, why) in [
        (vec![accept("OUTPUT", ours())], "another hook"),
        (vec![accept("mine", ours())], "a chain that nobody jumps to"),
        (vec![accept("INPUT", vec![mark_extension(1)])], "turned round"),
        (
            vec![accept("INPUT", marked(0x0010_0000, MARK.mask))],
            "another mark",
        ),
        (
            vec![accept(
                "INPUT",
                vec![load(KEY_MARK), equal(1, &MARK.value.to_ne_bytes())],
            )],
            "not exactly ours",
        ),
        (vec![rule("INPUT", &ours())], "without a verdict"),
        (
            vec![accept("INPUT", [vec![load(16), equal(0, &[6])], ours()].concat())],
            "and something else",
        ),
    ] {
        assert!(stops(DROP, &rules), "{why}");
    }
}

#[test]
fn a_last_rule_without_conditions_stops() {
    let established = [
        expression("ct", &[attribute(1, &1_u32.to_be_bytes())]),
        expression("bitwise", &[]),
        equal(1, &[0; 4]),
        decide(1, ""),
    ];
    let log = expression("log", &[attribute(2, b"x\0")]);
    let reject = expression("reject", &[attribute(1, &2_u32.to_be_bytes())]);
    let extension = expression("target", &[attribute(EXTENSION_NAME, b"REJECT\0")]);
    for last in [
        vec![reject.clone()],
        vec![log, reject],
        vec![extension.clone()],
        vec![decide(0, "")],
    ] {
        let rules = [rule("INPUT", &established), rule("INPUT", &last)];
        assert!(stops(1, &rules), "{last:?}");
        let accept = [marked(MARK.value, MARK.mask), vec![decide(1, "")]].concat();
        assert!(!stops(1, &[rule("INPUT", &accept), rules[1].clone()]));
    }
    let only_some = [load(16), equal(0, &[17]), extension];
    assert!(!stops(1, &[rule("INPUT", &only_some)]), "UDP");
    // By interface, as firewalld sends packets to zones.
    for (how, device, stopped) in [
        (0, &name("veth7")[..], true),
        (0, b"vet", true),
        (0, &name("vet"), false),
        (1, &name("veth7"), false),
        (1, &name("lo"), true),
    ] {
        let by_device = [load(KEY_IIFNAME), equal(how, device), decide(-4, "mine")];
        let rules = [rule("INPUT", &by_device), rule("mine", &[decide(0, "")])];
        assert_eq!(stops(1, &rules), stopped, "{how} {device:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_passed_over(
        chains in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..3),
        rules in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..3),
    ) {
        let _ = assemble(&chains, &rules);
    }

    /// Well-formed expressions of every name with values of any length.
    #[test]
    fn any_expressions_are_read(
        names in proptest::collection::vec("meta|cmp|bitwise|immediate|match|target|lookup", 0..6),
        data in proptest::collection::vec((0_u16..6, proptest::collection::vec(any::<u8>(), 0..24)), 0..5),
    ) {
        let data: Vec<Vec<u8>> = data.iter().map(|(kind, bytes)| attribute(*kind, bytes)).collect();
        let all: Vec<Vec<u8>> = names.iter().map(|name| expression(name, &data)).collect();
        let _ = stops(1, &[rule("INPUT", &all)]);
    }
}
