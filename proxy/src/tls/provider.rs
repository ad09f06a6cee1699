//! What a policy offers: protocol versions, suites, key exchange groups, signature schemes.
//!
//! The lists are written out here and not taken from the library's defaults, so that a dependency bump cannot widen
//! them. What the ClientHello *offers* counts as much as what is negotiated: an unapproved offer is a finding by
//! itself.
//!
//! Key exchange, and the one liberal reading we make:
//!
//! - `SecP256r1MLKEM768` comes first in both policies: both halves are approved (P-256: SP 800-56A; ML-KEM-768:
//!   FIPS 203, on certificate #5314). rustls sends the classical half of the first group as a second key share for
//!   free, here P-256, so a server without hybrid groups needs no second round trip, and no bare X25519 is ever
//!   sent.
//! - `X25519MLKEM768` is in `fips` only, and after it, without a share: SP 800-56C r2 allows a shared secret `Z ||
//!   T` when Z, the part that stands first, comes from an approved scheme. ML-KEM stands first, so X25519 is T and
//!   adds nothing that is relied on. A server that insists on it costs one HelloRetryRequest. `strict` does not
//!   read that generously.
//! - Bare X25519 is in neither: it is not in SP 800-56A r3 and does not raise the module's approved-service
//!   indicator.

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SupportedProtocolVersion};
use serde::{Deserialize, Serialize};

use crate::config::TlsPolicy;

/// The provider of `policy`. Signature schemes are the library's list of RSA 2048 and larger, ECDSA P-256, P-384,
/// P-521 and Ed25519, all with SHA-256 or larger; a test pins them.
pub(super) fn provider(policy: TlsPolicy) -> CryptoProvider {
    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    let mut kx_groups = vec![kx_group::SECP256R1MLKEM768];
    match policy {
        TlsPolicy::Fips => {
            cipher_suites.extend([
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ]);
            kx_groups.push(kx_group::X25519MLKEM768);
        }
        TlsPolicy::Strict => {}
    }
    kx_groups.extend([kx_group::SECP256R1, kx_group::SECP384R1]);
    CryptoProvider {
        cipher_suites,
        kx_groups,
        ..default_provider()
    }
}

/// The protocol versions of `policy`.
pub(super) fn versions(policy: TlsPolicy) -> &'static [&'static SupportedProtocolVersion] {
    static FIPS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    static STRICT: [&SupportedProtocolVersion; 1] = [&TLS13];
    match policy {
        TlsPolicy::Fips => &FIPS,
        TlsPolicy::Strict => &STRICT,
    }
}

/// What a policy offers, in IANA names: for status pages and evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// `upstream.tls_policy`.
    pub policy: TlsPolicy,
    /// Protocol versions.
    pub versions: Vec<String>,
    /// Cipher suites, preferred first.
    pub suites: Vec<String>,
    /// Key exchange groups, preferred first.
    pub groups: Vec<String>,
    /// Signature schemes accepted from the server.
    pub signature_schemes: Vec<String>,
}

impl Offer {
    /// The offer of `policy`.
    pub fn of(policy: TlsPolicy) -> Self {
        let provider = provider(policy);
        Self {
            policy,
            versions: versions(policy).iter().map(|v| version_name(v.version)).collect(),
            suites: provider
                .cipher_suites
                .iter()
                .map(|suite| suite_name(suite.suite()))
                .collect(),
            groups: provider
                .kx_groups
                .iter()
                .map(|group| group_name(group.name()))
                .collect(),
            signature_schemes: provider
                .signature_verification_algorithms
                .supported_schemes()
                .iter()
                .map(|scheme| format!("{scheme:?}"))
                .collect(),
        }
    }
}

/// `TLSv1.3`: the way OpenSSL and Go write it.
pub(super) fn version_name(version: ProtocolVersion) -> String {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2".to_owned(),
        ProtocolVersion::TLSv1_3 => "TLSv1.3".to_owned(),
        other => format!("{other:?}"),
    }
}

/// The IANA name; rustls marks the suites of TLS 1.3 with a prefix of its own.
pub(super) fn suite_name(suite: CipherSuite) -> String {
    format!("{suite:?}").replacen("TLS13_", "TLS_", 1)
}

/// The IANA name ("TLS Supported Groups").
pub(super) fn group_name(group: NamedGroup) -> String {
    match group {
        NamedGroup::secp256r1MLKEM768 => "SecP256r1MLKEM768".to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::SupportedKxGroup;

    use super::*;

    #[test]
    fn every_part_of_both_policies_is_approved() {
        for policy in [TlsPolicy::Fips, TlsPolicy::Strict] {
            let provider = provider(policy);
            assert!(provider.fips(), "{policy:?}");
            assert!(provider.cipher_suites.iter().all(|suite| suite.fips()));
            assert!(provider.kx_groups.iter().all(|group| group.fips()));
        }
    }

    #[test]
    fn no_group_of_the_strict_policy_has_an_unapproved_half() {
        assert_eq!(
            Offer::of(TlsPolicy::Strict).groups,
            ["SecP256r1MLKEM768", "secp256r1", "secp384r1"]
        );
    }

    #[test]
    fn names_are_those_of_the_registry() {
        let offer = Offer::of(TlsPolicy::Fips);
        assert_eq!(offer.versions, ["TLSv1.3", "TLSv1.2"]);
        assert_eq!(offer.suites[0], "TLS_AES_256_GCM_SHA384");
        assert_eq!(offer.suites[2], "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
        assert_eq!(
            offer.groups,
            ["SecP256r1MLKEM768", "X25519MLKEM768", "secp256r1", "secp384r1"]
        );
    }

    /// What the module itself says: its indicator of approved services (security policy of #5314, section 4) rises for each
    /// half of a strict group, on both sides of the exchange, and not for bare X25519.
    #[test]
    fn the_module_counts_both_halves_of_strict_groups_as_approved_services() {
        let exchange = |group: &'static dyn SupportedKxGroup| {
            approved_services(|| {
                let ours = group.start().unwrap();
                let theirs = group.start_and_complete(ours.pub_key()).unwrap();
                ours.complete(&theirs.pub_key).unwrap();
            })
        };
        let ml_kem = exchange(kx_group::MLKEM768);
        let p256 = exchange(kx_group::SECP256R1);
        assert!(ml_kem > 0 && p256 > 0, "{ml_kem} {p256}");
        assert_eq!(exchange(kx_group::SECP256R1MLKEM768), p256 + ml_kem);
        assert!(exchange(kx_group::SECP384R1) > 0);
        assert_eq!(
            exchange(kx_group::X25519),
            0,
            "X25519 became an approved service: read the new policy"
        );
        assert_eq!(
            exchange(kx_group::X25519MLKEM768),
            ml_kem,
            "only one half of it counts"
        );
    }

    /// How often the indicator rose. It belongs to the thread.
    fn approved_services(work: impl FnOnce()) -> u64 {
        // SAFETY: reads a counter of this thread. Needed because aws-lc-rs shows it in no public function.
        let before = unsafe { aws_lc_fips_sys::FIPS_service_indicator_before_call() };
        work();
        // SAFETY: as above.
        let after = unsafe { aws_lc_fips_sys::FIPS_service_indicator_after_call() };
        after - before
    }
}
