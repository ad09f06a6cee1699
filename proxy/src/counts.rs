//! What is counted by `cargo xtask bench instructions`: the functions that every request goes through, each on inputs as an
//! Agent sends them. Built only with the feature `counts`, which the program in `proxy/counts` needs and no shipped build has.
//!
//! The cases stand beside the functions, which are private: `relay::counts` and `relay::http::counts`, with
//! `observe::logging::outlet::counts` for the log. They call what the relay calls, with nothing in between.

use std::hint::black_box;

pub(crate) mod samples;

/// Calls before the one that is counted. They fill what is filled once: buffers, the callsites of the log, free lists of the
/// allocator.
const BEFORE: usize = 3;

/// One thing that is counted.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in the record. A name that is gone or new fails the comparison.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Makes what is needed, and has it counted.
    pub run: fn() -> Result<(), String>,
}

/// Every case.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    let groups = [crate::relay::counts::CASES, crate::relay::counts::HTTP];
    groups.into_iter().flatten()
}

/// Calls `work` a few times, each time on something fresh of `make`, the last time counted. What is made and what comes out is
/// dropped outside of what is counted.
///
/// # Errors
/// What came out is not what `right` expects: then something else was counted than the name says.
pub(crate) fn count<S, R>(
    mut make: impl FnMut() -> Result<S, String>,
    work: impl Fn(&mut S) -> R,
    right: impl Fn(&S, &R) -> bool,
) -> Result<(), String> {
    for round in 0..=BEFORE {
        let mut state = make()?;
        let mut result = None;
        let mut once = || result = Some(work(black_box(&mut state)));
        if round == BEFORE {
            instructions_counted_here(&mut once);
        } else {
            once();
        }
        if !black_box(result).is_some_and(|result| right(&state, &result)) {
            return Err(format!("call {round}: the result is not the expected one"));
        }
    }
    Ok(())
}

/// callgrind counts while it is inside of this function, which it knows by its name (xtask/src/bench/instructions.rs).
#[inline(never)]
fn instructions_counted_here(work: &mut dyn FnMut()) {
    work();
    // A call at the very end would become a jump, and the function be left before its work.
    black_box(());
}
