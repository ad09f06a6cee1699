//! Asks a foreign classifier what it would answer: one run of it for each family and port with a harmless packet, on
//! request only.
//!
//! **It is not free of side effects.** `BPF_PROG_TEST_RUN` (kernel 4.12) runs the program for real: it may count the packet, enter
//! it into its connection tracking, send an event. The packet is a SYN between documentation addresses (RFC 5737, RFC
//! 3849), which no real flow has; nothing leaves the machine. The answer holds for that packet: a program that goes by
//! addresses may answer an intake's packet differently.

use std::borrow::Cow;

use aya::TestRun as _;
use aya::programs::{SchedClassifier, TestRunOptions, loaded_programs};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::verdict::Returns;
use crate::intercept::error::InterceptError;

/// What a program answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// For an IPv4 packet.
    pub v4: Returns,
    /// For an IPv6 packet.
    pub v6: Returns,
}

impl Probe {
    /// One answer for both: where they differ, the one that does not let the packet go on to us.
    pub fn worst(self) -> Returns {
        worse(self.v4, self.v6)
    }
}

fn worse(one: Returns, other: Returns) -> Returns {
    match (one, other) {
        (Returns::Unspec, other) => other,
        (Returns::Other(_), other) if other != Returns::Unspec => other,
        (one, _) => one,
    }
}

/// Runs the loaded classifier of this id once for each family and each of these destination ports; of the answers for
/// several ports, the one that does not let the packet go on to us.
///
/// # Errors
/// No such program, or one of another kind; no CAP_BPF and CAP_NET_ADMIN; a device-bound program.
pub fn probe(id: u32, ports: &[u16]) -> Result<Probe, InterceptError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| InterceptError::Classifier {
        action: "run (with one test packet)",
        interface: format!("any interface: program {id}"),
        source,
    };
    let info = loaded_programs()
        .flatten()
        .find(|info| info.id() == id)
        .ok_or_else(|| failed(Box::new(std::io::Error::from_raw_os_error(libc::ENOENT))))?;
    let program = SchedClassifier::from_program_info(info, Cow::Borrowed("foreign"))
        .map_err(|e| failed(Box::new(e)))?;
    let run = |packet: &[u8]| {
        // Room for a program that adds a header.
        let mut out = [0; 256];
        program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .map(|result| Returns::from(result.return_value.cast_signed()))
            .map_err(|error| failed(Box::new(error)))
    };
    let mut told = Probe {
        v4: Returns::Unspec,
        v6: Returns::Unspec,
    };
    for port in ports {
        told = Probe {
            v4: worse(told.v4, run(&syn4(*port))?),
            v6: worse(told.v6, run(&syn6(*port))?),
        };
    }
    Ok(told)
}

/// Locally administered addresses that nobody has, then the EtherType.
fn ethernet(kind: [u8; 2]) -> Vec<u8> {
    [
        &[0x02, 0, 0x5e, 0, 0x53, 1][..],
        &[0x02, 0, 0x5e, 0, 0x53, 2],
        &kind,
    ]
    .concat()
}

/// 192.0.2.1:40000 to 203.0.113.1, SYN.
fn syn4(port: u16) -> Vec<u8> {
    let mut ip = vec![
        0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 203, 0, 113, 1,
    ];
    let sum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&sum);
    let tcp = syn(port, &[&[192, 0, 2, 1, 203, 0, 113, 1], &[0, 6, 0, 20]]);
    [ethernet([0x08, 0x00]), ip, tcp].concat()
}

/// [2001:db8::1]:40000 to [2001:db8:1::1], SYN.
fn syn6(port: u16) -> Vec<u8> {
    let source = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let target = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let tcp = syn(port, &[&source, &target, &[0, 0, 0, 20, 0, 0, 0, 6]]);
    let ip = [&[0x60, 0, 0, 0, 0, 20, 6, 64][..], &source, &target].concat();
    [ethernet([0x86, 0xdd]), ip, tcp].concat()
}

/// A TCP header with its checksum over this pseudo header.
fn syn(port: u16, pseudo: &[&[u8]]) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let mut tcp = vec![
        0x9c, 0x40, high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0,
    ];
    let whole = [pseudo.concat(), tcp.clone()].concat();
    tcp[16..18].copy_from_slice(&checksum(&[&whole]));
    tcp
}

/// RFC 1071, over parts of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum: u32 = parts
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A right checksum makes the sum over everything 0.
    #[test]
    fn the_packets_are_well_formed() {
        let v4 = syn4(80);
        assert_eq!(v4.len(), 54);
        assert_eq!(checksum(&[&v4[14..34]]), [0, 0]);
        let pseudo = [&v4[26..34], &[0, 6, 0, 20][..], &v4[34..]].concat();
        assert_eq!(checksum(&[&pseudo]), [0, 0]);
        let v6 = syn6(443);
        assert_eq!(v6.len(), 74);
        let pseudo = [&v6[22..54], &[0, 0, 0, 20, 0, 0, 0, 6][..], &v6[54..]].concat();
        assert_eq!(checksum(&[&pseudo]), [0, 0]);
    }

    #[test]
    fn the_worse_answer_counts() {
        let probe = |v4, v6| Probe { v4, v6 }.worst();
        assert_eq!(probe(Returns::Unspec, Returns::Ok), Returns::Ok);
        assert_eq!(probe(Returns::Shot, Returns::Unspec), Returns::Shot);
        assert_eq!(probe(Returns::Unspec, Returns::Unspec), Returns::Unspec);
    }
}
