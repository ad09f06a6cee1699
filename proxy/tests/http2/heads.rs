//! Heads that no good client sends: HPACK, lengths, hosts, sizes.

use crate::frames::*;
use crate::table::{Case, Gets, case, run};
use crate::world::{NAME, get, post};

/// A whole request of this block.
fn bytes(raw: &mut Raw, block: &[u8]) {
    raw.begin(&[]).send(frame(HEADERS, WHOLE, 1, block));
}

/// A whole request of these headers.
pub fn heads(raw: &mut Raw, fields: &[(&str, &str)]) {
    bytes(raw, &block(fields));
}

/// A good request with this beside.
pub fn with(raw: &mut Raw, more: &[(&str, &str)]) {
    heads(raw, &[&get("/evil")[..], more].concat());
}

/// A good request with these bytes behind its block.
fn behind(raw: &mut Raw, more: &[u8]) {
    bytes(raw, &[&block(&get("/evil"))[..], more].concat());
}

/// A request with a body, and what is said of its length.
fn body(raw: &mut Raw, lengths: &[&str], data: &[&[u8]]) {
    let mut fields = post("/evil").to_vec();
    fields.extend(lengths.iter().map(|length| ("content-length", *length)));
    let mut all = frame(HEADERS, END_HEADERS, 1, &block(&fields));
    for (number, piece) in data.iter().enumerate() {
        let last = u8::from(number + 1 == data.len());
        all.extend(frame(DATA, last * END_STREAM, 1, piece));
    }
    raw.begin(&[]).send(all);
}

fn to(raw: &mut Raw, authority: Option<&str>, hosts: &[&str]) {
    let mut fields = vec![(":method", "GET"), (":scheme", "https"), (":path", "/evil")];
    fields.extend(authority.map(|authority| (":authority", authority)));
    fields.extend(hosts.iter().map(|host| ("host", *host)));
    heads(raw, &fields);
}

/// Says that it knows no table of the size; RFC 7541 section 6.3.
fn table_size(size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    integer(&mut bytes, size, 5, 0x20);
    bytes
}

const HPACK: &[Case] = &[
    case(
        "index 0",
        "RFC 7541 6.1",
        |raw| behind(raw, &[0x80]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "an index behind the tables",
        "RFC 7541 2.3.3",
        |raw| behind(raw, &[0x80 | 70]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "an index of many bytes",
        "RFC 7541 5.1",
        |raw| {
            behind(
                raw,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            );
        },
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a length that overflows",
        "RFC 7541 5.1",
        |raw| behind(raw, &[0, 1, b'a', 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a string that is longer than its block",
        "RFC 7541 5.2",
        |raw| behind(raw, &[0, 1, b'a', 100, b'b']),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a block that ends within a field",
        "4.3",
        |raw| behind(raw, &[0, 1]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a table larger than we allow",
        "RFC 7541 6.3",
        |raw| bytes(raw, &[&table_size(1 << 30)[..], &block(&get("/evil"))].concat()),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a change of the table within a block",
        "RFC 7541 4.2",
        |raw| behind(raw, &table_size(0)),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "Huffman padding of more than seven bits",
        "RFC 7541 5.2",
        |raw| behind(raw, &[0, 1, b'a', 0x81, 0xff]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "Huffman with the end of string in it",
        "RFC 7541 5.2",
        |raw| behind(raw, &[0, 1, b'a', 0x84, 0xff, 0xff, 0xff, 0xff]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "Huffman padding of zeros",
        "RFC 7541 5.2",
        |raw| behind(raw, &[0, 1, b'a', 0x81, 0b0001_1000]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a large literal repeated by its index",
        "RFC 7541 7.3",
        |raw| {
            let mut all = block(&get("/evil"));
            all.push(0x40);
            all.extend(&field("x", &"b".repeat(3000))[1..]);
            // 3,000 bytes for each byte: 9 MB in one frame.
            all.extend([0xbe; 3000]);
            bytes(raw, &all);
        },
        Gets::GoAway(CALM),
    ),
];

const LENGTHS: &[Case] = &[
    case(
        "more than its Content-Length",
        "8.1.1",
        |raw| body(raw, &["3"], &[b"four"]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "less than its Content-Length",
        "8.1.1",
        |raw| body(raw, &["5"], &[b"fo", b"ur"]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "nothing of its Content-Length",
        "8.1.1",
        |raw| with(raw, &[("content-length", "5")]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "trailers before all of its Content-Length",
        "8.1.1",
        |raw| {
            let fields = [&post("/evil")[..], &[("content-length", "5")]].concat();
            raw.begin(&[]).send(
                [
                    frame(HEADERS, END_HEADERS, 1, &block(&fields)),
                    frame(DATA, 0, 1, b"four"),
                    frame(HEADERS, WHOLE, 1, &field("x", "1")),
                ]
                .concat(),
            );
        },
        Gets::Reset(PROTOCOL),
    ),
    case(
        "two Content-Lengths",
        "8.1.1",
        |raw| body(raw, &["4", "4"], &[b"four"]),
        Gets::Status(400),
    ),
    case(
        "two different Content-Lengths",
        "8.1.1",
        |raw| body(raw, &["4", "5"], &[b"four"]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a list of Content-Lengths",
        "8.1.1",
        |raw| body(raw, &["4, 4"], &[b"four"]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a Content-Length with a sign",
        "8.1.1",
        |raw| body(raw, &["+4"], &[b"four"]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "a Content-Length of 2^64",
        "8.1.1",
        |raw| body(raw, &["18446744073709551616"], &[b"four"]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "an empty Content-Length",
        "8.1.1",
        |raw| body(raw, &[""], &[b"four"]),
        Gets::Reset(PROTOCOL),
    ),
];

const HOSTS: &[Case] = &[
    case(
        "another name",
        "8.3.1; RFC 9110 7.4",
        |raw| to(raw, Some("example.org"), &[]),
        Gets::Status(421),
    ),
    case(
        "another intake",
        "8.3.1; RFC 9110 7.4",
        |raw| to(raw, Some("api.ddog-gov.com"), &[]),
        Gets::Status(421),
    ),
    case(
        "another name in Host alone",
        "8.3.1",
        |raw| to(raw, None, &["example.org"]),
        Gets::Status(421),
    ),
    case(
        "two Hosts",
        "RFC 9110 7.2",
        |raw| to(raw, Some(NAME), &[NAME, NAME]),
        Gets::Status(400),
    ),
    case(
        "a Host that differs from :authority",
        "8.3.1",
        |raw| to(raw, Some(NAME), &["api.ddog-gov.com"]),
        Gets::Status(400),
    ),
    case(
        "neither :authority nor Host",
        "8.3.1",
        |raw| to(raw, None, &[]),
        Gets::Status(400),
    ),
    case(
        "an empty :authority",
        "8.3.1",
        |raw| to(raw, Some(""), &[]),
        Gets::Reset(PROTOCOL),
    ),
    case(
        "user-info in :authority",
        "8.3.1",
        |raw| to(raw, Some("key@trace.agent.ddog-gov.com"), &[]),
        Gets::Status(400),
    ),
    case(
        "an address as :authority",
        "8.3.1",
        |raw| to(raw, Some("127.0.0.1"), &[]),
        Gets::Status(400),
    ),
    case(
        "an IPv6 address as :authority",
        "8.3.1",
        |raw| to(raw, Some("[::1]:443"), &[]),
        Gets::Status(400),
    ),
    case(
        "a foreign port",
        "8.3.1",
        |raw| to(raw, Some("trace.agent.ddog-gov.com:22"), &[]),
        Gets::Status(400),
    ),
    case(
        "a name that only begins like it",
        "8.3.1",
        |raw| to(raw, Some("trace.agent.ddog-gov.com.example.org"), &[]),
        Gets::Status(421),
    ),
    case(
        "the name in upper case, with its dot and port",
        "8.3.1",
        |raw| to(raw, Some("TRACE.agent.ddog-gov.com.:443"), &[]),
        Gets::Status(200),
    )
    .beside_a_good_one(),
    case(
        "the same name in both",
        "8.3.1",
        |raw| to(raw, Some(NAME), &["Trace.Agent.ddog-gov.com"]),
        Gets::Status(200),
    )
    .beside_a_good_one(),
    case(
        "the name in Host alone",
        "8.3.1",
        |raw| to(raw, None, &[NAME]),
        Gets::Status(200),
    )
    .beside_a_good_one(),
];

const SIZES: &[Case] = &[
    case(
        "headers over limits.max_header_bytes",
        "6.5.2",
        |raw| with(raw, &[("x", &"a".repeat(16_300))]),
        Gets::Status(431),
    ),
    case(
        "headers over limits.max_header_bytes, in pieces",
        "6.5.2",
        |raw| {
            raw.begin(&[]).send(
                [
                    frame(HEADERS, END_STREAM, 1, &block(&get("/evil"))),
                    frame(CONTINUATION, 0, 1, &field("x", &"a".repeat(9000))),
                    frame(CONTINUATION, END_HEADERS, 1, &field("x", &"a".repeat(9000))),
                ]
                .concat(),
            );
        },
        Gets::Status(431),
    ),
    case(
        "headers far over limits.max_header_bytes",
        "10.5.1",
        |raw| {
            let mut all = frame(HEADERS, END_STREAM, 1, &block(&get("/evil")));
            for _ in 0..6 {
                all.extend(frame(
                    CONTINUATION,
                    0,
                    1,
                    &field("x", &"a".repeat(4000)).repeat(4),
                ));
            }
            raw.begin(&[]).send(all);
        },
        Gets::GoAway(CALM),
    ),
    case(
        "101 headers",
        "10.5.1",
        |raw| with(raw, &[("a", "b"); 101]),
        Gets::Status(400),
    ),
    case(
        "100 headers",
        "10.5.1",
        |raw| with(raw, &[("a", "b"); 100]),
        Gets::Status(200),
    )
    .beside_a_good_one(),
];

#[test]
fn broken_compression_ends_the_connection() {
    run(HPACK);
}

#[test]
fn lengths_that_lie_are_refused() {
    run(LENGTHS);
}

#[test]
fn only_the_name_of_the_session_is_served() {
    run(HOSTS);
}

#[test]
fn heads_have_their_bounds() {
    run(SIZES);
}
