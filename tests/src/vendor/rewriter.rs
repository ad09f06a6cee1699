//! Somebody's load balancer of services: a program at `connect()` that translates a virtual address, as Cilium's socket LB.

use std::ffi::CString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use super::{Attributes, Code, LINK_CREATE, PROG_LOAD, bpf_descriptor, number};

/// BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT (linux/bpf.h)
const SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;

/// Attached for as long as it lives.
pub struct Rewriter {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Rewriter {
    /// In a cgroup, behind the programs that are there, and behind those of the cgroups below it: the kernel runs a
    /// socket's own cgroup's programs first, then its parents' (`compute_effective_progs`), and those of one cgroup in the
    /// order in which they came.
    pub fn attach(cgroup: &Path, from: Ipv4Addr, to: Ipv4Addr) -> Result<Self> {
        let value = |address: Ipv4Addr| i32::from_ne_bytes(address.octets());
        let mut code = Code::default();
        // r2 = context->user_ip4
        code.put(0x61, 0x12, 4, 0);
        // if r2 (32 bits) != from: over the next two
        code.put(0x56, 0x02, 2, value(from));
        // r3 = to; context->user_ip4 = r3
        code.put(0xb4, 0x03, 0, value(to));
        code.put(0x63, 0x31, 4, 0);
        // r0 = 1 (go on); exit
        code.put(0xb7, 0x00, 0, 1);
        code.put(0x95, 0, 0, 0);
        let count = u32::try_from(code.0.len() / 8)?;
        let license = CString::new("GPL")?;
        let mut attributes = Attributes::default();
        attributes.words(0, &[SOCK_ADDR, count]);
        attributes.pointer(8, code.0.as_ptr().addr());
        attributes.pointer(16, license.as_ptr().addr());
        // expected_attach_type
        attributes.words(68, &[INET4_CONNECT]);
        let program = bpf_descriptor(PROG_LOAD, &mut attributes).context("cannot load a rewriter")?;

        let directory = File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        let mut attributes = Attributes::default();
        let target = u32::try_from(directory.as_raw_fd())?;
        attributes.words(0, &[number(&program)?, target, INET4_CONNECT, 0]);
        let link = bpf_descriptor(LINK_CREATE, &mut attributes).context("cannot attach a rewriter")?;
        Ok(Self {
            _program: program,
            _link: link,
        })
    }
}
