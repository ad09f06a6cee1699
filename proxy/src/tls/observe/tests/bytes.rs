//! Handshake messages made by hand, so that each of their parts can be wrong.

/// A record.
pub(super) fn record(kind: u8, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len()).unwrap();
    [&[kind, 3, 3], &length.to_be_bytes()[..], contents].concat()
}

/// Records of `size` bytes each, the last one shorter.
pub(super) fn records(messages: &[u8], size: usize) -> Vec<u8> {
    messages.chunks(size).flat_map(|part| record(22, part)).collect()
}

/// A handshake message.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// With a length of one byte before it.
pub(super) fn short(contents: &[u8]) -> Vec<u8> {
    [&[u8::try_from(contents.len()).unwrap()], contents].concat()
}

/// With a length of two bytes before it.
pub(super) fn long(contents: &[u8]) -> Vec<u8> {
    [
        &u16::try_from(contents.len()).unwrap().to_be_bytes()[..],
        contents,
    ]
    .concat()
}

pub(super) fn extension(kind: u16, contents: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(contents)].concat()
}

/// server_name with these entries, each of a type and a name.
pub(super) fn server_name(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = entries
        .iter()
        .flat_map(|(kind, name)| [&[*kind][..], &long(name)].concat())
        .collect();
    extension(0, &long(&list))
}

/// A ClientHello message with these extensions; without the field at all when there are none.
pub(super) fn client_hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &short(&[9; 32])].concat();
    body.extend(long(&[0x13, 0x02, 0xc0, 0x2c]));
    body.extend(short(&[0]));
    if !extensions.is_empty() {
        body.extend(long(&extensions.concat()));
    }
    message(1, &body)
}

/// A ServerHello message.
pub(super) fn server_hello(version: u16, random: [u8; 32], suite: u16, extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = [&version.to_be_bytes()[..], &random, &short(&[9; 32])].concat();
    body.extend(suite.to_be_bytes());
    body.push(0);
    if !extensions.is_empty() {
        body.extend(long(&extensions.concat()));
    }
    message(2, &body)
}

/// Pieces of the sizes that are given, over and over.
pub(super) fn in_pieces<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = (*sizes.next()?).clamp(1, bytes.len().max(1));
        let (now, later) = bytes.split_at_checked(size)?;
        bytes = later;
        Some(now)
    })
}
