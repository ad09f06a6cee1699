//! Pins: after a session was verified as any other, its path must also hold a key that the operator named.
//!
//! The path is built again, by the same library and rules, with one more condition. What a server merely *presents*
//! proves nothing: anybody can append the certificate of a pinned authority to a chain that never needed it. And the path
//! that passes here must pass as a whole, revocation included, or two half-good paths could make one good one.

use std::cell::Cell;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, VerifiedPath};

use super::der;
use super::verify::revocation;
use crate::config::{CrlPolicy, Pin};

/// What a path is held against.
#[derive(Debug)]
pub(super) struct Pins {
    pub(super) pins: Vec<Pin>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Why a session is not used.
#[derive(Debug)]
pub(super) enum PinFault {
    /// No verified path holds a pinned key.
    NoPin,
    /// There is no verified path (any more): a resumed session whose certificate has expired since.
    NoPath(webpki::Error),
}

impl Pins {
    /// The pins that stand in the verified path of `chain` (leaf first): never none.
    pub(super) fn matched(
        &self,
        chain: &[CertificateDer<'_>],
        crls: &[CertRevocationList<'static>],
        policy: CrlPolicy,
    ) -> Result<Vec<Pin>, PinFault> {
        let (leaf, rest) = chain
            .split_first()
            .ok_or(PinFault::NoPath(webpki::Error::UnknownIssuer))?;
        let leaf = EndEntityCert::try_from(leaf).map_err(PinFault::NoPath)?;
        let lists: Vec<&CertRevocationList<'_>> = crls.iter().collect();
        // A path that verifies was seen: then it is the pins that it lacks.
        let seen = Cell::new(false);
        let pinned = |path: &VerifiedPath<'_>| {
            seen.set(true);
            if self.of(path).is_empty() {
                return Err(webpki::Error::UnknownIssuer);
            }
            Ok(())
        };
        let path = leaf.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            rest,
            UnixTime::now(),
            KeyUsage::server_auth(),
            revocation(&lists, policy),
            Some(&pinned),
        );
        match path {
            Ok(path) => Ok(self.of(&path)),
            Err(_) if seen.get() => Err(PinFault::NoPin),
            Err(error) => Err(PinFault::NoPath(error)),
        }
    }

    /// The pins of a path: server, intermediates, root.
    fn of(&self, path: &VerifiedPath<'_>) -> Vec<Pin> {
        let server = path.end_entity().subject_public_key_info().to_vec();
        let between = path
            .intermediate_certificates()
            .map(|certificate| certificate.subject_public_key_info().to_vec());
        let root = der::sequence(&path.anchor().subject_public_key_info);
        std::iter::once(server)
            .chain(between)
            .chain([root])
            .map(|key| pin_of(&key))
            .filter(|pin| self.pins.contains(pin))
            .collect()
    }
}

/// The pin of a SubjectPublicKeyInfo in DER.
pub(super) fn pin_of(key: &[u8]) -> Pin {
    let mut pin = [0; 32];
    pin.copy_from_slice(digest::digest(&digest::SHA256, key).as_ref());
    Pin(pin)
}
