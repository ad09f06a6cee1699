//! What became of one connection of our own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::self_test::{Failure, Stage};

/// The outcome of a try. The default is that of none: no time and no error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// From the connect to the answer, in microseconds; absent where there was no answer.
    pub took_us: Option<u64>,
    /// What went wrong; absent when nothing did.
    pub error: Option<String>,
    /// Where it got stuck; absent when nothing went wrong, or nothing was tried.
    pub stage: Option<Stage>,
}

impl Tried {
    /// From what the client says.
    pub fn of(result: Result<Duration, Failure>) -> Self {
        match result {
            Ok(took) => Self {
                took_us: Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                ..Self::default()
            },
            Err(failure) => Self {
                stage: Some(failure.stage()),
                ..Self::not(failure.to_string())
            },
        }
    }

    /// It was not tried, and this is why.
    pub fn not(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}
