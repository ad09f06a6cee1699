//! Map keys and values on a program's stack, written in whole 64-bit words: `words.rs` says why.
//!
//! Each is written into a space of its caller and goes from there to a helper, which makes the verifier forget what it knew of
//! those bytes. A copy that no helper sees would stay known, and LLVM gives its place to others later.

use core::mem::MaybeUninit;

use aya_ebpf::maps::lpm_trie::Key;
use proxy_ebpf::{Address, Flow, HandoverKey, Leak, LeakKey, Original, OwnFlow, Passed};

/// Room for `N` words.
pub type Space<const N: usize> = MaybeUninit<[u64; N]>;

/// Unwritten room.
#[inline(always)]
pub const fn space<const N: usize>() -> Space<N> {
    MaybeUninit::uninit()
}

/// Writes the words and looks at them as a `T`.
///
/// # Safety
/// They are the words of a value of `T`, all of whose fields are integers.
#[inline(always)]
unsafe fn write<T, const N: usize>(space: &mut Space<N>, words: [u64; N]) -> &T {
    const {
        assert!(size_of::<T>() <= size_of::<[u64; N]>() && align_of::<T>() <= align_of::<u64>());
    }
    let first = space.as_mut_ptr().cast::<u64>();
    let mut index = 0;
    while index < N {
        // SAFETY: within the array. Volatile: LLVM must neither split a store nor write parts of it earlier.
        unsafe { first.add(index).write_volatile(words[index]) };
        index += 1;
    }
    // SAFETY: every word is written; size and alignment fit; the caller promises the rest.
    unsafe { &*first.cast::<T>() }
}

#[inline(always)]
pub fn flow<'a>(space: &'a mut Space<5>, flow: &Flow) -> &'a Flow {
    // SAFETY: its own words.
    unsafe { write(space, flow.words()) }
}

#[inline(always)]
pub fn own_flow<'a>(space: &'a mut Space<6>, flow: &OwnFlow) -> &'a OwnFlow {
    // SAFETY: its own words.
    unsafe { write(space, flow.words()) }
}

#[inline(always)]
pub fn handover<'a>(space: &'a mut Space<4>, key: &HandoverKey) -> &'a HandoverKey {
    // SAFETY: its own words.
    unsafe { write(space, key.words()) }
}

#[inline(always)]
pub fn original<'a>(space: &'a mut Space<3>, original: &Original) -> &'a Original {
    // SAFETY: its own words.
    unsafe { write(space, original.words()) }
}

#[inline(always)]
pub fn leak_key<'a>(space: &'a mut Space<2>, key: &LeakKey) -> &'a LeakKey {
    // SAFETY: its own words.
    unsafe { write(space, key.words()) }
}

#[inline(always)]
pub fn leak<'a>(space: &'a mut Space<4>, leak: &Leak) -> &'a Leak {
    // SAFETY: its own words.
    unsafe { write(space, leak.words()) }
}

#[inline(always)]
pub fn passed<'a>(space: &'a mut Space<2>, passed: &Passed) -> &'a Passed {
    // SAFETY: its own words.
    unsafe { write(space, passed.words()) }
}

/// A key of 64 bits.
#[inline(always)]
pub fn long(space: &mut Space<1>, number: u64) -> &u64 {
    // SAFETY: the word itself.
    unsafe { write(space, [number]) }
}

/// The key that asks a prefix map for one IPv4 address, a word in network order.
#[inline(always)]
pub fn prefix4(space: &mut Space<1>, word: u32) -> &Key<u32> {
    // SAFETY: length and address, as in the key.
    unsafe { write(space, Address::prefix4(word)) }
}

/// The same for IPv6.
#[inline(always)]
pub fn prefix6<'a>(space: &'a mut Space<3>, address: &Address) -> &'a Key<[u32; 4]> {
    // SAFETY: length and address, as in the key.
    unsafe { write(space, address.prefix6()) }
}

/// A key of 32 bits: it may lie where another key is written next.
#[inline(always)]
pub fn number(space: &mut Space<1>, number: u32) -> &u32 {
    // SAFETY: the first half of the word, on a little-endian machine.
    unsafe { write(space, [number as u64]) }
}
