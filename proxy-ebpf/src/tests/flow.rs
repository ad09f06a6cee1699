//! The classifier's rules: from the bytes of a packet to what is done with it.

use core::cell::RefCell;

use super::*;

/// What the maps would say, and what was asked.
#[derive(Default)]
struct Known {
    selected: bool,
    taken: Option<Taken>,
    own: bool,
    astray: bool,
    listener: bool,
    asked: RefCell<Vec<&'static str>>,
}

impl Known {
    fn answer(&self, question: &'static str, value: bool) -> bool {
        self.asked.borrow_mut().push(question);
        value
    }
}

impl Facts for Known {
    fn selected(&self, _: &Address) -> bool {
        self.answer("selected", self.selected)
    }

    fn taken(&self, _: &Flow) -> Option<Taken> {
        self.answer("taken", true);
        self.taken
    }

    fn own(&self, _: &Flow) -> bool {
        self.answer("own", self.own)
    }

    fn astray(&self, _: &Address) -> bool {
        self.astray
    }

    fn listener(&self, _: &Address) -> bool {
        self.answer("listener", self.listener)
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap());
    }
    words
}

/// An IPv4 header of 192.0.2.1 -> 203.0.113.9.
fn ipv4(words_of_header: u8, fragment: u16, protocol: u8) -> [u32; 5] {
    let mut bytes = [0_u8; 20];
    bytes[0] = 0x40 | words_of_header;
    bytes[1] = 0xff;
    bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
    bytes[8] = 64;
    bytes[9] = protocol;
    bytes[12..16].copy_from_slice(&[192, 0, 2, 1]);
    bytes[16..20].copy_from_slice(&[203, 0, 113, 9]);
    words(&bytes)
}

fn ipv6(next: u8) -> [u32; 10] {
    let mut bytes = [0_u8; 40];
    bytes[..8].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff, 5, 6, next, 64]);
    bytes[8..24].copy_from_slice(&"2001:db8:1::1".parse::<Ipv6Addr>().unwrap().octets());
    bytes[24..40].copy_from_slice(&"2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
    words(&bytes)
}

/// The sequence number of every segment here.
const SEQUENCE: u32 = 0x0102_0304;

/// A packet of this flow: its first one, or one that answers the other side.
fn packet_of(flow: Flow, opening: bool) -> Packet {
    Packet {
        flow,
        opening,
        answering: !opening,
        sequence: SEQUENCE,
    }
}

fn tcp(flags: u8) -> [u32; 4] {
    let mut bytes = [0xff_u8; 16];
    bytes[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    bytes[2..4].copy_from_slice(&443_u16.to_be_bytes());
    bytes[4..8].copy_from_slice(&SEQUENCE.to_be_bytes());
    bytes[13] = flags;
    words(&bytes)
}

#[test]
fn headers_are_read() {
    let transport = Transport::of_v4(&ipv4(5, 0x4000, 6)).unwrap();
    assert_eq!(
        transport,
        Transport {
            offset: 20,
            source: v4("192.0.2.1"),
            destination: v4("203.0.113.9")
        }
    );
    let packet = transport.segment(&tcp(0xc2));
    let flow = Flow::new(v4("192.0.2.1"), 40_000, v4("203.0.113.9"), 443);
    // The two highest bits are those of congestion notification, which a SYN may carry.
    assert_eq!(packet, packet_of(flow, true));

    let options = Transport::of_v4(&ipv4(15, 0, 6)).unwrap();
    assert_eq!(options.offset, 60, "options are skipped");
    assert!(
        Transport::of_v4(&ipv4(5, 0x2000, 6)).is_some(),
        "a first fragment has ports"
    );

    let transport = Transport::of_v6(&ipv6(6)).unwrap();
    let packet = transport.segment(&tcp(0x02));
    let flow = Flow::new(v6("2001:db8:1::1"), 40_000, v6("2001:db8::9"), 443);
    assert_eq!((transport.offset, packet), (40, packet_of(flow, true)));
}

#[test]
fn what_is_no_tcp_header_is_not_read() {
    for (header, why) in [
        (ipv4(5, 0x4000, 17), "UDP"),
        (ipv4(5, 0x2001, 6), "a later fragment"),
        (ipv4(5, 0x0001, 6), "the last fragment"),
        (ipv4(4, 0, 6), "a header too short"),
        ([u32::from_ne_bytes([0x65, 0, 0, 0]), 0, 0, 0, 0], "not version 4"),
    ] {
        assert_eq!(Transport::of_v4(&header), None, "{why}");
    }
    for next in [0, 17, 43, 44, 58, 60] {
        assert_eq!(Transport::of_v6(&ipv6(next)), None, "next header {next}");
    }
}

#[test]
fn only_a_syn_without_ack_opens() {
    let transport = Transport::of_v6(&ipv6(6)).unwrap();
    for flags in 0..=u8::MAX {
        let (syn, rst, ack) = (flags & 0x02 != 0, flags & 0x04 != 0, flags & 0x10 != 0);
        let segment = transport.segment(&tcp(flags));
        assert_eq!(segment.opening, syn && !ack, "{flags:#x}");
        assert_eq!(segment.answering, ack && !rst, "{flags:#x}");
    }
}

#[test]
fn questions_are_asked_in_the_order_of_their_cost() {
    let flow = Flow::new(v4("192.0.2.1"), 40_000, v4("203.0.113.9"), 443);
    let opening = packet_of(flow, true);
    let rules = settings(&[443]);

    let known = Known {
        selected: true,
        listener: true,
        ..Known::default()
    };
    assert_eq!(classify(&rules, &opening, &known), Action::Take);
    assert_eq!(*known.asked.borrow(), ["selected", "own", "listener"]);

    let known = Known::default();
    assert_eq!(classify(&settings(&[80]), &opening, &known), Action::Forget);
    let following = packet_of(flow, false);
    assert_eq!(classify(&settings(&[80]), &following, &known), Action::Pass);
    assert!(known.asked.borrow().is_empty(), "other ports cost no look-up");

    assert_eq!(classify(&rules, &following, &known), Action::Pass);
    assert_eq!(*known.asked.borrow(), ["taken"]);
}

#[test]
fn what_is_taken_waits_until_our_listener_is_picked() {
    for network in [0, 5, MAX_NETWORKS - 1] {
        let taken = Taken::waiting(network);
        assert_eq!((taken.network(), taken.waits()), (network, true));
        let picked = taken.picked();
        assert_eq!(
            (picked.network(), picked.waits(), picked.word()),
            (network, false, network),
            "as versions wrote it that did not know the difference"
        );
        assert_eq!(picked.picked(), picked);
    }
}

/// The sum over a header with a valid checksum is 0xffff (RFC 791, RFC 1071).
fn sum(header: &[u32; 5]) -> u32 {
    let sum: u32 = header
        .iter()
        .map(|word| u32::from_be(*word))
        .map(|word| (word >> 16) + (word & 0xffff))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

proptest! {
    #[test]
    fn one_hop_is_left_and_the_checksum_is_right(
        hops in any::<u8>(), protocol in any::<u8>(), fragment in any::<u16>(), id in any::<u32>(), length in any::<u16>(),
    ) {
        let mut header = ipv4(5, fragment, protocol);
        header[1] ^= (id & 0xffff_0000).to_be();
        header[2] = (u32::from(hops) << 24 | u32::from(protocol) << 16).to_be();
        header[2] |= (!sum(&header) & 0xffff).to_be();
        prop_assert_eq!(sum(&header), 0xffff);
        let word = HOPS_V4 as usize / 4;
        header[word] = last_hop_v4(header[word]);
        prop_assert_eq!(sum(&header), 0xffff, "the checksum");
        prop_assert_eq!(u32::from_be(header[word]) >> 16, 0x100 | u32::from(protocol));
        // A sum of nothing but ones is zero, too (RFC 1624): the checksum may change its form, and nothing else.
        prop_assert_eq!(u32::from_be(last_hop_v4(header[word])) >> 16, 0x100 | u32::from(protocol));

        let word = u32::from(length) << 16 | u32::from(protocol) << 8 | u32::from(hops);
        prop_assert_eq!(u32::from_be(last_hop_v6(word.to_be())), word & !0xff | 1);
    }
}

#[test]
fn the_hop_limit_is_where_the_headers_have_it() {
    assert_eq!(u32::from_be(ipv4(5, 0, 6)[HOPS_V4 as usize / 4]) >> 24, 64);
    assert_eq!(u32::from_be(ipv6(6)[HOPS_V6 as usize / 4]) & 0xff, 64);
}

#[test]
fn only_ipv6_goes_astray_and_only_where_it_is_off() {
    for (flags, astray) in [
        (0, false),
        (INTERFACE_OWN_QDISC, false),
        (INTERFACE_NO_IPV6, true),
        (3, true),
    ] {
        let interface = Interface {
            flags,
            ..Interface::default()
        };
        assert_eq!(interface.astray(&v6("2001:db8::9")), astray, "{flags}");
        assert!(!interface.astray(&v4("203.0.113.9")), "{flags}");
    }
}

#[test]
fn only_the_bits_of_the_mask_change() {
    let rules = Settings {
        mark_value: 0x00d0_0000,
        mark_mask: 0x00f0_0000,
        ..Settings::OFF
    };
    assert_eq!(rules.marked(0), 0x00d0_0000);
    assert_eq!(rules.marked(0xffff_ffff), 0xffdf_ffff);
    assert_eq!(rules.marked(0x1234_5678), 0x12d4_5678);
    let stray = Settings {
        mark_value: 0xffff_ffff,
        ..rules
    };
    assert_eq!(
        stray.marked(0),
        0x00f0_0000,
        "a value outside of the mask sets nothing"
    );
}

#[test]
fn slots_of_networks_do_not_meet() {
    let mut seen = HashSet::new();
    for network in 0..MAX_NETWORKS {
        for is_v4 in [true, false] {
            let slot = slot(network, is_v4);
            assert!(slot < SLOTS && seen.insert(slot), "{network} {is_v4}");
        }
    }
    assert_eq!(seen.len(), SLOTS as usize);
}

proptest! {
    /// The decision as a table, against the function with its early returns.
    #[test]
    fn the_decision(
        enabled in any::<bool>(), closed in any::<bool>(), port in any::<bool>(), opening in any::<bool>(),
        selected in any::<bool>(), taken in any::<bool>(), own in any::<bool>(), listener in any::<bool>(),
        astray in any::<bool>(), is_v4 in any::<bool>(), waits in any::<bool>(), answering in any::<bool>(),
    ) {
        let mut rules = settings(&[if port { 443 } else { 80 }]);
        rules.flags = if enabled { FLAG_ENABLED } else { 0 } | if closed { FLAG_CLOSED } else { 0 };
        let destination = if is_v4 { v4("203.0.113.9") } else { v6("2001:db8::9") };
        let flow = Flow::new(v4("192.0.2.1"), 40_000, destination, 443);
        let value = if waits { Taken::waiting(5) } else { Taken::waiting(5).picked() };
        let remembered = taken.then_some(value);
        let known = Known { selected, taken: remembered, own, astray, listener, ..Known::default() };
        let packet = Packet { answering: answering && !opening, ..packet_of(flow, opening) };
        let action = classify(&rules, &packet, &known);

        // Where it goes.
        let wanted = enabled && port && selected && !own;
        let listener = listener && !astray;
        prop_assert_eq!(action == Action::Take, opening && wanted && listener);
        prop_assert_eq!(action == Action::Refuse, opening && wanted && !listener && closed);
        let follows = !opening && port && taken && !astray;
        let direct = follows && waits && answering && !closed;
        prop_assert_eq!(action == Action::Direct, direct);
        prop_assert_eq!(action == Action::Follow, follows && !direct);
        prop_assert_eq!(action == Action::Lost, !opening && port && taken && astray);
        // A taken flow never leaves, whatever changed since; a connection that is not taken leaves no note behind.
        if !opening {
            prop_assert!(matches!(action, Action::Follow | Action::Lost | Action::Pass | Action::Direct));
        } else if !matches!(action, Action::Take | Action::Refuse) {
            prop_assert!(matches!(action, Action::Forget | Action::Own | Action::Open));
        }
        let counted = action.counter(&destination).map(Counter::name);
        prop_assert_eq!(counted, match action {
            Action::Take => Some(if is_v4 { "tc_taken_v4" } else { "tc_taken_v6" }),
            Action::Refuse => Some("tc_refused_no_listener"),
            Action::Open => Some("tc_open_no_listener"),
            Action::Own => Some("tc_own"),
            _ => None,
        });
    }
}
