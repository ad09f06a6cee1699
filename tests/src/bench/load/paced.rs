//! Open loop: a request begins when it is due, and its time counts from then, also when the one before it was late: a proxy that
//! stalls cannot hide the requests that waited. A blocking thread for each connection, since the timers of a runtime are too coarse.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::super::NAME;
use super::wire::{SPACE, complete, failed};
use super::{GRACE, Plan, Rest, Tally};

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One connection.
pub(super) fn run(plan: &Plan, index: usize, rest: &Rest) -> Result<(), String> {
    // The kernel may wake a sleeper 50 us late by default, a fifth of what is measured.
    nix::sys::prctl::set_timerslack(1).map_err(|error| error.to_string())?;
    let mut stream = None;
    let mut tally = paced(plan, index, Instant::now(), plan.warmup, &mut stream);
    tally.times = super::Histogram::default();
    while let Some(start) = rest.rest(tally) {
        tally = paced(plan, index, start, plan.window, &mut stream);
    }
    Ok(())
}

fn paced(
    plan: &Plan,
    index: usize,
    start: Instant,
    window: Duration,
    stream: &mut Option<Box<dyn Stream>>,
) -> Tally {
    let mut tally = Tally::default();
    let gap = Duration::from_secs(1) / plan.rate.max(1);
    // The connections take turns: this one's requests are due at index, index + connections, …
    let turns = u32::try_from(plan.connections).unwrap_or(1);
    let mut turn = u32::try_from(index).unwrap_or(0);
    loop {
        let due = gap * turn;
        if due >= window {
            return tally;
        }
        turn += turns;
        let due = start + due;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let result = request(plan, stream);
        if result.is_err() {
            *stream = None;
        }
        tally.add(result, due);
    }
}

fn request(plan: &Plan, kept: &mut Option<Box<dyn Stream>>) -> Result<(), String> {
    let stream = match kept {
        Some(stream) => stream,
        None => kept.insert(connect(plan)?),
    };
    stream.write_all(&plan.request).map_err(failed("write"))?;
    stream.flush().map_err(failed("write"))?;
    let mut space = [0; SPACE];
    let mut filled = 0;
    loop {
        match stream.read(&mut space[filled..]) {
            Ok(0) => return Err("closed without an answer".to_owned()),
            Ok(length) => filled += length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err("unanswered".to_owned());
            }
            Err(error) => return Err(failed("read")(error)),
        }
        if complete(&space[..filled])? {
            return Ok(());
        }
    }
}

fn connect(plan: &Plan) -> Result<Box<dyn Stream>, String> {
    let stream = TcpStream::connect_timeout(&plan.connect, GRACE).map_err(failed("connect"))?;
    stream.set_nodelay(true).map_err(failed("connect"))?;
    stream.set_read_timeout(Some(GRACE)).map_err(failed("connect"))?;
    stream.set_write_timeout(Some(GRACE)).map_err(failed("connect"))?;
    let Some(config) = &plan.tls else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
    let session = ClientConnection::new(Arc::clone(config), name).map_err(|error| error.to_string())?;
    Ok(Box::new(StreamOwned::new(session, stream)))
}
