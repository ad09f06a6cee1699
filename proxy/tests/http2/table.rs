//! Tables of what a hostile client says, in the style of h2spec, and of what it gets: each row on a connection of its own.
//!
//! h2 says PROTOCOL_ERROR where RFC 9113 has a code of its own for some faults (FRAME_SIZE_ERROR for a wrong length,
//! FLOW_CONTROL_ERROR for a setting, COMPRESSION_ERROR, STREAM_CLOSED), and ends the connection where a stream error would
//! do (RFC 9113 section 5.4.2 lets it): the connection ends all the same. The table has what is said.

use agent_fips_proxy::relay::outcome::Outcome;

use crate::frames::*;
use crate::harness::Upstream;
use crate::world::{World, get, post};

/// What a client that does it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gets {
    /// A connection error.
    GoAway(u32),
    /// A stream error; the connection goes on.
    Reset(u32),
    /// An answer; the connection goes on.
    Status(u16),
    /// The end, without a word.
    Closed,
    /// Nothing: it is allowed, or ignored. The connection goes on.
    Nothing,
    Silence,
}

pub struct Case {
    pub name: &'static str,
    /// Of RFC 9113, or of RFC 7541 where it says so.
    pub section: &'static str,
    pub script: fn(&mut Raw),
    pub gets: Gets,
    /// A whole and good request was among it.
    pub may_reach: bool,
    /// How its request is recorded when it is answered 400.
    pub refusal: Outcome,
}

/// A row.
pub const fn case(name: &'static str, section: &'static str, script: fn(&mut Raw), gets: Gets) -> Case {
    Case {
        name,
        section,
        script,
        gets,
        may_reach: false,
        refusal: Outcome::BadRequest,
    }
}

impl Case {
    /// It may reach the upstream, since a whole and good request was among it.
    pub const fn beside_a_good_one(mut self) -> Self {
        self.may_reach = true;
        self
    }

    /// It asks for what is not served, and is recorded so.
    pub const fn unsupported(mut self) -> Self {
        self.refusal = Outcome::Unsupported;
        self
    }
}

/// What the server said first.
fn reaction(raw: &mut Raw, patient: bool) -> Gets {
    if patient {
        raw.send(frame(PING, 0, 0, b"last-one"));
    }
    loop {
        match raw.next() {
            Next::End => return Gets::Closed,
            Next::Silence => return Gets::Silence,
            Next::Frame(frame) => match frame.kind {
                GOAWAY => return Gets::GoAway(frame.code()),
                RST_STREAM => return Gets::Reset(frame.code()),
                HEADERS => return Gets::Status(frame.status()),
                PING if patient && frame.payload == b"last-one" => return Gets::Nothing,
                _ => {}
            },
        }
    }
}

/// Does all of them, each on a connection of its own; all that went wrong is told at the end.
pub fn run(cases: &[Case]) {
    let upstream = Upstream::start();
    let world = World::new(upstream.address);
    let mut wrong = Vec::new();
    for case in cases {
        let mut raw = world.silent();
        let local = raw.local;
        (case.script)(&mut raw);
        let got = reaction(&mut raw, case.gets == Gets::Nothing);
        let mut faults = Vec::new();
        if got != case.gets {
            faults.push(format!("got {got:?}, should have got {:?}", case.gets));
        }
        let expected = match got {
            Gets::GoAway(_) | Gets::Closed => {
                if raw.read_out().is_some_and(|code| got != Gets::GoAway(code)) {
                    faults.push("another GOAWAY".to_owned());
                }
                drop(raw);
                Outcome::BadRequest
            }
            _ => {
                if !raw.ping() {
                    faults.push("the connection is gone".to_owned());
                }
                let (status, _) = raw.headers(1001, WHOLE, &get("/good")).answer(1001);
                if status != 200 {
                    faults.push(format!("the next stream got {status}"));
                }
                raw.leave();
                Outcome::Ok
            }
        };
        let record = world.record_of(local);
        if (record.outcome, record.decision) != (expected, "terminate") {
            faults.push(format!("recorded as {record:?}"));
        }
        if let Gets::Status(status @ (400 | 421)) = got {
            let requests = world.requests_of(local);
            let expected = if status == 421 {
                Outcome::Misdirected
            } else {
                case.refusal
            };
            if requests[0].outcome != expected {
                faults.push(format!("recorded as {:?}", requests[0]));
            }
        }
        world.still_serves(case.name);
        let reached: Vec<String> = std::mem::take(&mut *upstream.seen.lock().unwrap())
            .into_iter()
            .map(|request| request.head.lines().next().unwrap_or_default().to_owned())
            .filter(|line| !line.starts_with("GET /still") && !line.starts_with("GET /good"))
            .collect();
        if !reached.is_empty() && !case.may_reach {
            faults.push(format!("reached the upstream: {reached:?}"));
        }
        if !faults.is_empty() {
            wrong.push(format!("{} ({}): {}", case.name, case.section, faults.join("; ")));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

/// A good beginning, and then this, in one piece.
pub fn after(raw: &mut Raw, frames: &[Vec<u8>]) {
    raw.begin(&[]).send(frames.concat());
}

pub fn head(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(&post("/evil")))
}
