//! `uninstall`: removes every hook, pin and map of ours from the kernel, whether or not a proxy runs.

use super::Exit;
use crate::cli::output::{complain, say};
use crate::intercept;

/// `uninstall`
pub(super) fn run() -> Exit {
    match intercept::uninstall() {
        Ok(report) => {
            say!("{report}");
            Exit::Ok
        }
        Err(error) => {
            complain!("agent-fips-proxy: {error}");
            Exit::from_intercept(&error)
        }
    }
}
