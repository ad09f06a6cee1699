//! What an HTTP/2 connection and its requests tell each other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::relay::slots::{self, Full, Slot};

/// The state of one connection.
#[derive(Debug)]
pub(in crate::relay) struct Exchange {
    /// Requests that were begun and are not answered yet.
    open: Cell<u32>,
    /// Somebody wants to be polled when a request ends.
    waiting: RefCell<Option<Waker>>,
    /// When the last request ended.
    idle_since: Cell<Instant>,
    /// When a request began or ended or a part of a body moved.
    moved: Cell<Instant>,
    requests: Cell<u64>,
    /// Requests that the client gave up.
    aborts: Cell<u64>,
    /// One for each open request but one.
    slots: RefCell<Vec<Slot>>,
}

impl Exchange {
    pub(in crate::relay) fn new() -> Self {
        let now = Instant::now();
        Self {
            open: Cell::new(0),
            waiting: RefCell::new(None),
            idle_since: Cell::new(now),
            moved: Cell::new(now),
            requests: Cell::new(0),
            aborts: Cell::new(0),
            slots: RefCell::default(),
        }
    }

    /// Requests that were begun so far.
    pub(in crate::relay) fn requests(&self) -> u64 {
        self.requests.get()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.open.get() > 0
    }

    /// A request is here.
    pub(super) fn begin(&self) {
        self.open.set(self.open.get() + 1);
        self.requests.set(self.requests.get() + 1);
        self.moved.set(Instant::now());
    }

    /// Requests at once are bounded as connections are: the one that was just begun needs a slot, unless it is the only
    /// one, which goes with its connection's.
    pub(super) fn take_slot(&self, slots: &Arc<slots::Agent>) -> Result<(), Full> {
        if self.open.get() > 1 {
            self.slots.borrow_mut().push(slots.take()?);
        }
        Ok(())
    }

    /// A part of a body moved.
    pub(super) fn moved(&self) {
        self.moved.set(Instant::now());
    }

    /// A request is answered, or was given up by the client.
    pub(in crate::relay) fn end(&self, given_up: bool) {
        let open = self.open.get().saturating_sub(1);
        self.open.set(open);
        self.slots.borrow_mut().truncate(open.saturating_sub(1) as usize);
        if given_up {
            self.aborts.set(self.aborts.get() + 1);
        }
        let now = Instant::now();
        self.idle_since.set(now);
        self.moved.set(now);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The task is polled when the next request ends.
    pub(super) fn wake_at_end(&self, cx: &Context<'_>) {
        *self.waiting.borrow_mut() = Some(cx.waker().clone());
    }

    /// Completes when the client gave up more requests than it let us answer, and `allowed` more.
    pub(super) async fn given_up(&self, allowed: u64) {
        poll_fn(|cx| {
            let answered = self.requests.get() - self.aborts.get();
            if self.aborts.get() > answered + allowed {
                return Poll::Ready(());
            }
            self.wake_at_end(cx);
            Poll::Pending
        })
        .await;
    }

    /// Completes when no request was open for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let since = if self.is_busy() {
                Instant::now()
            } else {
                self.idle_since.get()
            };
            if since + limit <= Instant::now() {
                return;
            }
            sleep_until(since + limit).await;
        }
    }

    /// Completes when requests are open and nothing moved for `limit`.
    pub(super) async fn stuck(&self, limit: Duration) {
        loop {
            let since = if self.is_busy() {
                self.moved.get()
            } else {
                Instant::now()
            };
            if since + limit <= Instant::now() {
                return;
            }
            sleep_until(since + limit).await;
        }
    }
}
