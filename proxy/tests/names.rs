//! Which names are served, as docs/reference/NAMES.md tells it: hostile pairs of Host, SNI, `:authority` and addresses, really
//! sent through the relay in process, each with what it must come to and what must not have been reached.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "clients and servers here must be able to do what our own may not"
)]

#[path = "names/authority.rs"]
mod authority;
#[path = "names/clear.rs"]
mod clear;
#[path = "names/clear_rows.rs"]
mod clear_rows;
#[path = "names/explicit.rs"]
mod explicit;
#[path = "names/frames.rs"]
mod frames;
#[expect(dead_code, reason = "the harness has more than is used here")]
#[path = "relay/harness.rs"]
mod harness;
#[path = "names/hello.rs"]
mod hello;
#[path = "authority/local.rs"]
mod local;
#[path = "names/page.rs"]
mod page;
#[path = "names/passthrough.rs"]
mod passthrough;
#[path = "names/peers.rs"]
mod peers;
#[path = "names/resolver.rs"]
mod resolver;
#[path = "names/server_names.rs"]
mod server_names;
#[path = "names/trust.rs"]
mod trust;
#[path = "names/within.rs"]
mod within;
#[path = "names/world.rs"]
mod world;

/// All rows that the page has lines for.
fn cases() -> Vec<world::Case> {
    [
        clear::cases(),
        explicit::cases(),
        passthrough::cases(),
        resolver::cases(),
        server_names::cases(),
        trust::cases(),
        within::cases(),
    ]
    .concat()
}
