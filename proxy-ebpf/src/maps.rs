//! Maps, load-time switches, and the thin typed wrappers around helpers that aya has no safe call for.

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap},
};
use proxy_ebpf::{
    Address, Counter, Flow, HandoverKey, Interface, Leak, LeakKey, MAX_COUNTED, MAX_FLOWS, MAX_HANDOVER,
    MAX_LEAKED, MAX_NETWORKS, MAX_OWN_FLOWS, MAX_PREFIXES, Namespace, Original, OwnFlow, Passed, SLOTS,
    Settings, Taken,
};

use crate::stack;

/// 1 where `bpf_set_retval` exists for connect hooks (5.18): a refusal is ECONNREFUSED, not EPERM. Frozen at load, so
/// that the verifier of an older kernel never sees the call.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);
/// 1 where sockops programs can ask for the network-namespace cookie (5.15).
#[unsafe(no_mangle)]
pub static HAS_SOCKOPS_NETNS_COOKIE: Global<u8> = Global::new(0);
/// The kernel's page size: more than this it does not show to a getsockopt program.
#[unsafe(no_mangle)]
pub static PAGE_SIZE: Global<u32> = Global::new(4096);

/// Of maps that user space alone writes: the kernel refuses a program that would (5.2).
const READ_ONLY: u32 = BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG;

/// One entry, key 0. A hash map and no array: an update replaces the entry as a whole.
#[map]
pub static SETTINGS: HashMap<u32, Settings> = HashMap::with_max_entries(1, READ_ONLY);
/// IPv4 destinations that are taken.
#[map]
pub static PREFIX4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(MAX_PREFIXES, READ_ONLY);
/// IPv6 destinations that are taken.
#[map]
pub static PREFIX6: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(MAX_PREFIXES, READ_ONLY);
/// Our listeners. A listener that closes leaves its slot by itself, so that "slot filled" is "we are alive": unlike a
/// lookup by port it can never be another local process.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(SLOTS, 0);
/// Original destination and process, in the client's socket.
#[btf_map]
pub static CLIENT: SkStorage<Original> = SkStorage::new();
/// Original destination and process, in the accepted socket.
#[btf_map]
pub static ACCEPTED: SkStorage<Original> = SkStorage::new();
/// From the client's SYN to the accepted socket.
#[map]
pub static HANDOVER: LruHashMap<HandoverKey, Original> = LruHashMap::with_max_entries(MAX_HANDOVER, 0);
/// The network namespaces that we serve, by cookie.
#[map]
pub static NAMESPACES: HashMap<u64, Namespace> = HashMap::with_max_entries(MAX_NETWORKS, READ_ONLY);
/// The interfaces whose packets are classified, by index.
#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(MAX_NETWORKS, BPF_F_NO_PREALLOC);
/// Flows that the classifier took.
#[map]
pub static FLOWS: LruHashMap<Flow, Taken> = LruHashMap::with_max_entries(MAX_FLOWS, 0);
/// Our own upstream connections, from their SYN until they are established or closed.
#[map]
pub static OWN_FLOWS: LruHashMap<OwnFlow, u32> = LruHashMap::with_max_entries(MAX_OWN_FLOWS, 0);
/// Connections to an intake that did not go through us.
#[map]
pub static LEAKED: LruHashMap<LeakKey, Leak> = LruHashMap::with_max_entries(MAX_LEAKED, 0);
/// The note of a connection that passed, in the client's socket.
#[btf_map]
pub static PASSED: SkStorage<Passed> = SkStorage::new();
/// Sockets whose connection was counted in `LEAKED`, by cookie, with the reason: user space counts them no more.
#[map]
pub static COUNTED: LruHashMap<u64, u32> = LruHashMap::with_max_entries(MAX_COUNTED, 0);
/// Flows that the classifier let go and counted in `LEAKED`, with the sequence number of their SYN.
#[map]
pub static LET_GO: LruHashMap<Flow, u32> = LruHashMap::with_max_entries(MAX_COUNTED, 0);
/// Answers of the cookie probe: from a socket's cookie to its namespace's. Not pinned.
#[map]
pub static PROBED: HashMap<u64, u64> = HashMap::with_max_entries(16, BPF_F_NO_PREALLOC);
/// [`Counter`].
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    let mut space = stack::space();
    let index = stack::number(&mut space, counter as u32);
    // SAFETY: the helper takes the map and a pointer to a live key. aya's own look-up copies the key, as half of a word.
    let value = unsafe {
        bpf_map_lookup_elem(
            (&raw const COUNTERS).cast_mut().cast(),
            ptr::from_ref(index).cast(),
        )
    }
    .cast::<u64>();
    if !value.is_null() {
        // SAFETY: a per-CPU slot, and programs of one CPU do not interrupt each other between load and store in a way
        // that matters for a statistic. There is no safe way to write through a map pointer.
        unsafe { *value += 1 };
    }
}

/// What user space told us.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    // SAFETY: the entry is freed after an RCU grace period, which no program run outlives.
    unsafe { SETTINGS.get(stack::number(&mut stack::space(), 0)) }
}

/// True when the destination is one of the selected prefixes.
#[inline(always)]
pub fn selected(destination: &Address) -> bool {
    match destination.v4() {
        Some(word) => PREFIX4.get(stack::prefix4(&mut stack::space(), word)).is_some(),
        None => PREFIX6
            .get(stack::prefix6(&mut stack::space(), destination))
            .is_some(),
    }
}

/// What is remembered of a flow, if the classifier took it.
#[inline(always)]
pub fn taken(flow: &Flow) -> Option<Taken> {
    // SAFETY: an LRU entry may be reused while it is read, when the map is full: the copy is taken at once.
    unsafe { FLOWS.get(stack::flow(&mut stack::space(), flow)) }.copied()
}

/// The port of our listener in a slot; `None` when nobody listens.
#[inline(always)]
pub fn listener_port(slot: u32) -> Option<u16> {
    let mut space = stack::space();
    let slot = stack::number(&mut space, slot);
    // SAFETY: the helper takes the map and a pointer to a live key. A SockMap lookup returns a referenced socket or
    // null, and the reference is given back on every path. aya has no plain lookup on a SockMap.
    let socket = unsafe {
        bpf_map_lookup_elem(
            (&raw const LISTENERS).cast_mut().cast(),
            ptr::from_ref(slot).cast(),
        )
    };
    if socket.is_null() {
        return None;
    }
    // SAFETY: a referenced, non-null socket; `src_port` is in host order.
    let port = unsafe { ptr::read_volatile(&raw const (*socket.cast::<bpf_sock>()).src_port) };
    // SAFETY: releases the reference that the lookup took.
    unsafe { bpf_sk_release(socket) };
    Some(port as u16)
}

/// The value that a socket carries.
#[inline(always)]
pub fn load<T: Copy>(storage: &'static SkStorage<T>, socket: *mut bpf_sock) -> Option<T> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: the map is a socket storage, the socket comes from the context and is not null.
    let value = unsafe {
        bpf_sk_storage_get(
            ptr::from_ref(storage).cast_mut().cast(),
            socket.cast(),
            ptr::null_mut(),
            0,
        )
    }
    .cast::<T>();
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, and of the map's value type; the storage lives as long as the socket.
    Some(unsafe { *value })
}

/// Writes the original destination that a socket carries; false when the kernel had no memory for it.
#[inline(always)]
pub fn store(storage: &'static SkStorage<Original>, socket: *mut bpf_sock, original: &Original) -> bool {
    put(storage, socket, stack::original(&mut stack::space(), original))
}

/// Leaves the note of a connection that passes.
#[inline(always)]
pub fn note(socket: *mut bpf_sock, passed: &Passed) {
    // Without memory for it the connection is counted all the same, if it leaks: for its namespace.
    let _ = put(&PASSED, socket, stack::passed(&mut stack::space(), passed));
}

/// Writes the value that a socket carries; false when the kernel had no memory for it. `initial` lies on the stack, in whole
/// words.
#[inline(always)]
fn put<T: Copy>(storage: &'static SkStorage<T>, socket: *mut bpf_sock, initial: &T) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: as in `load`; the initial value is live for the call.
    let value = unsafe {
        bpf_sk_storage_get(
            ptr::from_ref(storage).cast_mut().cast(),
            socket.cast(),
            ptr::from_ref(initial).cast_mut().cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    }
    .cast::<T>();
    if value.is_null() {
        return false;
    }
    // The helper does not overwrite a value that is already there.
    // SAFETY: as in `load`; only the thread that holds this socket in connect() or its handshake writes.
    unsafe { *value = *initial };
    true
}

/// Removes what a socket carries.
#[inline(always)]
pub fn forget<T: Copy>(storage: &'static SkStorage<T>, socket: *mut bpf_sock) {
    if !socket.is_null() {
        // SAFETY: as in `load`. That there was nothing is no error.
        unsafe { bpf_sk_storage_delete(ptr::from_ref(storage).cast_mut().cast(), socket.cast()) };
    }
}
