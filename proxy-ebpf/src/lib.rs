//! Shared by the kernel programs and user space: types with a fixed layout, and the rules that both must agree on.
#![no_std]

/// How many destination ports can be taken.
pub const MAX_PORTS: usize = 16;
