//! Other people's classifiers: real kernel programs of a few hand-written instructions that count what they see and answer
//! what they are told, attached the way vendors do it, with `tc` or on TCX; [`Rewriter`] stands at `connect()`.
//!
//! The one `unsafe` is the system call itself: neither libc nor aya has a binding for loading bare instructions.

mod rewriter;

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::succeed;

pub use rewriter::Rewriter;

// enum bpf_cmd (linux/bpf.h)
const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const LINK_CREATE: i64 = 28;
const LINK_UPDATE: i64 = 29;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;

/// What a vendor's program does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Returns this (`TC_ACT_*`).
    Returns(i32),
    /// Sends it out of the interface of this index.
    Redirects(u32),
    /// Forwards it by the interface of this index with the neighbour's address (`bpf_redirect_neigh`, Linux 5.10), past
    /// the host's own routing and firewall: what Cilium's host routing does. The answer is `TC_ACT_REDIRECT`.
    Forwards(u32),
}

/// Which packets a program acts on. All others go on to the next classifier (`TC_ACT_UNSPEC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acts {
    /// Every packet: name resolution, neighbours and replies too.
    OnAll,
    /// TCP segments to this port, over IPv4 without options and IPv6 without extension headers.
    OnPort(u16),
}

/// `TC_ACT_UNSPEC`, `TC_ACT_OK`, `TC_ACT_SHOT`, `TC_ACT_PIPE`
pub const UNSPEC: Answer = Answer::Returns(-1);
/// See [`UNSPEC`].
pub const OK: Answer = Answer::Returns(0);
/// See [`UNSPEC`].
pub const SHOT: Answer = Answer::Returns(2);
/// See [`UNSPEC`].
pub const PIPE: Answer = Answer::Returns(3);

/// Whether this kernel has TCX (Linux 6.6), by its version: how the product finds out is under test.
pub fn has_tcx() -> Result<bool> {
    Ok(crate::kernel()? >= (6, 6))
}

/// A loaded program, pinned so that `tc` finds it.
pub struct Vendor {
    program: OwnedFd,
    counter: OwnedFd,
    pin: PathBuf,
    /// The kernel's number.
    pub id: u32,
}

impl Vendor {
    /// Loads a program of this name and pins it in `folder`, on a bpffs. `tc` names a filter after the pin.
    pub fn load(folder: &Path, name: &str, answer: Answer) -> Result<Self> {
        Self::load_for(folder, name, Acts::OnAll, answer)
    }

    /// The same for some packets only; the others are not counted either.
    pub fn load_for(folder: &Path, name: &str, acts: Acts, answer: Answer) -> Result<Self> {
        let mut attributes = Attributes::default();
        // BPF_MAP_TYPE_ARRAY, key 4 bytes, value 8 bytes, one entry.
        attributes.words(0, &[2, 4, 8, 1]);
        let counter = bpf_descriptor(MAP_CREATE, &mut attributes).context("cannot make a counter")?;

        let instructions = assemble(&counter, acts, answer);
        let count = u32::try_from(instructions.len() / 8)?;
        let license = CString::new("GPL")?;
        let mut attributes = Attributes::default();
        // BPF_PROG_TYPE_SCHED_CLS
        attributes.words(0, &[3, count]);
        attributes.pointer(8, instructions.as_ptr().addr());
        attributes.pointer(16, license.as_ptr().addr());
        // The kernel takes letters, digits, `_` and `.` only.
        let clean = name.replace('-', "_");
        let bytes = clean.as_bytes();
        let length = bytes.len().min(15);
        attributes.0[48..48 + length].copy_from_slice(&bytes[..length]);
        let program =
            bpf_descriptor(PROG_LOAD, &mut attributes).with_context(|| format!("cannot load {name}"))?;

        let path = folder.join(name);
        pin(&program, &path)?;
        let id = program_id(&program)?;
        Ok(Self {
            program,
            counter,
            pin: path,
            id,
        })
    }

    /// Where it is pinned.
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    /// The loaded program.
    pub fn program(&self) -> &OwnedFd {
        &self.program
    }

    /// Packets that it acted on.
    pub fn count(&self) -> Result<u64> {
        let key = 0_u32;
        let mut value = 0_u64;
        let mut attributes = Attributes::default();
        attributes.words(0, &[number(&self.counter)?]);
        attributes.pointer(8, (&raw const key).addr());
        attributes.pointer(16, (&raw mut value).expose_provenance());
        bpf(MAP_LOOKUP_ELEM, &mut attributes).context("cannot read a counter")?;
        // The kernel wrote through the exposed address.
        Ok(std::hint::black_box(value))
    }

    /// `tc filter VERB`, as vendors do: direct action, explicit priority and handle.
    pub fn tc(&self, verb: &str, device: &str, priority: u16, handle: u32) -> Result<()> {
        tc(&format!(
            "filter {verb} dev {device} ingress prio {priority} handle {handle} bpf direct-action object-pinned {}",
            self.pin.display()
        ))
        .map(drop)
    }

    /// On TCX of ingress, at the head or at the tail; attached for as long as the result lives.
    pub fn tcx(&self, index: u32, first: bool) -> Result<OwnedFd> {
        let flags = if first { BPF_F_BEFORE } else { 0 };
        let mut attributes = Attributes::default();
        attributes.words(0, &[number(&self.program)?, index, BPF_TCX_INGRESS, flags]);
        bpf_descriptor(LINK_CREATE, &mut attributes).context("cannot attach to TCX")
    }

    /// Puts this program in the place of the one that a TCX link holds.
    pub fn take_over(&self, link: &OwnedFd) -> Result<()> {
        let mut attributes = Attributes::default();
        attributes.words(0, &[number(link)?, number(&self.program)?]);
        bpf(LINK_UPDATE, &mut attributes)
            .map(drop)
            .context("cannot update a TCX link")
    }
}

/// Pins a hash map with one entry, such as nobody uses.
pub fn pin_hash(path: &Path, key: u32, value: u32, flags: u32) -> Result<()> {
    let mut attributes = Attributes::default();
    // BPF_MAP_TYPE_HASH
    attributes.words(0, &[1, key, value, 1, flags]);
    let map = bpf_descriptor(MAP_CREATE, &mut attributes).context("cannot make a map")?;
    pin(&map, path)
}

fn pin(object: &OwnedFd, path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes.pointer(0, name.as_ptr().addr());
    attributes.words(8, &[number(object)?]);
    bpf(OBJ_PIN, &mut attributes)
        .map(drop)
        .with_context(|| format!("cannot pin {}", path.display()))
}

/// Runs `tc` in the namespaces of the calling thread.
pub fn tc(words: &str) -> Result<String> {
    succeed(Command::new("tc").args(words.split_whitespace()))
}

/// The filters of an interface as `tc` shows them, without those of which a line holds `without`: what must stay byte for
/// byte as others left it.
pub fn filters(device: &str, without: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for direction in ["ingress", "egress"] {
        let text = tc(&format!("filter show dev {device} {direction}")).unwrap_or_default();
        found.extend(
            text.lines()
                .filter(|line| line.contains("handle") && !line.contains(without))
                .map(|line| format!("{direction} {}", line.trim())),
        );
    }
    Ok(found)
}

/// Look whether the packet is meant, count it, answer.
fn assemble(counter: &OwnedFd, acts: Acts, answer: Answer) -> Vec<u8> {
    let mut code = Code::default();
    // r6 = the packet
    code.put(0xbf, 0x16, 0, 0);
    if let Acts::OnPort(port) = acts {
        code.only_to(port);
    }
    // r1 = address of the counter (BPF_LD | BPF_IMM | BPF_DW, source BPF_PSEUDO_MAP_VALUE), in two halves
    code.put(0x18, 0x21, 0, counter.as_raw_fd());
    code.put(0, 0, 0, 0);
    // r2 = 1; lock *(u64 *)r1 += r2
    code.put(0xb7, 0x02, 0, 1);
    code.put(0xdb, 0x21, 0, 0);
    match answer {
        // r0 = value
        Answer::Returns(value) => code.put(0xb7, 0x00, 0, value),
        // r0 = bpf_redirect(index, 0)
        Answer::Redirects(index) => code.call(23, &[index.cast_signed(), 0]),
        // r0 = bpf_redirect_neigh(index, none, 0, 0)
        Answer::Forwards(index) => code.call(152, &[index.cast_signed(), 0, 0, 0]),
    }
    // exit
    code.put(0x95, 0, 0, 0);
    code.0
}

/// Instructions (`struct bpf_insn`): operation, registers (source above, destination below), offset, value.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn put(&mut self, operation: u8, registers: u8, offset: i16, value: i32) {
        self.0.extend_from_slice(&[operation, registers]);
        self.0.extend_from_slice(&offset.to_ne_bytes());
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    /// r0 = helper(values)
    fn call(&mut self, helper: i32, values: &[i32]) {
        for (register, value) in (1_u8..).zip(values) {
            self.put(0xb7, register, 0, *value);
        }
        self.put(0x85, 0, 0, helper);
    }

    /// Ends with `TC_ACT_UNSPEC` here unless the packet is a TCP segment to this port.
    fn only_to(&mut self, port: u16) {
        const TCP: i32 = 6;
        /// `ETH_P_IP` and `ETH_P_IPV6`, and where each has the protocol and the destination port, behind 14 bytes of Ethernet.
        const FAMILIES: [(u16, i32, i32); 2] = [(0x0800, 14 + 9, 14 + 20 + 2), (0x86dd, 14 + 6, 14 + 40 + 2)];
        // r7 = 0; r8 = 0; r0 = skb->protocol (offset 16), in network order
        self.put(0xb7, 0x07, 0, 0);
        self.put(0xb7, 0x08, 0, 0);
        self.put(0x61, 0x60, 16, 0);
        for (kind, protocol, port) in FAMILIES {
            // if r0 != kind: over the next two
            self.put(0x55, 0x00, 2, i32::from(kind.to_be()));
            // r7 = where the protocol is, r8 = where the port is
            self.put(0xb7, 0x07, 0, protocol);
            self.put(0xb7, 0x08, 0, port);
        }
        // if r7 != 0: over the way out
        self.put(0x55, 0x07, 2, 0);
        self.unspec();
        for (place, length, load, wanted) in [(0x72, 1, 0x71, TCP), (0x82, 2, 0x69, i32::from(port.to_be()))]
        {
            // r0 = bpf_skb_load_bytes(packet, place, stack, length)
            self.put(0xbf, 0x61, 0, 0);
            self.put(0xbf, place, 0, 0);
            self.put(0xbf, 0xa3, 0, 0);
            self.put(0x07, 0x03, 0, -8);
            self.put(0xb7, 0x04, 0, length);
            self.put(0x85, 0, 0, 26);
            // if r0 == 0: over the way out
            self.put(0x15, 0x00, 2, 0);
            self.unspec();
            // r1 = what was loaded; if it is what is wanted: over the way out
            self.put(load, 0xa1, -8, 0);
            self.put(0x15, 0x01, 2, wanted);
            self.unspec();
        }
    }

    /// r0 = `TC_ACT_UNSPEC`; exit
    fn unspec(&mut self) {
        self.put(0xb7, 0x00, 0, -1);
        self.put(0x95, 0, 0, 0);
    }
}

/// `union bpf_attr`: zero but for what a command takes.
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Default for Attributes {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attributes {
    fn words(&mut self, at: usize, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            let at = at + index * 4;
            self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
    }

    fn pointer(&mut self, at: usize, address: usize) {
        self.0[at..at + 8].copy_from_slice(&(address as u64).to_ne_bytes());
    }
}

fn bpf(command: i64, attributes: &mut Attributes) -> Result<i64> {
    // SAFETY: the attributes are live, zeroed beyond what the command takes, and the pointers that callers put into them
    // (instructions, names, a key, a value) outlive the call. Needed: no binding loads bare instructions.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_bpf,
            command,
            (&raw mut *attributes).cast::<nix::libc::c_void>(),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("bpf command {command}"));
    }
    Ok(result)
}

fn bpf_descriptor(command: i64, attributes: &mut Attributes) -> Result<OwnedFd> {
    let descriptor = i32::try_from(bpf(command, attributes)?)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Detaches by force the link that is pinned there, whosever it is: the pin stays, and leads to nothing (`bpftool link detach`).
pub fn detach_link(pin: &Path) -> Result<()> {
    /// BPF_OBJ_GET, BPF_LINK_DETACH (linux/bpf.h)
    const OBJ_GET: i64 = 7;
    const LINK_DETACH: i64 = 34;
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let mut attributes = Attributes::default();
    attributes.pointer(0, path.as_ptr().addr());
    let link = bpf_descriptor(OBJ_GET, &mut attributes).with_context(|| pin.display().to_string())?;
    let mut attributes = Attributes::default();
    attributes.words(0, &[number(&link)?]);
    bpf(LINK_DETACH, &mut attributes).map(drop)
}

fn number(descriptor: &OwnedFd) -> Result<u32> {
    Ok(u32::try_from(descriptor.as_raw_fd())?)
}

fn program_id(program: &OwnedFd) -> Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    std::fs::read_to_string(path)?
        .lines()
        .find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
        .ok_or_else(|| anyhow!("the kernel does not tell the program's number"))
}
