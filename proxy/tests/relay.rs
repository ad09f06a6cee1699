//! The relay in process, on loopback, without privilege: raw TCP clients, a strict raw upstream, TLS replaced by
//! nothing (`harness::Plain`). What needs a kernel or a certificate is tested elsewhere.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]

#[path = "relay/corpus.rs"]
mod corpus;
#[path = "relay/harness.rs"]
mod harness;
#[path = "relay/hyper_intake.rs"]
mod hyper_intake;
#[path = "relay/intakes.rs"]
mod intakes;
#[path = "relay/intercept.rs"]
mod intercept;
#[path = "relay/lifecycle.rs"]
mod lifecycle;
#[path = "relay/networks.rs"]
mod networks;
#[path = "relay/outbound.rs"]
mod outbound;
#[path = "relay/secrets.rs"]
mod secrets;
#[path = "relay/smuggling.rs"]
mod smuggling;
#[path = "relay/streaming.rs"]
mod streaming;
#[path = "relay/tls.rs"]
mod tls;
#[path = "relay/upstream.rs"]
mod upstream;
