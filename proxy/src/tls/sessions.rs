//! Sessions that are remembered for resumption. A resumed session's certificate is not verified again: so none outlives the time in
//! which the certificates are valid that it was verified with. An intake whose certificate has ended is met with a full handshake,
//! which says so.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// Sessions remembered, over all names; the catalogue has some seventy. Memory only, never on disk.
const REMEMBERED: usize = 256;
/// Names of which it is known until when their certificates are valid; patterns in the catalogue allow endless ones.
const NAMES: usize = 1024;

/// The library's memory, asked only within the time of the certificates.
#[derive(Debug)]
pub(super) struct Sessions {
    memory: ClientSessionMemoryCache,
    /// Of the last full handshake with each name.
    valid: Mutex<HashMap<ServerName<'static>, Valid>>,
}

/// When all certificates of a chain are valid: seconds of Unix time, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Valid {
    from: i64,
    until: i64,
}

impl Valid {
    /// Never, when one of them cannot be read.
    fn of(chain: &[CertificateDer<'_>]) -> Self {
        const NEVER: Valid = Valid { from: 1, until: 0 };
        let each = chain.iter().map(|der| {
            X509Certificate::from_der(der).map_or(NEVER, |(_, certificate)| Self {
                from: certificate.validity().not_before.timestamp(),
                until: certificate.validity().not_after.timestamp(),
            })
        });
        each.reduce(|all, one| Self {
            from: all.from.max(one.from),
            until: all.until.min(one.until),
        })
        .unwrap_or(NEVER)
    }

    fn contains(self, now: i64) -> bool {
        (self.from..=self.until).contains(&now)
    }
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self {
            memory: ClientSessionMemoryCache::new(REMEMBERED),
            valid: Mutex::default(),
        }
    }

    /// A full handshake with `name` was verified with this chain.
    pub(super) fn verified(&self, name: &ServerName<'static>, chain: &[CertificateDer<'_>]) {
        let valid = Valid::of(chain);
        let before = {
            let mut all = self.all();
            if all.len() >= NAMES && !all.contains_key(name) {
                all.clear();
            }
            all.insert(name.clone(), valid)
        };
        // What was remembered was verified with something else.
        if before.is_some_and(|before| before != valid) {
            self.forget(name);
        }
    }

    fn may_resume(&self, name: &ServerName<'_>) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_secs()).ok());
        let valid = self.all().get(&name.to_owned()).copied();
        matches!((valid, now), (Some(valid), Some(now)) if valid.contains(now))
    }

    fn forget(&self, name: &ServerName<'static>) {
        self.memory.remove_tls12_session(name);
        while self.memory.take_tls13_ticket(name).is_some() {}
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, Valid>> {
        self.valid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.memory.set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.memory.kx_hint(server_name)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.memory.set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.memory
            .tls12_session(server_name)
            .filter(|_| self.may_resume(server_name))
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.memory.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.memory.insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.memory
            .take_tls13_ticket(server_name)
            .filter(|_| self.may_resume(server_name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(from: i32, until: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["intake.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_chain_is_valid_as_long_as_all_of_it() {
        // 2020-01-01 and 2030-01-01.
        let (from, until) = (1_577_836_800, 1_893_456_000);
        let chain = [certificate(2010, 2030), certificate(2020, 2040)];
        let valid = Valid::of(&chain);
        assert_eq!(valid, Valid { from, until });
        assert!(valid.contains(from) && valid.contains(until));
        assert!(!valid.contains(from - 1) && !valid.contains(until + 1));
        let unreadable = [certificate(2010, 2030), CertificateDer::from(vec![1, 2, 3])];
        for never in [&unreadable[..], &[]] {
            assert!(!Valid::of(never).contains(from), "{never:?}");
        }
    }

    #[test]
    fn only_what_was_verified_and_is_valid_may_be_resumed() {
        let sessions = Sessions::new();
        let name = ServerName::try_from("intake.example").unwrap();
        assert!(!sessions.may_resume(&name));
        sessions.verified(&name, &[certificate(2020, 2090)]);
        assert!(sessions.may_resume(&name));
        sessions.verified(&name, &[certificate(2020, 2021)]);
        assert!(!sessions.may_resume(&name));
        sessions.verified(&name, &[certificate(2090, 2091)]);
        assert!(!sessions.may_resume(&name));
    }
}
