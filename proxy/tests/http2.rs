//! HTTP/2 and HTTP/1.1 from clients within TLS: the relay in process behind its local authority, as an attacker, as a heavy
//! user and as a user of every corner of the protocol would use it. The upstream's TLS is left out (`harness::Plain`).
#![expect(
    clippy::disallowed_methods,
    reason = "the clients here must be able to do what our own may not"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]

#[path = "http2/connection.rs"]
mod connection;
#[path = "http2/fields.rs"]
mod fields;
#[path = "http2/floods.rs"]
mod floods;
#[path = "http2/frames.rs"]
mod frames;
#[expect(dead_code, reason = "shared with the tests of the relay, which use all of it")]
#[path = "relay/harness.rs"]
mod harness;
#[path = "http2/heads.rs"]
mod heads;
#[path = "http2/heavy.rs"]
mod heavy;
#[path = "http2/http1.rs"]
mod http1;
#[path = "relay/hyper_intake.rs"]
mod hyper_intake;
#[path = "http2/intake.rs"]
mod intake;
#[path = "http2/limits.rs"]
mod limits;
#[path = "authority/local.rs"]
mod local;
#[path = "http2/semantics.rs"]
mod semantics;
#[path = "http2/streams.rs"]
mod streams;
#[path = "http2/table.rs"]
mod table;
#[path = "http2/world.rs"]
mod world;
