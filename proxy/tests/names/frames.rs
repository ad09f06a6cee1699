//! Just enough HTTP/2 to send one request whose fields are whatever a test likes, and to read what becomes of it.

use std::io::{Read, Write};

use crate::harness::Message;

/// What became of the request.
#[derive(Debug)]
pub enum Heard {
    /// An answer; its head is only the status and what names our reason.
    Answer(Message),
    /// RST_STREAM with this code (RFC 9113 section 7).
    Reset(u32),
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An integer with a prefix of seven bits (RFC 7541 section 5.1), and a string without Huffman code.
fn string(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match u8::try_from(text.len()) {
        Ok(length) if length < 127 => out.push(length),
        _ => {
            let mut rest = text.len() - 127;
            out.push(127);
            while rest >= 128 {
                out.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            out.push(u8::try_from(rest).unwrap());
        }
    }
    out.extend_from_slice(text);
    out
}

/// Sends GET with these fields after method, scheme and path; reads until the stream is over.
pub fn ask(session: &mut (impl Read + Write), fields: &[(&str, &str)]) -> Heard {
    let usual = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/api/v2/series"),
    ];
    let mut block = Vec::new();
    for (name, value) in usual.iter().chain(fields) {
        // Literal, never indexed, with a new name (RFC 7541 section 6.2.3).
        block.push(0x10);
        block.extend(string(name.as_bytes()));
        block.extend(string(value.as_bytes()));
    }
    let bytes = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        // END_STREAM and END_HEADERS.
        frame(1, 0x5, 1, &block),
    ]
    .concat();
    session.write_all(&bytes).unwrap();
    let mut message = Message::default();
    loop {
        let mut head = [0; 9];
        session.read_exact(&mut head).expect("a frame");
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        session.read_exact(&mut payload).unwrap();
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let ours = head[5..9] == [0, 0, 0, 1];
        match head[3] {
            0 if ours => message.body.extend_from_slice(&payload),
            1 if ours => message.head = format!("HTTP/2 {} -\r\n", status(&payload)),
            3 if ours => return Heard::Reset(number(0)),
            7 => panic!("GOAWAY with {}", number(4)),
            _ => {}
        }
        if ours && head[3] <= 1 && head[4] & 1 == 1 {
            return Heard::Answer(message);
        }
    }
}

/// The status, which comes first (RFC 9113 section 8.3): from the static table, or as a literal of its name.
fn status(block: &[u8]) -> u16 {
    let mut at = 0;
    // A change of the table's size.
    while block[at] & 0xe0 == 0x20 {
        at += 1;
    }
    match block[at] {
        0x88 => 200,
        0x8c => 400,
        0x8e => 500,
        first if first & 0x0f == 8 => {
            let length = usize::from(block[at + 1] & 0x7f);
            let text = &block[at + 2..at + 2 + length];
            if block[at + 1] & 0x80 == 0 {
                str::from_utf8(text).unwrap().parse().unwrap()
            } else {
                digits(text)
            }
        }
        other => panic!("a status that is written as {other:#x}"),
    }
}

/// Three digits in the code of RFC 7541 appendix B: 0 to 2 in five bits, 3 to 9 in six, from 011001 on.
fn digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u16> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)))
        .collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |count: usize| bits[at..at + count].iter().fold(0, |sum, bit| sum << 1 | bit);
        let (digit, length) = match take(5) {
            short @ 0..=2 => (short, 5),
            _ => (take(6) - 0x19 + 3, 6),
        };
        at += length;
        number = number * 10 + digit;
    }
    number
}

#[test]
fn statuses_are_read() {
    // 0 is 00000, 1 is 00001, 2 is 00010, 3 is 011001, 4 is 011010, 5 is 011011: 421 and 503, padded with ones.
    assert_eq!(digits(&[0b0110_1000, 0b0100_0001]), 421);
    assert_eq!(digits(&[0b0110_1100, 0b0000_1100, 0b1111_1111]), 503);
    assert_eq!(status(&[0x3f, 0x88][1..]), 200);
    assert_eq!(status(&[0x48, 3, b'4', b'2', b'1']), 421);
}
