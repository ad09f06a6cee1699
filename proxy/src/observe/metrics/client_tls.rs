//! TLS with Agents: sessions by what they agreed on, those that were not made, and clients that do not trust us.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Encoded, Metrics, encode_counter, encode_lone_gauge};
use crate::observe::distrust::{DistrustStatus, Distrusting};
use crate::relay::outcome::{ClientTls, Said, TlsClient};
use crate::supervise::protocol::ClientTlsStatus;
use crate::tls::server::REASONS;

#[derive(Debug, Default)]
pub(super) struct ClientTlsCounters {
    /// The server of a session that passes through chooses what it agrees on, so that the keys are many but not endless: the
    /// registries of suites and groups bound them.
    sessions: Mutex<BTreeMap<ClientTls, u64>>,
    failures: [AtomicU64; REASONS.len()],
    distrusting: Distrusting,
}

/// Combinations that are told apart; more count as the last.
const MOST: usize = 256;

impl ClientTlsCounters {
    pub(super) fn made(&self, tls: &ClientTls) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = sessions.get_mut(tls) {
            *n += 1;
        } else if sessions.len() < MOST {
            sessions.insert(tls.clone(), 1);
        } else if let Some(mut last) = sessions.last_entry() {
            *last.get_mut() += 1;
        }
    }

    pub(super) fn failed(&self, reason: &'static str) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.failures[at].fetch_add(1, Relaxed);
        }
    }

    pub(super) fn trusts(&self, client: &TlsClient) {
        self.distrusting.trusts(client);
    }

    pub(super) fn distrusts(&self, client: &TlsClient, said: &Said) {
        self.distrusting.seen(client, said);
    }

    pub(super) fn encode(&self, e: &mut DescriptorEncoder) -> Encoded {
        let mut family = e.encode_descriptor(
            "client_tls",
            "TLS sessions of Agents: with us, or, passed through, the Agent's own; policy says in what one is below it",
            None,
            MetricType::Counter,
        )?;
        for (tls, n) in self
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let labels = [
                ("decision", tls.decision.as_str()),
                ("version", tls.version.as_str()),
                ("suite", tls.suite.as_str()),
                ("group", tls.group.as_deref().unwrap_or("-")),
                ("policy", tls.below.as_deref().unwrap_or("within")),
            ];
            encode_counter(&mut family, &labels, *n)?;
        }
        let mut family = e.encode_descriptor(
            "client_tls_failures",
            "TLS handshakes of Agents with us that failed",
            None,
            MetricType::Counter,
        )?;
        for (reason, n) in REASONS.iter().zip(&self.failures) {
            let n = n.load(Relaxed);
            if n > 0 {
                encode_counter(&mut family, &[("reason", *reason)], n)?;
            }
        }
        let distrusting = u64::try_from(self.distrusting.status().len()).unwrap_or(u64::MAX);
        encode_lone_gauge(
            e,
            "distrusting_clients",
            "Clients that do not trust the local authority and get nowhere",
            distrusting,
        )
    }
}

impl Metrics {
    /// TLS sessions of Agents by what they agreed on.
    pub fn client_tls(&self) -> Vec<ClientTlsStatus> {
        let sessions = &self.counters.client_tls.sessions;
        let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions
            .iter()
            .map(|(tls, sessions)| ClientTlsStatus {
                tls: tls.clone(),
                sessions: *sessions,
            })
            .collect()
    }

    /// Clients that do not trust the local authority.
    pub fn distrusting(&self) -> Vec<DistrustStatus> {
        self.counters.client_tls.distrusting.status()
    }
}
