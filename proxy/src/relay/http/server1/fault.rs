//! Why a request did not get, or not get to the end of, its answer.

use http::StatusCode;

use super::inbound::BodyFault;
use crate::relay::http::head::Violation;
use crate::relay::upstream::Broken;

/// Why a request did not get, or not get to the end of, its answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The client left.
    Gone,
    /// The client broke its body or was too slow with it.
    Client(Violation),
    /// The intake, or the way to it.
    Intake(Broken),
    /// The intake took too long.
    Late,
    /// The intake switches protocols, which nobody asked for.
    Upgrade(StatusCode),
}

impl From<BodyFault> for Fault {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Gone => Self::Gone,
            BodyFault::Violation(violation) => Self::Client(violation),
        }
    }
}
