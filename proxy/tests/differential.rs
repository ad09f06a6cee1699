//! Our own HTTP/1.1 relay beside hyper: the same bytes, mutated and split at random, are given to both, and what the relay
//! hands on must be what hyper reads. Where hyper takes more than we do is counted, where we would take more than hyper is a
//! failure.
//!
//! Each test runs for a few seconds; `DIFFERENTIAL_SECONDS` in the environment gives it another number of them.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]

#[path = "differential/answers.rs"]
mod answers;
#[path = "differential/bytes.rs"]
mod bytes;
#[path = "relay/corpus.rs"]
mod corpus;
#[expect(dead_code, reason = "shared with the tests of the relay, which use all of it")]
#[path = "relay/harness.rs"]
mod harness;
#[path = "differential/oracle.rs"]
mod oracle;
#[path = "differential/requests.rs"]
mod requests;
#[path = "differential/run.rs"]
mod run;
#[path = "differential/splits.rs"]
mod splits;
#[path = "differential/wire.rs"]
mod wire;
