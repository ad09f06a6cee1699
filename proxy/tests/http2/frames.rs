//! HTTP/2 by hand: frames as bytes, header blocks of literals, and a client that writes and reads them within TLS. It checks
//! nothing, so that it can say everything that is wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
/// A head and nothing behind it.
pub const WHOLE: u8 = END_STREAM | END_HEADERS;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Settings' numbers (RFC 9113 section 6.5.2).
pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;

/// Error codes (RFC 9113 section 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL: u32 = 1;
pub const FLOW_CONTROL: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE: u32 = 6;
pub const REFUSED: u32 = 7;
pub const CANCEL: u32 = 8;
pub const CALM: u32 = 11;

/// One frame, whatever it says (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in values {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A literal that is not indexed, with a name of its own (RFC 7541 section 6.2.2), nothing compressed.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        integer(&mut bytes, text.len(), 7, 0);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// RFC 7541 section 5.1.
pub fn integer(bytes: &mut Vec<u8>, value: usize, bits: u32, flags: u8) {
    let most = (1_usize << bits) - 1;
    if value < most {
        bytes.push(flags | u8::try_from(value).unwrap());
        return;
    }
    bytes.push(flags | u8::try_from(most).unwrap());
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
}

pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|(name, value)| field(name, value))
        .collect()
}

/// What the server said.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM and GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The status of a header block that begins with one. We have told the server to keep no table, so it is an index into the
    /// static one, or a literal.
    pub fn status(&self) -> u16 {
        let mut block = &self.payload[..];
        // A change of the table's size.
        while block[0] & 0xe0 == 0x20 {
            block = &block[1..];
        }
        match block[0] {
            indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
            0x08 | 0x18 | 0x48 => digits(block[1], &block[2..]),
            other => panic!("no status at the beginning: {other:#x} in {block:x?}"),
        }
    }
}

/// Three digits, plain or in Huffman's code (RFC 7541 appendix B).
fn digits(head: u8, bytes: &[u8]) -> u16 {
    let len = usize::from(head & 0x7f);
    if head & 0x80 == 0 {
        return str::from_utf8(&bytes[..len]).unwrap().parse().unwrap();
    }
    let bit = |at: usize| u16::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let take = |at: usize, count: usize| (at..at + count).fold(0, |sum, at| sum << 1 | bit(at));
    let mut at = 0;
    let mut number = 0;
    for _ in 0..3 {
        // `0` to `2` are 00000 to 00010, `3` to `9` are 011001 to 011111.
        let digit = match take(at, 5) {
            short @ 0..=2 => {
                at += 5;
                short
            }
            _ => {
                at += 6;
                take(at - 6, 6) - 0x19 + 3
            }
        };
        number = number * 10 + digit;
    }
    number
}

/// How a wait for frames ended.
#[derive(Debug)]
pub enum Next {
    Frame(Frame),
    /// The server closed the connection.
    End,
    /// Neither, for longer than a test waits.
    Silence,
}

/// A client that says what it is told to.
pub struct Raw {
    tls: StreamOwned<ClientConnection, TcpStream>,
    buf: Vec<u8>,
    /// Nothing more comes.
    ended: bool,
    /// Writing failed: the server is gone.
    deaf: bool,
    /// SETTINGS and PING are answered as they should be.
    pub polite: bool,
    /// All frames so far.
    pub heard: Vec<Frame>,
    pub local: SocketAddr,
}

impl Raw {
    /// On a session that is made; nothing of HTTP/2 was said yet.
    pub fn new(tls: StreamOwned<ClientConnection, TcpStream>) -> Self {
        tls.sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tls.sock.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        Self {
            local: tls.sock.local_addr().unwrap(),
            tls,
            buf: Vec::new(),
            ended: false,
            deaf: false,
            polite: true,
            heard: Vec::new(),
        }
    }

    /// The preface and settings.
    pub fn begin(&mut self, values: &[(u16, u32)]) -> &mut Self {
        let mut all = vec![(HEADER_TABLE_SIZE, 0)];
        all.extend(values);
        self.send([PREFACE, &settings(&all)].concat())
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        if !self.deaf
            && self
                .tls
                .write_all(bytes.as_ref())
                .and_then(|()| self.tls.flush())
                .is_err()
        {
            self.deaf = true;
        }
        self
    }

    pub fn headers(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) -> &mut Self {
        self.send(frame(HEADERS, flags, stream, &block(fields)))
    }

    pub fn data(&mut self, stream: u32, flags: u8, payload: &[u8]) -> &mut Self {
        self.send(frame(DATA, flags, stream, payload))
    }

    /// The next frame, or the end.
    pub fn next(&mut self) -> Next {
        loop {
            if let Some(frame) = self.take() {
                return Next::Frame(frame);
            }
            if self.ended {
                return Next::End;
            }
            if !self.fill() {
                return Next::Silence;
            }
        }
    }

    /// Reads what comes next, also when nothing can be written any more; false when nothing came in time.
    fn fill(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.tls.conn.reader().read(&mut piece) {
                Ok(len @ 1..) => {
                    self.buf.extend_from_slice(&piece[..len]);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Its end, with or without a farewell.
                Ok(0) | Err(_) => self.ended = true,
            }
            if self.ended {
                return true;
            }
            match self.tls.conn.read_tls(&mut self.tls.sock) {
                Ok(_) => self.ended = self.tls.conn.process_new_packets().is_err(),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return false;
                }
                Err(_) => self.ended = true,
            }
        }
    }

    /// A frame that is here already.
    fn take(&mut self) -> Option<Frame> {
        let head = self.buf.get(..9)?;
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        let payload = self.buf.get(9..9 + len)?.to_vec();
        self.buf.drain(..9 + len);
        let frame = Frame {
            kind,
            flags,
            stream,
            payload,
        };
        if self.polite && matches!(kind, SETTINGS | PING) && flags & ACK == 0 {
            let echo = if kind == PING {
                frame.payload.clone()
            } else {
                Vec::new()
            };
            self.send(self::frame(kind, ACK, 0, &echo));
        }
        self.heard.push(frame.clone());
        Some(frame)
    }

    /// What has come by now, without waiting: a flood must not fill both directions.
    pub fn drain(&mut self) {
        self.tls.sock.set_nonblocking(true).unwrap();
        while !self.ended && self.fill() {}
        self.tls.sock.set_nonblocking(false).unwrap();
        while self.take().is_some() {}
    }

    /// True when the server has closed or cannot be written to.
    pub fn is_over(&self) -> bool {
        self.ended || self.deaf
    }

    /// Waits for a frame that `wanted` likes; `None` at the end.
    pub fn until(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        loop {
            match self.next() {
                Next::Frame(frame) if wanted(&frame) => return Some(frame),
                Next::Frame(_) => {}
                Next::End => return None,
                Next::Silence => panic!("neither a frame nor the end; heard {:?}", self.heard),
            }
        }
    }

    /// The status of the answer on `stream`, and its body.
    pub fn answer(&mut self, stream: u32) -> (u16, Vec<u8>) {
        let head = self
            .until(|frame| frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM))
            .unwrap_or_else(|| panic!("the end before an answer on {stream}"));
        assert_eq!(head.kind, HEADERS, "stream {stream} was reset: {}", head.code());
        let mut body = Vec::new();
        let mut last = head.clone();
        while !last.ends_stream() {
            last = self
                .until(|frame| frame.stream == stream)
                .expect("the end before the end of the answer");
            assert_ne!(last.kind, RST_STREAM, "reset: {}", last.code());
            if last.kind == DATA {
                body.extend_from_slice(&last.payload);
            }
        }
        (head.status(), body)
    }

    /// Everything to the end of the connection; the last GOAWAY's code.
    pub fn read_out(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.until(|frame| frame.kind == GOAWAY) {
            code = Some(frame.code());
        }
        code
    }

    /// True when a reset has come; asked a moment after the end, behind which it would come.
    pub fn is_reset(&self) -> bool {
        std::thread::sleep(Duration::from_millis(100));
        self.tls.sock.take_error().unwrap().is_some()
    }

    /// True when the connection is alive: a PING is answered.
    pub fn ping(&mut self) -> bool {
        self.send(frame(PING, 0, 0, b"are-you?"));
        self.until(|frame| frame.kind == PING && frame.flags & ACK != 0 && frame.payload == b"are-you?")
            .is_some()
    }

    /// Says goodbye and waits for the end.
    pub fn leave(mut self) {
        self.tls.conn.send_close_notify();
        self.send([]);
        let _ = self.tls.sock.shutdown(std::net::Shutdown::Write);
        while let Next::Frame(_) = self.next() {}
    }
}
