//! The socket: packets of one device, without their link headers, and the kernel's count of those that it had no room for.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, libc};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::netns::Host;

/// Bytes: what the kernel joins before it tells (GSO) is 64 KiB by default.
pub(super) const LONGEST: usize = 1 << 18;

/// Drops everything.
const NOTHING: [SockFilter; 1] = [SockFilter::new(RET, 0, 0, 0)];
// Classic BPF (linux/bpf_common.h): load a word, skip unless equal, return how many bytes are kept.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const RET: u16 = 0x06;

/// A socket that hears what passes a device.
pub struct Tap {
    socket: Socket,
}

#[derive(Clone, Copy)]
struct Statistics;

getsockopt_impl!(
    Statistics,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats,
    sockopt::GetStruct<libc::tpacket_stats>
);

impl Tap {
    /// Listens on a device of `host`; `room` is how many bytes may wait to be read.
    pub fn open(host: &Host, device: &str, room: usize) -> Result<Self> {
        host.within(|| {
            let index = if_nametoindex(device).with_context(|| format!("no device {device}"))?;
            // ETH_P_ALL: only with it one hears what this host sends, too.
            let every = Protocol::from(i32::from(3_u16.to_be()));
            let socket =
                Socket::new(Domain::PACKET, Type::DGRAM, Some(every)).context("socket(AF_PACKET)")?;
            setsockopt(&socket, sockopt::RcvBufForce, &room).context("SO_RCVBUFFORCE")?;
            let tap = Self { socket };
            // It has heard every device since it was made: that is thrown away.
            tap.close()?;
            while tap.next(&mut [0; 1])?.is_some() {}
            tap.statistics()?;
            let told_by = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
            tap.socket.attach_filter(&[
                SockFilter::new(LOAD, 0, 0, told_by),
                SockFilter::new(EQUAL, 0, 1, index),
                SockFilter::new(RET, 0, 0, u32::MAX),
                SockFilter::new(RET, 0, 0, 0),
            ])?;
            tap.socket.set_nonblocking(false)?;
            tap.socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(tap)
        })
    }

    /// From now on hears nothing more, and waits for nothing.
    pub(super) fn close(&self) -> Result<()> {
        self.socket.attach_filter(&NOTHING)?;
        Ok(self.socket.set_nonblocking(true)?)
    }

    /// The length of the next packet; none when there is none.
    pub(super) fn next(&self, bytes: &mut [u8]) -> Result<Option<usize>> {
        loop {
            match (&self.socket).read(bytes) {
                Ok(length) if length == LONGEST => bail!("a packet of more than {LONGEST} bytes"),
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The device went down; it may come up again.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => return Err(error).context("cannot read a packet"),
            }
        }
    }

    /// How many packets passed the filter since this was last asked, and how many of them were dropped for lack of room.
    pub(super) fn statistics(&self) -> Result<(u64, u64)> {
        let counted = getsockopt(&self.socket, Statistics).context("PACKET_STATISTICS")?;
        Ok((counted.tp_packets.into(), counted.tp_drops.into()))
    }
}
