//! The queue and its writer against readers that are quick, slow, stuck and gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;

const LONG: Duration = Duration::from_secs(30);

/// What was written, and a gate that holds writes back while it is shut.
#[derive(Clone, Default)]
struct Reader(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    text: Vec<u8>,
    writes: Vec<usize>,
    shut: bool,
    gone: bool,
}

impl Reader {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        let text = self.0.0.lock().unwrap().text.clone();
        String::from_utf8(text)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.0.0.lock().unwrap();
        let mut state = self.0.1.wait_while(state, |state| state.shut).unwrap();
        if state.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.writes.push(bytes.len());
        state.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Started {
    outlet: Arc<Outlet>,
    reader: Reader,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Started {
    fn new(shut: bool) -> Self {
        let outlet = Arc::new(Outlet::default());
        let reader = Reader::default();
        reader.set(|state| state.shut = shut);
        let stop = Arc::new(AtomicBool::new(false));
        let (its, to, until) = (Arc::clone(&outlet), reader.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || its.run(to, || !until.load(Ordering::Relaxed)));
        Self {
            outlet,
            reader,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.reader.set(|state| state.shut = false);
        self.stop.store(true, Ordering::Relaxed);
        self.outlet.line(Kind::Warning, b"the end\n");
        self.thread.take().unwrap().join().unwrap();
    }
}

fn told(text: String) -> impl FnOnce() + Send + 'static {
    move || assert!(on_writer(text.as_bytes()), "not on the writing thread")
}

#[test]
fn lines_of_one_thread_keep_their_order_whatever_their_kind() {
    let log = Started::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let outlet = &log.outlet;
            scope.spawn(move || {
                for n in 0..500 {
                    let text = format!("{thread} {n}\n");
                    match n % 3 {
                        0 => outlet.line(Kind::Detail, text.as_bytes()),
                        1 => outlet.line(Kind::Warning, text.as_bytes()),
                        _ => outlet.later(Kind::Access, text.len(), told(text.clone())),
                    }
                }
            });
        }
    });
    assert!(log.outlet.flush(LONG));
    let lines = log.reader.lines();
    for thread in 0..4 {
        let start = format!("{thread} ");
        let mine: Vec<_> = lines.iter().filter(|line| line.starts_with(&start)).collect();
        let expected: Vec<_> = (0..500).map(|n| format!("{thread} {n}")).collect();
        assert_eq!(mine, expected.iter().collect::<Vec<_>>());
    }
    assert_eq!(log.outlet.lost(), Lost::default());
}

#[test]
fn writes_are_whole_lines_that_the_kernel_does_not_mix() {
    let log = Started::new(true);
    let line = format!("{}\n", "x".repeat(999));
    (0..50).for_each(|_| log.outlet.line(Kind::Detail, line.as_bytes()));
    let long = format!("{}\n", "y".repeat(9_999));
    log.outlet.line(Kind::Detail, long.as_bytes());
    log.outlet.line(Kind::Detail, b"z\n");
    log.reader.set(|state| state.shut = false);
    assert!(log.outlet.flush(LONG));
    let writes = log.reader.0.0.lock().unwrap().writes.clone();
    assert!(writes.iter().all(|n| *n <= ATOMIC || *n == 10_000), "{writes:?}");
    assert!(
        writes.iter().filter(|n| *n % 1000 == 0).count() >= 13,
        "{writes:?}"
    );
    assert!(writes.len() <= 20, "lines go together: {writes:?}");
}

#[test]
fn a_stuck_reader_costs_lines_and_nobody_waits() {
    let log = Started::new(true);
    let start = Instant::now();
    let size = 1_000;
    for n in 0..10_000 {
        log.outlet
            .later(Kind::Access, size, told(format!("access {n}\n")));
    }
    for n in 0..10 {
        log.outlet
            .line(Kind::Warning, format!("warning {n}\n").as_bytes());
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let lost = log.outlet.lost();
    assert!(lost.access > 5_000, "{lost:?}");
    assert_eq!((lost.warnings, lost.details), (0, 0), "a flood costs no warning");
    assert!(
        !log.outlet.flush(Duration::from_millis(50)),
        "the wait is bounded"
    );

    log.reader.set(|state| state.shut = false);
    assert!(log.outlet.flush(LONG));
    let lines = log.reader.lines();
    let access = lines.iter().filter(|line| line.starts_with("access ")).count();
    let warnings = lines.iter().filter(|line| line.starts_with("warning ")).count();
    assert_eq!((access as u64 + lost.access, warnings), (10_000, 10));
    assert_eq!(log.outlet.lost(), lost);
    // There is room again.
    log.outlet
        .later(Kind::Access, size, told("access again\n".to_owned()));
    assert!(log.outlet.flush(LONG));
    assert_eq!(log.reader.lines().last().unwrap(), "access again");
}

#[test]
fn what_cannot_be_written_is_counted() {
    let log = Started::new(false);
    log.reader.set(|state| state.gone = true);
    log.outlet.line(Kind::Warning, b"one\n");
    log.outlet.line(Kind::Detail, b"two\n");
    assert!(log.outlet.flush(LONG));
    let lost = Lost {
        access: 0,
        details: 1,
        warnings: 1,
    };
    assert_eq!(log.outlet.lost(), lost);
    log.reader.set(|state| state.gone = false);
    log.outlet.line(Kind::Detail, b"three\n");
    assert!(log.outlet.flush(LONG));
    assert_eq!(log.reader.lines(), ["three"]);
}

#[test]
fn a_loss_is_told_and_so_is_its_end() {
    let lines = Reader::default();
    let subscriber = {
        use tracing_subscriber::layer::SubscriberExt as _;
        struct Here;
        impl Write for Here {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                assert!(on_writer(bytes));
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        tracing_subscriber::registry().with(
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(|| Here),
        )
    };
    FORMATTED.set(Some(Vec::new()));
    tracing::subscriber::with_default(subscriber, || {
        let mut paper = Paper::new(lines.clone());
        let mut losses = Losses::default();
        losses.tell(Lost::default(), &mut paper);
        assert!(losses.look_again().is_none());
        let lost = Lost {
            access: 7,
            ..Lost::default()
        };
        losses.tell(lost, &mut paper);
        let more = Lost { access: 9, ..lost };
        // Too soon.
        losses.tell(more, &mut paper);
        losses.since = Some(Instant::now().checked_sub(TELL_AGAIN).unwrap());
        losses.tell(more, &mut paper);
        losses.since = Some(Instant::now().checked_sub(TELL_AGAIN).unwrap());
        losses.tell(more, &mut paper);
        assert!(losses.look_again().is_none(), "it is over");
        paper.write();
    });
    FORMATTED.set(None);
    let lines = lines.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].contains("were lost") && lines[0].contains("access=7"),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("were lost") && lines[1].contains("access=2"),
        "{lines:?}"
    );
    assert!(
        lines[2].contains("not lost any more") && lines[2].contains("access=9"),
        "{lines:?}"
    );
}

#[test]
fn access_lines_are_gathered_and_others_are_not() {
    let log = Started::new(false);
    log.outlet.line(Kind::Detail, b"awake\n");
    assert!(log.outlet.flush(LONG));
    let (written, seen) = mpsc::channel();
    let tell = move || written.send(Instant::now()).unwrap();
    let start = Instant::now();
    log.outlet.later(Kind::Access, 1, tell);
    let took = seen.recv_timeout(LONG).unwrap() - start;
    assert!(took >= GATHER / 2, "{took:?}");
}
