//! Tells user space of single connections: of each that leaks, and of every other while debug logging is on. Otherwise the
//! verifier sees dead code.

use aya_ebpf::{Global, macros::map, maps::RingBuf};
use proxy_ebpf::{Event, LeakRecord};

/// 1 when user space reads the records of all connections. Frozen at load.
#[unsafe(no_mangle)]
pub static LOG: Global<u8> = Global::new(0);
/// [`Event`] and [`LeakRecord`], 128 KiB. A full ring loses records: they are for a person who watches, the counters are
/// exact.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 17, 0);

/// Appends a record of a connection, while somebody wants to read of all of them.
#[inline(always)]
pub fn report(event: Event) {
    if LOG.load() != 0 {
        append::<Event, _>(event.words());
    }
}

/// Appends a record of a leak.
#[inline(always)]
pub fn report_leak(record: &LeakRecord) {
    append::<LeakRecord, _>(record.words());
}

/// Appends the words of a `T`.
#[inline(always)]
fn append<T: 'static, const N: usize>(words: [u64; N]) {
    const { assert!(size_of::<T>() == size_of::<[u64; N]>()) };
    if let Some(mut entry) = EVENTS.reserve::<T>(0) {
        let first = entry.as_mut_ptr().cast::<u64>();
        let mut index = 0;
        while index < N {
            // SAFETY: the record has that many words and the ring aligns it to eight bytes. Volatile: LLVM would call memset
            // for the fields that are 0, which computes addresses, as only CAP_PERFMON may.
            unsafe { first.add(index).write_volatile(words[index]) };
            index += 1;
        }
        entry.submit(0);
    }
}
