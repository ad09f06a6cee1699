//! Messages in any pieces, read into buffers of any size, taken, taken again and moved at any moment.

use std::collections::VecDeque;
use std::io::Write;
use std::task::Waker;

use proptest::prelude::*;

use super::*;
use std::pin::Pin;
use tokio::io::ReadBuf;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\n\r\n";
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\n\r\n";

/// What is sent, in these pieces, and then nothing, or the end.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    ends: bool,
}

impl Pieces {
    fn new(bytes: &[u8], sizes: &[usize], ends: bool) -> Self {
        let mut pieces = VecDeque::new();
        let (mut rest, mut sizes) = (bytes, sizes.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            pieces.push_back(piece.to_vec());
            rest = after;
        }
        Self { pieces, ends }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return if self.ends {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

#[derive(Clone, Copy, Debug)]
enum How {
    Length,
    Chunked,
    UntilEnd,
}

/// What whoever uses a window may do whenever it has the word.
#[derive(Clone, Copy, Debug)]
enum Do {
    Take,
    Rewind,
    Untake,
    Fill,
    Decode,
}

fn body_of(how: How, data: &[u8], chunks: &[usize]) -> (Body, Vec<u8>) {
    match how {
        How::Length if data.is_empty() => (Body::Ended, Vec::new()),
        How::Length => (Body::Length(data.len() as u64), data.to_vec()),
        How::UntilEnd => (Body::UntilEnd, data.to_vec()),
        How::Chunked => {
            let mut wire = Vec::new();
            let (mut rest, mut sizes) = (data, chunks.iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                write!(
                    wire,
                    "{:X};x=\"{}\"\r\n",
                    chunk.len(),
                    "y".repeat(chunk.len() % 7)
                )
                .unwrap();
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
                rest = after;
            }
            wire.extend_from_slice(b"0\r\nT: v\r\n\r\n");
            (Body::Chunked(Chunked::new()), wire)
        }
    }
}

/// One message through `window`, which begins with its head and with whatever was read together with it.
fn read_one(
    window: &mut Window,
    io: &mut Pieces,
    body: Body,
    doing: &mut impl Iterator<Item = Do>,
) -> Vec<u8> {
    let mut cx = Context::from_waker(Waker::noop());
    while window.raw().len() < HEAD.len() {
        assert!(window.has_room());
        assert_eq!(
            window.poll_fill(io, &mut cx).map(Result::unwrap),
            Poll::Ready(Filled::Some)
        );
    }
    assert_eq!(&window.raw()[..HEAD.len()], HEAD);
    window.begin_body(HEAD.len(), body);
    let mut got: Vec<u8> = Vec::new();
    // What was taken when the head was forgotten cannot be taken again.
    let mut lost = 0;
    let mut steps = 0;
    loop {
        steps += 1;
        assert!(steps < 100_000, "it makes no progress");
        match doing.next().unwrap() {
            Do::Take => {
                got.extend_from_slice(window.data());
                window.take_data();
                assert!(window.data().is_empty());
            }
            Do::Rewind => {
                window.rewind();
                lost = got.len();
            }
            // Not for ever: only what was taken makes room.
            Do::Untake if window.is_whole() && steps < 200 => {
                assert_eq!(window.head(), HEAD);
                window.untake_data();
                assert_eq!(lost, 0);
                assert!(window.data().starts_with(&got), "what was taken is there again");
                got.clear();
            }
            Do::Untake => {}
            Do::Fill if window.has_room() => match window.poll_fill(io, &mut cx).map(Result::unwrap) {
                Poll::Ready(Filled::End) => {
                    window.decode().unwrap();
                    if !window.is_ended() {
                        assert!(window.is_until_end(), "the end within a message");
                        window.end_body();
                    }
                }
                Poll::Ready(Filled::Some) => {}
                Poll::Pending => assert_eq!(
                    window.buffer.is_some(),
                    window.end > 0,
                    "who waits holds a buffer for nothing"
                ),
            },
            Do::Fill if window.data().is_empty() => {
                // As the relay does it: what was taken makes room.
                window.decode().unwrap();
                if !window.has_room() && !window.is_ended() && window.data().is_empty() {
                    window.rewind();
                    lost = got.len();
                    assert!(
                        window.has_room(),
                        "nothing was there to take, and nothing can be read"
                    );
                }
            }
            Do::Fill => {}
            Do::Decode => window.decode().unwrap(),
        }
        assert!(window.bytes().len() <= window.buffers.size());
        assert_eq!(window.room(), window.buffers.size() - window.end);
        assert!(window.head <= window.data.start && window.data.start <= window.data.end);
        assert!(
            window.data.end <= window.raw && window.raw <= window.end && window.end <= window.buffers.size()
        );
        assert!(
            window.buffer.is_some() || window.end == 0,
            "bytes without a buffer"
        );
        if window.is_ended() && window.data().is_empty() {
            return got;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_message_in_any_pieces_gives_the_same_data(
        size in 48..400_usize,
        messages in prop::collection::vec(
            (prop::sample::select(vec![How::Length, How::Chunked]), prop::collection::vec(any::<u8>(), 0..600)),
            1..4,
        ),
        last in prop::option::of(prop::collection::vec(any::<u8>(), 0..600)),
        chunks in prop::collection::vec(1..90_usize, 1..5),
        pieces in prop::collection::vec(1..200_usize, 1..6),
        known in 0..60_usize,
        doing in prop::collection::vec(
            prop::sample::select(vec![Do::Take, Do::Rewind, Do::Untake, Do::Fill, Do::Fill, Do::Decode]),
            0..40,
        ),
    ) {
        // Whatever is done, these are done too, so that it comes to an end.
        let doing = [doing, vec![Do::Fill, Do::Decode, Do::Take]].concat();
        let mut doing = doing.into_iter().cycle();
        let mut wire = Vec::new();
        let mut expected = Vec::new();
        for (how, data) in messages.into_iter().chain(last.map(|data| (How::UntilEnd, data))) {
            let (body, bytes) = body_of(how, &data, &chunks);
            wire.extend_from_slice(HEAD);
            wire.extend(bytes);
            expected.push((body, data));
        }
        let until_end = matches!(expected.last(), Some((Body::UntilEnd, _)));
        if !until_end {
            wire.extend_from_slice(NEXT);
        }
        let known = known.min(size).min(wire.len());
        let buffers = Rc::new(Buffers::new(size));
        let mut window = Window::new(Rc::clone(&buffers));
        let mut cx = Context::from_waker(Waker::noop());
        // A part of it is there before it is known to be a message.
        prop_assert!(window.poll_fill(&mut &wire[..known], &mut cx).is_ready());
        let mut io = Pieces::new(&wire[known..], &pieces, until_end);
        for (body, data) in expected {
            let got = read_one(&mut window, &mut io, body, &mut doing);
            prop_assert!(got == data, "{} bytes for {}", got.len(), data.len());
            window.start();
        }
        while window.has_room() && window.poll_fill(&mut io, &mut cx).map(Result::unwrap) == Poll::Ready(Filled::Some) {}
        prop_assert_eq!(window.raw(), if until_end { b"".as_slice() } else { NEXT });
        prop_assert_eq!(window.has_more(), !until_end);
    }

    #[test]
    fn a_fault_is_found_wherever_it_stands_and_stays(
        before in prop::collection::vec(any::<u8>(), 0..300),
        chunks in prop::collection::vec(1..90_usize, 1..5),
        fault in prop::sample::select(vec!["x\r\n", "5 \r\n", "5\nhello", "-1\r\n", "3\r\nabcd", "0\r\n folded\r\n", "\n"]),
        pieces in prop::collection::vec(1..100_usize, 1..6),
    ) {
        let (body, mut wire) = body_of(How::Chunked, &before, &chunks);
        wire.truncate(wire.len() - b"0\r\nT: v\r\n\r\n".len());
        wire.extend_from_slice(fault.as_bytes());
        let mut window = Window::new(Rc::new(Buffers::new(256)));
        window.begin_body(0, body);
        let mut io = Pieces::new(&wire, &pieces, true);
        let mut cx = Context::from_waker(Waker::noop());
        let mut got = Vec::new();
        let found = loop {
            let decoded = window.decode();
            got.extend_from_slice(window.data());
            window.take_data();
            if decoded.is_err() {
                break true;
            }
            window.rewind();
            if window.poll_fill(&mut io, &mut cx).map(Result::unwrap) != Poll::Ready(Filled::Some) {
                break false;
            }
        };
        prop_assert!(found && !window.is_ended());
        // Of what is before the fault nothing is lost; data of its own chunk may be before it too.
        prop_assert!(got.starts_with(&before) && got.len() <= before.len() + 3, "{}", got.len());
        prop_assert!(window.decode().is_err(), "forgotten");
    }
}
