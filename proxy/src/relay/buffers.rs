//! The buffers of one data thread: lent to a connection while bytes of a message are in one, so that an idle connection
//! holds none.

use std::cell::RefCell;
use std::fmt;

/// One buffer: what is in it, and room behind that. Nobody lets it grow.
pub(super) type Buffer = Vec<u8>;

/// How many are kept when nobody uses them: requests that are on their way at once, on one thread of a busy node.
const SPARE: usize = 64;

/// A head that grew larger, with the small body behind it, is not worth its memory: an Agent's has some 500 bytes.
const HEAD: usize = 8 * 1024;

/// The spare ones.
pub(super) struct Buffers {
    spare: RefCell<Vec<Buffer>>,
    /// For heads that are to be written.
    heads: RefCell<Vec<Buffer>>,
    size: usize,
}

impl Buffers {
    /// All of `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        Self {
            spare: RefCell::default(),
            heads: RefCell::default(),
            size,
        }
    }

    /// How long each is, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The one that was used last, since it is in the processor's caches.
    pub(super) fn take(&self) -> Buffer {
        let spare = self.spare.borrow_mut().pop();
        // Never filled with zeros: that would make memory of what most messages do not reach.
        spare.unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    /// Nothing in it is needed any more.
    pub(super) fn give_back(&self, mut buffer: Buffer) {
        buffer.clear();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    }

    /// A buffer for a head, which may grow.
    pub(super) fn take_head(&self) -> Buffer {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    /// See [`Buffers::give_back`].
    pub(super) fn give_back_head(&self, mut head: Buffer) {
        head.clear();
        let mut heads = self.heads.borrow_mut();
        if heads.len() < 2 * SPARE && head.capacity() <= HEAD {
            heads.push(head);
        }
    }

    /// Lets half of the spare ones go: called from time to time, it leaves a quiet thread with next to none.
    pub(super) fn trim(&self) {
        let mut spare = self.spare.borrow_mut();
        let go = spare.len().div_ceil(2);
        // The ones that were used last are at the end.
        spare.drain(..go);
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("spare", &self.spare.borrow().len())
            .finish_non_exhaustive()
    }
}
