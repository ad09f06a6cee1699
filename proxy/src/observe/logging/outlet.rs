//! The way of lines to standard error off the data path: a bounded queue and one thread that formats and writes.
//!
//! Whoever reads our standard error may stop reading (a stuck journal, a full disk behind a pipe). Then the writing thread
//! waits, and nobody else: the queue fills, what does not fit is dropped and counted. One queue keeps the order; each kind
//! of line has room of its own in it, so that a flood of one kind costs no line of another.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::clock;

/// What one kind of line may hold in the queue, in bytes, the queue's own overhead included: 2 MiB are some 5,000 requests of
/// the access log. All three together are what a reader that is stuck costs in memory.
const ROOM: [usize; KINDS] = [2 << 20, 1 << 20, 1 << 20];
/// One write holds whole lines and at most this many bytes: the kernel does not mix such a write to a pipe with that of another
/// process (PIPE_BUF, linux/limits.h; pipe(7)), and master and worker write to the same one. A longer line goes alone.
const ATOMIC: usize = 4096;
/// How long access lines may be gathered, so that a busy proxy wakes the writer fifty times a second and not once a request.
const GATHER: Duration = Duration::from_millis(20);
/// Entries taken from the queue at once.
const TAKE: usize = 256;
/// How often a loss that goes on is told, and how long none must be lost until that is told.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// What an entry costs beside its text.
const OVERHEAD: usize = size_of::<Entry>() + 16;

/// Lines are of one of three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request or connection of the access log.
    Access,
    /// Level `info` and below.
    Detail,
    /// Warnings and errors.
    Warning,
}

const KINDS: usize = 3;

/// Lines that were dropped since the process started, because nobody read standard error fast enough, or because writing
/// to it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// Requests and connections of the access log.
    pub access: u64,
    /// Lines of level `info` and below.
    pub details: u64,
    /// Warnings and errors.
    pub warnings: u64,
}

impl Lost {
    /// Every kind with its label.
    pub fn kinds(&self) -> [(&'static str, u64); KINDS] {
        [
            ("access", self.access),
            ("detail", self.details),
            ("warning", self.warnings),
        ]
    }

    /// True when something was lost.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    fn add(&mut self, kind: Kind, lines: u64) {
        match kind {
            Kind::Access => self.access += lines,
            Kind::Detail => self.details += lines,
            Kind::Warning => self.warnings += lines,
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} access lines, {} warnings, {} other lines",
            self.access, self.warnings, self.details
        )
    }
}

/// Makes its lines when it is called, by the macros of `tracing`.
pub type Tell = Box<dyn FnOnce() + Send>;

enum What {
    Line(Box<[u8]>),
    /// Not formatted yet; the time is that of the event.
    Later(SystemTime, Tell),
}

struct Entry {
    kind: Kind,
    size: usize,
    what: What,
}

/// The queue.
#[derive(Default)]
pub struct Outlet {
    queue: Mutex<Queue>,
    /// The writer waits here for entries.
    filled: Condvar,
    /// [`Outlet::flush`] waits here for the writer.
    written: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    used: [usize; KINDS],
    lost: Lost,
    pushed: u64,
    written: u64,
    waiting: Waiting,
    flushing: usize,
}

#[derive(Default, PartialEq, Eq)]
enum Waiting {
    #[default]
    No,
    /// For anything.
    Idle,
    /// For more access lines, or anything that should be seen at once.
    Gathering,
}

impl Queue {
    /// The writer should not gather any longer.
    fn hurry(&self) -> bool {
        self.flushing > 0
            || self.used[Kind::Detail as usize] > 0
            || self.used[Kind::Warning as usize] > 0
            || self.used[Kind::Access as usize] > ROOM[Kind::Access as usize] / 4
    }
}

thread_local! {
    /// Where the writing thread formats lines into; absent on every other thread.
    static FORMATTED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// On the writing thread: appends to what it writes next, and returns true.
pub(super) fn on_writer(line: &[u8]) -> bool {
    FORMATTED.with_borrow_mut(|formatted| {
        formatted.as_mut().is_some_and(|formatted| {
            formatted.extend_from_slice(line);
            true
        })
    })
}

fn is_writer() -> bool {
    FORMATTED.with_borrow(Option::is_some)
}

impl Outlet {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here panics half way through a change.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line. Never blocks for longer than another thread needs to do the same.
    pub fn line(&self, kind: Kind, line: &[u8]) {
        self.push(kind, line.len(), || What::Line(line.into()));
    }

    /// Queues lines that are yet to be made, on the writing thread: `size` is what `tell` holds, in bytes.
    pub fn later(&self, kind: Kind, size: usize, tell: impl FnOnce() + Send + 'static) {
        let now = SystemTime::now();
        self.push(kind, size, || What::Later(now, Box::new(tell)));
    }

    fn push(&self, kind: Kind, size: usize, what: impl FnOnce() -> What) {
        let size = size + OVERHEAD;
        let mut queue = self.lock();
        let used = queue.used[kind as usize];
        if used + size > ROOM[kind as usize] {
            queue.lost.add(kind, 1);
            return;
        }
        queue.used[kind as usize] = used + size;
        queue.pushed += 1;
        queue.entries.push_back(Entry {
            kind,
            size,
            what: what(),
        });
        // A wake-up is a system call: only when the writer waits for this.
        let wake = match queue.waiting {
            Waiting::No => false,
            Waiting::Idle => true,
            Waiting::Gathering => queue.hurry(),
        };
        if wake {
            queue.waiting = Waiting::No;
            drop(queue);
            self.filled.notify_one();
        }
    }

    /// What was dropped so far.
    pub fn lost(&self) -> Lost {
        self.lock().lost
    }

    /// Waits until what is queued by now is written, at most `limit`; true when it is. On the writing thread itself nothing can
    /// be waited for.
    pub fn flush(&self, limit: Duration) -> bool {
        if is_writer() {
            return false;
        }
        let mut queue = self.lock();
        let wanted = queue.pushed;
        queue.flushing += 1;
        self.filled.notify_one();
        let (mut queue, _) = self
            .written
            .wait_timeout_while(queue, limit, |queue| queue.written < wanted)
            .unwrap_or_else(PoisonError::into_inner);
        queue.flushing -= 1;
        queue.written >= wanted
    }

    /// Takes entries, at most [`TAKE`]; none when `until` came.
    fn take(&self, until: Option<Instant>) -> Vec<Entry> {
        let mut queue = self.lock();
        while queue.entries.is_empty() {
            queue.waiting = Waiting::Idle;
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            queue = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.filled
                        .wait_timeout(queue, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if !queue.entries.is_empty() && !queue.hurry() {
            queue.waiting = Waiting::Gathering;
            queue = self
                .filled
                .wait_timeout_while(queue, GATHER, |queue| !queue.hurry())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        queue.waiting = Waiting::No;
        let n = queue.entries.len().min(TAKE);
        let taken: Vec<Entry> = queue.entries.drain(..n).collect();
        for entry in &taken {
            queue.used[entry.kind as usize] -= entry.size;
        }
        if queue.entries.is_empty() {
            // A flood that is over is given back.
            queue.entries.shrink_to(TAKE);
        }
        taken
    }

    fn done(&self, entries: usize, lost: Lost) {
        let mut queue = self.lock();
        queue.written += entries as u64;
        queue.lost.access += lost.access;
        queue.lost.details += lost.details;
        queue.lost.warnings += lost.warnings;
        drop(queue);
        self.written.notify_all();
    }

    /// The writing thread: writes what comes, for as long as `go_on` says.
    pub fn run(&self, out: impl Write, mut go_on: impl FnMut() -> bool) {
        FORMATTED.set(Some(Vec::new()));
        let mut paper = Paper::new(out);
        let mut losses = Losses::default();
        while go_on() {
            let taken = self.take(losses.look_again());
            losses.tell(self.lost(), &mut paper);
            let n = taken.len();
            for entry in taken {
                match entry.what {
                    What::Line(line) => paper.line(entry.kind, &line),
                    What::Later(at, tell) => clock::at(at, || paper.told(entry.kind, tell)),
                }
            }
            let lost = paper.write();
            self.done(n, lost);
        }
        FORMATTED.set(None);
    }
}

/// Lines that are about to be written.
struct Paper<W> {
    out: W,
    lines: Vec<u8>,
    holds: [(Kind, u64); KINDS],
    lost: Lost,
}

impl<W: Write> Paper<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            lines: Vec::with_capacity(ATOMIC),
            holds: [(Kind::Access, 0), (Kind::Detail, 0), (Kind::Warning, 0)],
            lost: Lost::default(),
        }
    }

    fn line(&mut self, kind: Kind, line: &[u8]) {
        if !self.lines.is_empty() && self.lines.len() + line.len() > ATOMIC {
            self.put();
        }
        self.lines.extend_from_slice(line);
        self.holds[kind as usize].1 += 1;
    }

    /// The line that `tell` makes.
    fn told(&mut self, kind: Kind, tell: impl FnOnce()) {
        tell();
        let mut formatted = FORMATTED.take().unwrap_or_default();
        if !formatted.is_empty() {
            self.line(kind, &formatted);
            formatted.clear();
        }
        FORMATTED.set(Some(formatted));
    }

    /// The same for a line about losses, which is no loss itself when it cannot be written.
    fn told_of_loss(&mut self, tell: impl FnOnce()) {
        self.put();
        self.told(Kind::Warning, tell);
        self.holds[Kind::Warning as usize].1 = 0;
    }

    /// Writes what it holds.
    fn put(&mut self) {
        let failed = !self.lines.is_empty() && write_all(&mut self.out, &self.lines).is_err();
        for (kind, lines) in &mut self.holds {
            let lines = std::mem::take(lines);
            if failed {
                self.lost.add(*kind, lines);
            }
        }
        self.lines.clear();
        // A single very long line is not kept room for.
        self.lines.shrink_to(ATOMIC);
    }

    /// Writes the rest; what could not be written since the last time.
    fn write(&mut self) -> Lost {
        self.put();
        std::mem::take(&mut self.lost)
    }
}

/// Standard error without the lock of `std::io::Stderr`: whoever complains there must not wait for a writer that is stuck.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As `Write::write_all`, but waits where somebody made standard error non-blocking: it is shared with whoever started us.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_stderr()?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for_stderr() -> io::Result<()> {
    let stderr = io::stderr();
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::NONE)?;
    Ok(())
}

/// Tells that lines were lost when that begins, now and then while it goes on, and when it is over.
#[derive(Default)]
struct Losses {
    told: Lost,
    /// When a loss was last told; absent when none is going on.
    since: Option<Instant>,
}

impl Losses {
    /// When there is something to tell even if no line comes.
    fn look_again(&self) -> Option<Instant> {
        self.since.map(|since| since + TELL_AGAIN)
    }

    fn tell(&mut self, now: Lost, paper: &mut Paper<impl Write>) {
        let due = self.since.is_none_or(|since| since.elapsed() >= TELL_AGAIN);
        if !due {
            return;
        }
        if now != self.told {
            self.since = Some(Instant::now());
            let before = std::mem::replace(&mut self.told, now);
            paper.told_of_loss(|| {
                tracing::warn!(
                    access = now.access - before.access,
                    details = now.details - before.details,
                    warnings = now.warnings - before.warnings,
                    "log lines were lost: standard error is not read as fast as they come, or cannot be written"
                );
            });
        } else if self.since.take().is_some() {
            paper.told_of_loss(|| {
                tracing::info!(
                    access = now.access,
                    details = now.details,
                    warnings = now.warnings,
                    "log lines are not lost any more; so many were since the start"
                );
            });
        }
    }
}

#[cfg(feature = "counts")]
pub(crate) mod counts;
#[cfg(test)]
mod tests;
