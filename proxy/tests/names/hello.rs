//! ClientHellos made by hand, so that each part of them can be wrong.

/// A record of TLS.
pub fn record(kind: u8, contents: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &long(contents)].concat()
}

/// A handshake message.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

fn short(contents: &[u8]) -> Vec<u8> {
    [&[u8::try_from(contents.len()).unwrap()], contents].concat()
}

fn long(contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len()).unwrap().to_be_bytes();
    [&length[..], contents].concat()
}

pub fn extension(kind: u16, contents: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(contents)].concat()
}

/// server_name (RFC 6066 section 3) with these entries, each of a type and a name.
pub fn server_name(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let entry = |(kind, name): &(u8, &[u8])| [&[*kind][..], &long(name)].concat();
    extension(0, &long(&entries.iter().flat_map(entry).collect::<Vec<u8>>()))
}

/// The generator of P-256 (SEC 2, section 2.4.2), uncompressed: a share that every server can compute with.
const POINT: [u8; 65] = [
    0x04, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40, 0xf2,
    0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f,
    0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce,
    0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
];

/// A ClientHello message: TLS 1.3 with AES-256-GCM and P-256, and these extensions too.
pub fn hello_message(more: &[Vec<u8>]) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &short(&[9; 32])].concat();
    body.extend(long(&[0x13, 0x02]));
    body.extend(short(&[0]));
    let share = [&[0, 0x17][..], &long(&POINT)].concat();
    let mut extensions = vec![
        extension(43, &short(&[3, 4])),
        extension(10, &long(&[0, 0x17])),
        extension(13, &long(&[4, 3])),
        extension(51, &long(&share)),
    ];
    extensions.extend_from_slice(more);
    body.extend(long(&extensions.concat()));
    message(1, &body)
}

/// In one record, with these extensions.
pub fn hello_with(more: &[Vec<u8>]) -> Vec<u8> {
    record(22, &hello_message(more))
}

/// In one record, with this in SNI; none without.
pub fn hello(name: Option<&[u8]>) -> Vec<u8> {
    hello_with(&Vec::from_iter(name.map(|name| server_name(&[(0, name)]))))
}
