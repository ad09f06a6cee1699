//! What is told of sessions with intakes beyond their TLS parameters: the way they went, pins, revocation lists, our own
//! certificate.

use std::sync::PoisonError;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Counters, Encoded, Metrics, encode_counter, encode_lone_gauge};
use crate::supervise::protocol::UpstreamSessionStatus;
use crate::tls::TrustStatus;

impl Metrics {
    /// How sessions with intakes were made.
    pub fn upstream_sessions(&self) -> Vec<UpstreamSessionStatus> {
        let sessions = self
            .counters
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        sessions
            .iter()
            .map(
                |((proxy, pin, client_certificate), sessions)| UpstreamSessionStatus {
                    proxy: proxy.clone(),
                    pin: pin.clone(),
                    client_certificate: *client_certificate,
                    sessions: *sessions,
                },
            )
            .collect()
    }

    /// What servers are judged by, as it was last seen.
    pub fn trust(&self) -> TrustStatus {
        self.counters
            .trust
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// It was looked at.
    pub fn set_trust(&self, trust: TrustStatus) {
        *self
            .counters
            .trust
            .write()
            .unwrap_or_else(PoisonError::into_inner) = trust;
    }
}

impl Counters {
    pub(super) fn encode_trust(&self, e: &mut DescriptorEncoder) -> Encoded {
        {
            let mut family = e.encode_descriptor(
                "upstream_sessions",
                "TLS sessions with intakes by the way they went, the pin their path holds, and whether our client \
                 certificate was presented",
                None,
                MetricType::Counter,
            )?;
            let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            for ((proxy, pin, client_certificate), n) in sessions.iter() {
                let labels = [
                    ("proxy", proxy.as_deref().unwrap_or("-")),
                    ("pin", pin.as_deref().unwrap_or("-")),
                    (
                        "client_certificate",
                        if *client_certificate { "true" } else { "false" },
                    ),
                ];
                encode_counter(&mut family, &labels, *n)?;
            }
        }
        let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner);
        let alarms = trust.alarms.len() as u64;
        encode_lone_gauge(
            e,
            "trust_alarms",
            "Things about revocation lists, pins and the client certificate that somebody should do something about",
            alarms,
        )?;
        if let Some(crls) = &trust.crls {
            encode_lone_gauge(
                e,
                "crls",
                "Certificate revocation lists in use",
                crls.count as u64,
            )?;
            encode_lone_gauge(
                e,
                "crls_expired",
                "Files with an expired revocation list",
                crls.expired.len() as u64,
            )?;
            encode_lone_gauge(
                e,
                "crls_unusable",
                "Files that cannot be used as revocation lists",
                crls.problems.len() as u64,
            )?;
            if let Some(next) = crls.next_update_unix {
                encode_lone_gauge(
                    e,
                    "crl_next_update_timestamp_seconds",
                    "When the first revocation list expires, in Unix time",
                    next,
                )?;
            }
        }
        if let Some(certificate) = &trust.client_certificate {
            encode_lone_gauge(
                e,
                "client_certificate_not_after_timestamp_seconds",
                "When our client certificate ends, in Unix time",
                certificate.not_after_unix,
            )?;
        }
        Ok(())
    }
}
