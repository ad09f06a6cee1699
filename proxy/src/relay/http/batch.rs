//! What is written next of an HTTP/1 message: lead (head, size of a chunk), data, tail, in as few writes as the other side
//! takes.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// Data up to this size is copied behind its head: one write of one piece costs the kernel less than one of two.
const SMALL: usize = 4096;

/// The bytes around the data, and how far all of it is written.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In front of the data. Filled by whoever makes a head.
    pub(super) lead: Vec<u8>,
    tail: &'static [u8],
    /// Data and tail were copied behind the lead.
    joined: bool,
    written: usize,
    pending: bool,
}

impl Batch {
    /// Nothing yet, with an empty buffer for what goes in front.
    pub(super) fn with_lead(lead: Vec<u8>) -> Self {
        Self {
            lead,
            ..Self::default()
        }
    }

    /// Something is to be written. `chunked` puts the framing of one chunk around `data` bytes, if there are any, and
    /// `ended` that of the end behind them (RFC 9112 section 7.1).
    pub(super) fn stage(&mut self, data: usize, chunked: bool, ended: bool) {
        self.tail = match (chunked, data, ended) {
            (false, _, _) | (true, 0, false) => b"",
            (true, 0, true) => b"0\r\n\r\n",
            (true, _, false) => b"\r\n",
            (true, _, true) => b"\r\n0\r\n\r\n",
        };
        if chunked && data > 0 {
            // Writing into a vector cannot fail.
            let _ = write!(self.lead, "{data:x}\r\n");
        }
        self.joined = false;
        self.written = 0;
        self.pending = !self.lead.is_empty() || data > 0 || !self.tail.is_empty();
    }

    /// True until everything staged is written.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// How much of what was staged last is written, in bytes.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Nothing is staged any more.
    pub(super) fn clear(&mut self) {
        self.lead.clear();
        self.tail = b"";
        self.pending = false;
    }

    /// Writes it. `data` are the bytes that it was staged for.
    pub(super) fn poll_write<IO: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        data: &[u8],
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.joined && self.written == 0 && data.len() <= SMALL {
            self.lead.extend_from_slice(data);
            self.lead.extend_from_slice(self.tail);
            self.joined = true;
        }
        let (data, tail) = if self.joined {
            (&[][..], &[][..])
        } else {
            (data, self.tail)
        };
        let parts = [self.lead.as_slice(), data, tail];
        let total = parts.iter().map(|part| part.len()).sum();
        while self.written < total {
            let mut slices = [IoSlice::new(&[]); 3];
            let mut used = 0;
            let mut skip = self.written;
            for part in parts {
                let start = skip.min(part.len());
                skip -= start;
                if start < part.len() {
                    slices[used] = IoSlice::new(&part[start..]);
                    used += 1;
                }
            }
            let slices = &slices[..used];
            let written = match slices {
                [one] => ready!(Pin::new(&mut *io).poll_write(cx, one)),
                several => ready!(Pin::new(&mut *io).poll_write_vectored(cx, several)),
            }?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.clear();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn everything_is_written_in_order_however_little_is_taken_at_a_time() {
        for (data, chunked, ended, expected) in [
            (&b"body"[..], false, true, &b"head\r\n\r\nbody"[..]),
            (b"", false, true, b"head\r\n\r\n"),
            (b"body", true, false, b"head\r\n\r\n4\r\nbody\r\n"),
            (b"body", true, true, b"head\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
            (b"", true, true, b"head\r\n\r\n0\r\n\r\n"),
            (b"", true, false, b"head\r\n\r\n"),
        ] {
            for size in 1..=expected.len() {
                let (mut here, mut there) = tokio::io::duplex(size);
                let mut batch = Batch::default();
                batch.lead.extend_from_slice(b"head\r\n\r\n");
                batch.stage(data.len(), chunked, ended);
                let write = async {
                    poll_fn(|cx| batch.poll_write(data, &mut here, cx)).await.unwrap();
                    drop(here);
                    assert!(!batch.is_pending());
                };
                let mut got = Vec::new();
                let (_, read) =
                    tokio::join!(write, tokio::io::AsyncReadExt::read_to_end(&mut there, &mut got));
                read.unwrap();
                assert_eq!(got, expected, "{size} at a time");
            }
        }
    }

    #[tokio::test]
    async fn much_data_is_written_from_where_it_is() {
        let data = vec![7; SMALL + 1];
        let (mut here, mut there) = tokio::io::duplex(1000);
        let mut batch = Batch::default();
        batch.lead.extend_from_slice(b"head");
        batch.stage(data.len(), true, true);
        let write = async {
            poll_fn(|cx| batch.poll_write(&data, &mut here, cx))
                .await
                .unwrap();
            drop(here);
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(write, tokio::io::AsyncReadExt::read_to_end(&mut there, &mut got));
        read.unwrap();
        assert_eq!(got, [b"head1001\r\n", data.as_slice(), b"\r\n0\r\n\r\n"].concat());
    }

    /// Takes so many bytes of a write, at most, and now and then none yet; remembers how often it was asked.
    struct Narrow {
        sizes: std::iter::Cycle<std::vec::IntoIter<usize>>,
        vectored: bool,
        got: Vec<u8>,
    }

    impl Narrow {
        fn take(&mut self, parts: &[&[u8]], cx: &Context<'_>) -> Poll<io::Result<usize>> {
            let all = parts.concat();
            let Some(size @ 1..) = self.sizes.next() else {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            assert!(!all.is_empty(), "a write of nothing");
            let size = size.min(all.len());
            self.got.extend_from_slice(&all[..size]);
            Poll::Ready(Ok(size))
        }
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.take(&[buf], cx)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let used = if self.vectored { bufs.len() } else { 1 };
            let parts: Vec<&[u8]> = bufs[..used].iter().map(|buf| &**buf).collect();
            self.take(&parts, cx)
        }

        fn is_write_vectored(&self) -> bool {
            self.vectored
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_batches_in_a_row_are_written_as_they_were_staged(
            batches in proptest::collection::vec(
                (proptest::collection::vec(proptest::num::u8::ANY, 0..30), proptest::collection::vec(proptest::num::u8::ANY, 0..300)),
                1..8,
            ),
            chunked in proptest::bool::ANY,
            mut sizes in proptest::collection::vec(0..90_usize, 0..6),
            vectored in proptest::bool::ANY,
        ) {
            sizes.push(7);
            let mut io = Narrow { sizes: sizes.into_iter().cycle(), vectored, got: Vec::new() };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut batch = Batch::default();
            let mut expected = Vec::new();
            let last = batches.len() - 1;
            for (n, (lead, data)) in batches.into_iter().enumerate() {
                expected.extend_from_slice(&lead);
                batch.lead.extend_from_slice(&lead);
                batch.stage(data.len(), chunked, n == last);
                if chunked && !data.is_empty() {
                    expected.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                }
                expected.extend_from_slice(&data);
                if chunked && !data.is_empty() {
                    expected.extend_from_slice(b"\r\n");
                }
                if chunked && n == last {
                    expected.extend_from_slice(b"0\r\n\r\n");
                }
                if batch.is_pending() {
                    runtime.block_on(poll_fn(|cx| batch.poll_write(&data, &mut io, cx))).unwrap();
                }
                proptest::prop_assert!(!batch.is_pending() && io.got == expected, "batch {}", n);
            }
        }
    }

    #[test]
    fn nothing_is_not_pending() {
        let mut batch = Batch::default();
        batch.stage(0, true, false);
        assert!(!batch.is_pending());
    }
}
