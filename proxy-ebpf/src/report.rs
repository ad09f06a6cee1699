//! Tells user space of single connections, while debug logging is on. Otherwise the verifier sees dead code.

use aya_ebpf::{Global, macros::map, maps::RingBuf};
use proxy_ebpf::Event;

/// 1 when user space reads the records. Frozen at load.
#[unsafe(no_mangle)]
pub static LOG: Global<u8> = Global::new(0);
/// [`Event`], 128 KiB. A full ring loses records: they are for a person who watches, the counters are exact.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 17, 0);

/// Appends a record.
#[inline(always)]
pub fn report(event: Event) {
    if LOG.load() == 0 {
        return;
    }
    if let Some(mut entry) = EVENTS.reserve::<Event>(0) {
        let first = entry.as_mut_ptr().cast::<u64>();
        let words = event.words();
        let mut index = 0;
        while index < words.len() {
            // SAFETY: the record has that many words (asserted in `words.rs`) and the ring aligns it to eight bytes. Volatile:
            // LLVM would call memset for the fields that are 0, which computes addresses, as only CAP_PERFMON may.
            unsafe { first.add(index).write_volatile(words[index]) };
            index += 1;
        }
        entry.submit(0);
    }
}
