//! Counts a connection that goes to an intake without us, and tells of it.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_ebpf::{Counter, Direct, Leak, LeakKey, LeakRecord};

use crate::maps::{LEAKED, count};
use crate::report::report_leak;
use crate::stack;

/// Adds one to the leaks of `key`.
#[inline(always)]
pub fn leaked(key: &LeakKey, direct: &Direct) {
    if !add(key, direct) {
        let mut space = stack::space();
        let first = stack::leak(
            &mut space,
            &Leak {
                count: 1,
                last: *direct,
            },
        );
        let fresh = LEAKED.insert(
            stack::leak_key(&mut stack::space(), key),
            first,
            BPF_NOEXIST.into(),
        );
        if fresh.is_err() {
            // Another CPU made it a moment ago.
            add(key, direct);
        }
    }
    // After the map: by this user space knows that there is news in it.
    count(Counter::Leaked);
    report_leak(&LeakRecord {
        key: *key,
        direct: *direct,
    });
}

/// Adds to an entry that is there.
#[inline(always)]
fn add(key: &LeakKey, direct: &Direct) -> bool {
    let Some(leak) = LEAKED.get_ptr_mut(stack::leak_key(&mut stack::space(), key)) else {
        return false;
    };
    // SAFETY: a live map value, aligned to eight bytes. By hand: `core` has no atomic addition for this target, and this is
    // the one atomic instruction that every kernel knows (BPF_XADD; the others came with 5.12).
    unsafe {
        asm!(
            "lock *(u64 *)({count} + 0) += {one}",
            count = in(reg) &raw mut (*leak).count,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
    let words = direct.words();
    let mut index = 0;
    while index < words.len() {
        // SAFETY: within `last`, which is that many words long and lies behind the count. Volatile, as in `report`.
        unsafe {
            let last = ptr::from_mut(&mut (*leak).last).cast::<u64>();
            last.add(index).write_volatile(words[index]);
        }
        index += 1;
    }
    true
}
