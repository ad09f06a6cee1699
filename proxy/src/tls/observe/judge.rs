//! Whether an Agent's own session stays within what our sessions use under policy `fips`.

use std::sync::LazyLock;

use rustls::ProtocolVersion;

use super::AgentSession;
use crate::config::TlsPolicy;
use crate::tls::provider;

/// Every label of [`Below`]: a closed set, for metrics.
pub const BELOW: [&str; 7] = [
    "version",
    "suite",
    "no_key_exchange",
    "group",
    "ems",
    "early_data",
    "unreadable",
];

/// Approved, and not among our own groups only because rustls has no such exchange: P-521 is in SP 800-56A r3 (appendix D), and
/// KAS-ECC-SSC with P-521 is an approved service on certificate #5314. An Agent that uses it is not below.
const ALSO_APPROVED: &str = "secp521r1";

/// Why a session is not within the policy: the first reason, in the order of [`BELOW`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Below {
    /// One of [`BELOW`].
    pub label: &'static str,
    /// What it is and what it should be, in a sentence without a full stop.
    pub message: String,
}

impl Below {
    /// A client that sends data before the server has answered: under keys of an earlier session, and whoever records it can send
    /// it again (RFC 8446 section 8).
    pub fn early_data() -> Self {
        Self {
            label: "early_data",
            message: "the client means to send early data (0-RTT), before anything is agreed on".to_owned(),
        }
    }

    /// What cannot be read cannot be held to anything.
    pub fn unreadable(why: &str) -> Self {
        Self {
            label: "unreadable",
            message: format!("the server's answer cannot be read: {why}"),
        }
    }
}

/// The lists of policy `fips`, by name.
struct Allowed {
    /// The version and the suite that may be used with it.
    suites: Vec<(String, String)>,
    groups: Vec<String>,
    versions: Vec<String>,
}

static ALLOWED: LazyLock<Allowed> = LazyLock::new(|| {
    let provider = provider::provider(TlsPolicy::Fips);
    Allowed {
        suites: provider
            .cipher_suites
            .iter()
            .map(|suite| {
                let version = provider::version_name(suite.version().version);
                (version, provider::suite_name(suite.suite()))
            })
            .collect(),
        groups: provider
            .kx_groups
            .iter()
            .map(|group| provider::group_name(group.name()))
            .chain([ALSO_APPROVED.to_owned()])
            .collect(),
        versions: provider::versions(TlsPolicy::Fips)
            .iter()
            .map(|version| provider::version_name(version.version))
            .collect(),
    }
});

/// Whether `session` is within what our own sessions use under policy `fips`.
///
/// A resumed session of TLS 1.2 names no group. It is within when its suite and its master secret are: its keys come from the
/// master secret of an earlier handshake, whose group was judged then, when it passed here. One that was made before the proxy
/// took the Agent's connections was never judged; it goes on at most as long as the server lets it (RFC 5246 appendix F.1.4
/// suggests 24 hours). A resumption of TLS 1.3 makes keys of its own, so it is judged like a first handshake.
///
/// # Errors
/// The first thing that is below, see [`Below`].
pub fn judge(session: &AgentSession) -> Result<(), Below> {
    let allowed = &*ALLOWED;
    let AgentSession { version, suite, .. } = session;
    if !allowed.versions.contains(version) {
        return Err(Below {
            label: "version",
            message: format!(
                "{version} is not a version of policy `fips`, which takes {}",
                list(allowed.versions.iter())
            ),
        });
    }
    if !allowed.suites.iter().any(|(v, s)| v == version && s == suite) {
        let takes = allowed.suites.iter().filter(|(v, _)| v == version);
        return Err(Below {
            label: "suite",
            message: format!(
                "{version} with {suite} is not an approved suite of policy `fips`, which takes {}",
                list(takes.map(|(_, suite)| suite))
            ),
        });
    }
    let tls13 = *version == provider::version_name(ProtocolVersion::TLSv1_3);
    match &session.group {
        None if tls13 => {
            return Err(Below {
                label: "no_key_exchange",
                message: format!(
                    "{version} with {suite} goes on from a pre-shared key alone, without an approved key exchange"
                ),
            });
        }
        None if !session.resumed => {
            return Err(Below {
                label: "no_key_exchange",
                message: format!(
                    "{version} with {suite} begins without an approved key exchange: the server named no group"
                ),
            });
        }
        Some(group) if !allowed.groups.contains(group) => {
            return Err(Below {
                label: "group",
                message: format!(
                    "{version} with {suite} takes its keys from {group}, which is not an approved group of policy `fips`; \
                     it takes {}",
                    list(allowed.groups.iter())
                ),
            });
        }
        _ => {}
    }
    if !tls13 && session.ems != Some(true) {
        return Err(Below {
            label: "ems",
            message: format!(
                "{version} with {suite} has no extended master secret (RFC 7627), without which the derivation of its keys is \
                 not approved"
            ),
        });
    }
    Ok(())
}

/// `a, b or c`
fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider::Offer;

    fn session(version: &str, suite: &str, group: Option<&str>, ems: Option<bool>) -> AgentSession {
        AgentSession {
            version: version.to_owned(),
            suite: suite.to_owned(),
            group: group.map(str::to_owned),
            ems,
            resumed: false,
            retried: false,
        }
    }

    /// Every session that our own client can have is within, with nothing but its own names.
    #[test]
    fn what_we_offer_is_within() {
        let offer = Offer::of(TlsPolicy::Fips);
        for suite in &offer.suites {
            let (version, ems) = if suite.contains("ECDHE") {
                ("TLSv1.2", Some(true))
            } else {
                ("TLSv1.3", None)
            };
            for group in &offer.groups {
                assert_eq!(judge(&session(version, suite, Some(group), ems)), Ok(()));
            }
        }
    }

    #[test]
    fn every_label_has_its_session() {
        let new = "TLS_AES_256_GCM_SHA384";
        let old = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let group = Some("secp256r1");
        for (session, label) in [
            (session("TLSv1.1", old, group, Some(true)), "version"),
            (session("0x7f1c", new, group, None), "version"),
            (session("TLSv1.3", "TLS_AES_128_CCM_SHA256", group, None), "suite"),
            // A suite of the other version.
            (session("TLSv1.3", old, group, None), "suite"),
            (session("TLSv1.2", new, group, Some(true)), "suite"),
            (session("TLSv1.3", new, None, None), "no_key_exchange"),
            (session("TLSv1.2", old, None, Some(true)), "no_key_exchange"),
            (session("TLSv1.3", new, Some("x25519"), None), "group"),
            (
                session("TLSv1.2", old, Some("brainpoolP256r1"), Some(true)),
                "group",
            ),
            (session("TLSv1.2", old, group, Some(false)), "ems"),
            // A record that says nothing of it.
            (session("TLSv1.2", old, group, None), "ems"),
        ] {
            let below = judge(&session).unwrap_err();
            assert_eq!(below.label, label, "{below}");
            assert!(BELOW.contains(&below.label));
        }
    }

    #[test]
    fn a_resumption_of_tls12_needs_no_group_but_the_rest() {
        let resumed = |suite, ems| AgentSession {
            resumed: true,
            ..session("TLSv1.2", suite, None, ems)
        };
        let suite = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        assert_eq!(judge(&resumed(suite, Some(true))), Ok(()));
        assert_eq!(judge(&resumed(suite, Some(false))).unwrap_err().label, "ems");
        let rsa = resumed("TLS_RSA_WITH_AES_128_GCM_SHA256", Some(true));
        assert_eq!(judge(&rsa).unwrap_err().label, "suite");
    }

    #[test]
    fn a_session_is_written_and_read_again() {
        let session = session("TLSv1.3", "TLS_AES_256_GCM_SHA384", Some("secp256r1"), None);
        let text = serde_json::to_string(&session).unwrap();
        assert_eq!(serde_json::from_str::<AgentSession>(&text).unwrap(), session);
    }
}
