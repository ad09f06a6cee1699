//! The words of a key are its bytes.

use super::*;

/// The first bytes of the words.
fn bytes<const N: usize>(words: [u64; N], length: usize) -> Vec<u8> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert!(bytes[length..].iter().all(|&byte| byte == 0));
    bytes[..length].to_vec()
}

/// The bytes of the fields, in order.
fn fields(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn any_address() -> impl Strategy<Value = Address> {
    any::<[u32; 4]>().prop_map(|words| Address { words })
}

proptest! {
    #[test]
    fn words_are_the_bytes(
        a in any_address(),
        b in any_address(),
        ports in any::<[u16; 2]>(),
        cookie in any::<u64>(),
        what in any::<u32>(),
        detail in any::<u32>(),
    ) {
        let [first, second] = ports;
        let address = |address: &Address| address.octets();
        let port = |port: u16| port.to_ne_bytes();
        let zero = [0_u8; 4];

        let original = Original { address: a, port: first, listener_port: second, process: what };
        prop_assert_eq!(
            bytes(original.words(), size_of::<Original>()),
            fields(&[&address(&a), &port(first), &port(second), &what.to_ne_bytes()])
        );
        let key = HandoverKey::new(cookie, a, first, second);
        prop_assert_eq!(
            bytes(key.words(), size_of::<HandoverKey>()),
            fields(&[&cookie.to_ne_bytes(), &address(&a), &port(first), &port(second), &zero])
        );
        let flow = Flow::new(a, first, b, second);
        let flow_bytes = fields(&[&address(&a), &address(&b), &port(first), &port(second), &zero]);
        prop_assert_eq!(bytes(flow.words(), size_of::<Flow>()), flow_bytes.clone());
        let own = OwnFlow { netns_cookie: cookie, flow };
        prop_assert_eq!(
            bytes(own.words(), size_of::<OwnFlow>()),
            fields(&[&cookie.to_ne_bytes(), &flow_bytes])
        );
        prop_assert_eq!(
            bytes(Address::prefix4(what), 8),
            fields(&[&32_u32.to_ne_bytes(), &what.to_ne_bytes()])
        );
        prop_assert_eq!(bytes(a.prefix6(), 20), fields(&[&128_u32.to_ne_bytes(), &address(&a)]));
        let leak_key = LeakKey { who: cookie, reason: what, kind: detail };
        let key_bytes = fields(&[&cookie.to_ne_bytes(), &what.to_ne_bytes(), &detail.to_ne_bytes()]);
        prop_assert_eq!(bytes(leak_key.words(), size_of::<LeakKey>()), key_bytes.clone());
        let direct = Direct { destination: a, port: first, reserved: second, process: detail };
        let direct_bytes = fields(&[&address(&a), &port(first), &port(second), &detail.to_ne_bytes()]);
        prop_assert_eq!(bytes(direct.words(), size_of::<Direct>()), direct_bytes.clone());
        prop_assert_eq!(
            bytes(Leak { count: cookie, last: direct }.words(), size_of::<Leak>()),
            fields(&[&cookie.to_ne_bytes(), &direct_bytes])
        );
        let record = LeakRecord { key: leak_key, direct };
        let record_bytes = bytes(record.words(), size_of::<LeakRecord>());
        prop_assert_eq!(&record_bytes, &fields(&[&key_bytes, &direct_bytes]));
        prop_assert_eq!(LeakRecord::from_bytes(&record_bytes), Some(record));
        // One length is one type, for whoever reads the ring.
        prop_assert_eq!(LeakRecord::from_bytes(&record_bytes[4..]), None);
        prop_assert_eq!(Event::from_bytes(&record_bytes), None);
        prop_assert_eq!(
            bytes(Passed { cgroup: cookie, process: what, state: detail }.words(), size_of::<Passed>()),
            key_bytes
        );
        let event = Event {
            source: a,
            destination: b,
            source_port: first,
            destination_port: second,
            what,
            detail,
            reserved: 0,
        };
        prop_assert_eq!(Event::from_bytes(&bytes(event.words(), size_of::<Event>())), Some(event));
        prop_assert_eq!(Event::from_bytes(&bytes(event.words(), size_of::<Event>())[1..]), None);
        prop_assert_eq!(
            bytes(event.words(), size_of::<Event>()),
            fields(&[
                &address(&a), &address(&b), &port(first), &port(second), &what.to_ne_bytes(), &detail.to_ne_bytes(), &zero,
            ])
        );
    }
}
