//! One TCP segment within IPv4 or IPv6, as far as a connection has to be followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;

/// A segment (RFC 9293 section 3.1).
pub(super) struct Segment<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
    flags: u8,
}

impl<'a> Segment<'a> {
    /// None for what is no TCP, and for what has to be put together first: fragments, extension headers.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (from, to, segment) = match packet.first()? >> 4 {
            4 => within_v4(packet)?,
            6 => within_v6(packet)?,
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
        let length = usize::from(segment.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, port(0)?),
            to: SocketAddr::new(to, port(2)?),
            sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
            payload: segment.get(length..)?,
            flags: *segment.get(13)?,
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// SYN alone: somebody wants a connection.
    pub(super) fn opens(&self) -> bool {
        self.has(0x02) && !self.has(0x10)
    }

    /// An acknowledgement by the side that opened: it knows of the other's SYN, so that the connection stands.
    pub(super) fn stands(&self) -> bool {
        self.has(0x10) && !self.has(0x02) && !self.has(0x04)
    }
}

fn within_v4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 15) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    if fragment != 0 || *packet.get(9)? != TCP {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(bytes)))
    };
    let total = length(packet, 2, 0)?;
    Some((address(12)?, address(16)?, packet.get(header..total)?))
}

fn within_v6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    const HEADER: usize = 40;
    if *packet.get(6)? != TCP {
        return None;
    }
    let address = |at: usize| {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(bytes)))
    };
    let total = length(packet, 4, HEADER)?;
    Some((address(8)?, address(24)?, packet.get(HEADER..total)?))
}

/// The whole packet's length by its field at `at`, which counts all but `more`; a device's padding is behind it. Zero is what the
/// kernel writes for more than the field can say.
fn length(packet: &[u8], at: usize, more: usize) -> Option<usize> {
    let told = u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]);
    Some(match told {
        0 => packet.len(),
        told => usize::from(told) + more,
    })
}
