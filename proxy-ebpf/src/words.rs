//! Map keys and values as 64-bit words, in the order of their bytes.
//!
//! The programs write them to their stack in whole words only: a verifier without CAP_PERFMON remembers what a part of a
//! word was set to, and then refuses to see another part of it set ("attempt to corrupt spilled pointer on stack": 6.1,
//! with the stable fix that counts narrow scalars as spilled). One word a store works on every kernel.

use crate::{
    Address, Direct, Event, Flow, HandoverKey, Leak, LeakKey, LeakRecord, Original, OwnFlow, Passed,
};

/// Two halves in the order of their bytes on a little-endian machine: the only kind that the programs are built for.
#[inline(always)]
const fn pair(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

#[inline(always)]
const fn ports(first: u16, second: u16) -> u32 {
    first as u32 | (second as u32) << 16
}

impl Address {
    /// Its two words.
    #[inline(always)]
    pub const fn pairs(&self) -> [u64; 2] {
        let [a, b, c, d] = self.words;
        [pair(a, b), pair(c, d)]
    }

    /// The key that asks a prefix map (a 32-bit length before the address) for this address: IPv4.
    #[inline(always)]
    pub const fn prefix4(word: u32) -> [u64; 1] {
        [pair(32, word)]
    }

    /// The same for IPv6; the last four bytes are not part of the key.
    #[inline(always)]
    pub const fn prefix6(&self) -> [u64; 3] {
        let [a, b, c, d] = self.words;
        [pair(128, a), pair(b, c), d as u64]
    }
}

impl Original {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 3] {
        let [a, b] = self.address.pairs();
        [a, b, pair(ports(self.port, self.listener_port), self.process)]
    }
}

impl HandoverKey {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 4] {
        let [a, b] = self.client.pairs();
        let last = pair(ports(self.client_port, self.listener_port), self.reserved);
        [self.netns_cookie, a, b, last]
    }
}

impl Flow {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        let [a, b] = self.source.pairs();
        let [c, d] = self.destination.pairs();
        let last = pair(ports(self.source_port, self.destination_port), self.reserved);
        [a, b, c, d, last]
    }
}

impl OwnFlow {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 6] {
        let [a, b, c, d, e] = self.flow.words();
        [self.netns_cookie, a, b, c, d, e]
    }
}

impl LeakKey {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        [self.who, pair(self.reason, self.kind)]
    }
}

impl Direct {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 3] {
        let [a, b] = self.destination.pairs();
        [a, b, pair(ports(self.port, self.reserved), self.process)]
    }
}

impl Leak {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 4] {
        let [a, b, c] = self.last.words();
        [self.count, a, b, c]
    }
}

impl LeakRecord {
    /// Its words. Another number than an [`Event`] has: by its length a reader tells the two.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        const { assert!(size_of::<LeakRecord>() == 5 * size_of::<u64>()) };
        let [who, why] = self.key.words();
        let [a, b, c] = self.direct.words();
        [who, why, a, b, c]
    }
}

impl Passed {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        [self.cgroup, pair(self.process, self.state)]
    }
}

impl Event {
    /// Its words.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 6] {
        const { assert!(size_of::<Event>() == 6 * size_of::<u64>()) };
        let [a, b] = self.source.pairs();
        let [c, d] = self.destination.pairs();
        let ports = ports(self.source_port, self.destination_port);
        [
            a,
            b,
            c,
            d,
            pair(ports, self.what),
            pair(self.detail, self.reserved),
        ]
    }
}
