//! The kernel programs. Built for `bpfel-unknown-none` by `proxy/build.rs`, embedded into the library.
//!
//! An Agent's connection meets them in this order: [`connect`] rewrites its destination and remembers the original,
//! [`sockops`] publishes it when the SYN leaves and hands it to the accepted socket, [`getsockopt`] tells it to the
//! worker; [`getpeername`] keeps the Agent's view of its peer.
//!
//! Where that is not possible, its packets meet [`classifier`] on the host's side of a pod's interface, which marks those
//! of new intake connections, so that a route leads them to us; there [`sk_lookup`] picks the listener.
//!
//! What goes to an intake without us, by either way, is counted by [`leaked`].
#![no_std]
#![no_main]
// One instruction (`leaked`); whoever builds for this target has an unstable compiler's features anyway.
#![feature(asm_experimental_arch)]

mod classifier;
mod connect;
mod getpeername;
mod getsockopt;
mod leaked;
mod maps;
mod probe;
mod report;
mod sk_lookup;
mod sock_addr;
mod sockops;
mod stack;

/// Licence of the object: some helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the programs have no panicking path, else the verifier would refuse them.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
