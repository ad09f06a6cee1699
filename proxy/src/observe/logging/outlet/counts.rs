//! The queue of this process without a thread that writes, so that what is queued and what is written can be counted apart. See
//! [`crate::counts`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::{OUTLET, start};
use super::{Outlet, What};
use crate::config::{Log, LogFormat};

/// When all lines were made: a time in digits takes more or fewer instructions from one moment to the next.
const TIME: Duration = Duration::from_micros(1_795_367_734_123_456);

/// The queue.
pub(crate) struct Queue(Arc<Outlet>);

impl Queue {
    /// From now on lines are queued. The log is that of a worker, with an access log.
    pub(crate) fn begin() -> Self {
        start(&Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
            access: true,
        });
        let outlet = OUTLET.get_or_init(Arc::default);
        // As if somebody waited for the lines: they are written at once, not gathered for a while.
        outlet.lock().flushing = 1;
        Self(Arc::clone(outlet))
    }

    /// How many lines are in it.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().entries.len()
    }

    /// Whatever is in it was queued at one fixed time.
    pub(crate) fn set_time(&self) {
        for entry in &mut self.0.lock().entries {
            if let What::Later(at, _) = &mut entry.what {
                *at = SystemTime::UNIX_EPOCH + TIME;
            }
        }
    }

    /// Makes and writes what is in it, as the writing thread does. Nothing when it is empty.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut once = self.len() > 0;
        self.0.run(out, || std::mem::take(&mut once));
    }
}
