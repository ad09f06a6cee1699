//! What connections met at the addresses of each product's intake, and what failed last: said once for each connection or
//! failure, never for a request that goes well.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{PRODUCTS, product_index};
use crate::observe::view::{Health, LastFailure, UpstreamError, UpstreamStatus, UpstreamTlsStatus};
use crate::relay::UpstreamPlace;
use crate::relay::outcome::RequestRecord;
use crate::tls::Negotiated;

/// Addresses of a product that are remembered; the one that was met longest ago goes first.
const MOST_ADDRESSES: usize = 16;
/// Combinations of TLS parameters of a product: what we offer allows no more.
const MOST_TLS: usize = 64;
/// Bytes of a message that are kept.
const MOST_TEXT: usize = 400;

/// Rounds up to whole seconds.
const ALMOST: Duration = Duration::from_millis(999);

/// Version, suite, group.
pub(super) type Parameters = (String, String, String);

/// The parameters of a session.
pub(super) fn parameters(tls: &Negotiated) -> Parameters {
    let group = tls.group.clone().unwrap_or_else(|| "-".to_owned());
    (tls.version.clone(), tls.suite.clone(), group)
}

/// One entry a product.
#[derive(Debug)]
pub(super) struct Upstreams(Vec<Mutex<Intake>>);

#[derive(Debug, Default)]
struct Intake {
    addresses: Vec<Address>,
    tls: BTreeMap<Parameters, u64>,
    failure: Option<Failed>,
}

#[derive(Debug)]
struct Address {
    address: SocketAddr,
    name: String,
    host: String,
    met: Instant,
    connections: u64,
    connected: Option<Instant>,
    tls: Option<Parameters>,
    /// In a row.
    failures: u32,
    until: Instant,
    error: Option<(String, Instant)>,
}

#[derive(Debug)]
struct Failed {
    outcome: &'static str,
    error: Option<String>,
    at: Instant,
}

/// What is told of a product.
pub(super) struct Told {
    pub(super) upstream: Vec<UpstreamStatus>,
    pub(super) tls: Vec<UpstreamTlsStatus>,
    pub(super) last_failure: Option<LastFailure>,
}

impl Upstreams {
    pub(super) fn new() -> Self {
        Self((0..PRODUCTS).map(|_| Mutex::default()).collect())
    }

    /// A connection was made.
    pub(super) fn connected(&self, place: &UpstreamPlace<'_>, tls: &Negotiated) {
        let mut intake = self.lock(product_index(Some(place.product)));
        let parameters = parameters(tls);
        if let Some(n) = intake.tls.get_mut(&parameters) {
            *n += 1;
        } else if intake.tls.len() < MOST_TLS {
            intake.tls.insert(parameters.clone(), 1);
        }
        let address = intake.address(place);
        address.connections += 1;
        address.connected = Some(address.met);
        address.tls = Some(parameters);
        address.failures = 0;
    }

    /// None was made.
    pub(super) fn failed(&self, place: &UpstreamPlace<'_>, why: &dyn Display, pause: Duration) {
        let mut intake = self.lock(product_index(Some(place.product)));
        let address = intake.address(place);
        address.failures = address.failures.saturating_add(1);
        // Each data thread has a back-off of its own: the longest counts.
        address.until = address.until.max(address.met + pause);
        address.error = Some((short(why), address.met));
    }

    /// A request failed.
    pub(super) fn request_failed(&self, r: &RequestRecord) {
        self.lock(product_index(r.product)).failure = Some(Failed {
            outcome: r.outcome.label(),
            error: r.error.as_ref().map(short),
            at: Instant::now(),
        });
    }

    /// What is known of a product, without what its names say.
    pub(super) fn told(&self, product: usize) -> Told {
        let intake = self.lock(product);
        let now = Instant::now();
        Told {
            upstream: intake.addresses.iter().map(|address| address.told(now)).collect(),
            tls: (intake.tls.iter())
                .map(|((version, suite, group), handshakes)| UpstreamTlsStatus {
                    version: version.clone(),
                    suite: suite.clone(),
                    group: group.clone(),
                    handshakes: *handshakes,
                })
                .collect(),
            last_failure: intake.failure.as_ref().map(|failed| LastFailure {
                outcome: failed.outcome.to_owned(),
                error: failed.error.clone(),
                seconds_ago: seconds(now, failed.at),
            }),
        }
    }

    fn lock(&self, product: usize) -> MutexGuard<'_, Intake> {
        self.0[product].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intake {
    /// The entry of a place that is met now.
    fn address(&mut self, place: &UpstreamPlace<'_>) -> &mut Address {
        let now = Instant::now();
        let known = self
            .addresses
            .iter()
            .position(|known| known.address == place.address);
        let at = known.unwrap_or_else(|| {
            if self.addresses.len() >= MOST_ADDRESSES
                && let Some(oldest) = (0..self.addresses.len()).min_by_key(|&at| self.addresses[at].met)
            {
                self.addresses.remove(oldest);
            }
            self.addresses.push(Address {
                address: place.address,
                name: String::new(),
                host: String::new(),
                met: now,
                connections: 0,
                connected: None,
                tls: None,
                failures: 0,
                until: now,
                error: None,
            });
            self.addresses.len() - 1
        });
        let address = &mut self.addresses[at];
        address.met = now;
        place.name.clone_into(&mut address.name);
        place.host.clone_into(&mut address.host);
        address
    }
}

impl Address {
    fn told(&self, now: Instant) -> UpstreamStatus {
        UpstreamStatus {
            address: self.address,
            name: self.name.clone(),
            host: self.host.clone(),
            health: match self.failures {
                0 => Health::Ok,
                failures => Health::Ejected {
                    failures,
                    seconds: (self.until.saturating_duration_since(now) + ALMOST).as_secs(),
                },
            },
            connections: self.connections,
            connected_seconds_ago: self.connected.map(|at| seconds(now, at)),
            tls: (self.tls.as_ref()).map(|(version, suite, group)| format!("{version} {suite} {group}")),
            last_error: self.error.as_ref().map(|(why, at)| UpstreamError {
                why: why.clone(),
                seconds_ago: seconds(now, *at),
            }),
            dns: None,
        }
    }
}

fn seconds(now: Instant, then: Instant) -> u64 {
    now.saturating_duration_since(then).as_secs()
}

/// The beginning of a message.
fn short(text: impl Display) -> String {
    let mut text = text.to_string();
    if text.len() > MOST_TEXT {
        let end = (0..=MOST_TEXT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Product;

    fn place(last: u8) -> UpstreamPlace<'static> {
        UpstreamPlace {
            product: Product::Logs,
            name: "agent-http-intake.logs.ddog-gov.com",
            host: "vpce.example.net",
            address: ([203, 0, 113, last], 443).into(),
        }
    }

    fn logs(upstreams: &Upstreams) -> Told {
        upstreams.told(product_index(Some(Product::Logs)))
    }

    #[test]
    fn an_address_is_out_from_its_failure_to_its_next_connection() {
        let upstreams = Upstreams::new();
        let tls = Negotiated {
            version: "TLSv1.3".to_owned(),
            suite: "TLS_AES_256_GCM_SHA384".to_owned(),
            group: Some("X25519MLKEM768".to_owned()),
            ..Negotiated::default()
        };
        upstreams.connected(&place(1), &tls);
        upstreams.failed(&place(1), &"refused", Duration::from_secs(8));
        upstreams.failed(&place(1), &"refused again", Duration::from_secs(2));
        let told = logs(&upstreams);
        let address = &told.upstream[0];
        assert_eq!(
            address.health,
            Health::Ejected {
                failures: 2,
                seconds: 8
            }
        );
        assert_eq!(address.last_error.as_ref().unwrap().why, "refused again");
        assert_eq!(address.host, "vpce.example.net");
        assert_eq!(told.tls[0].handshakes, 1);
        upstreams.connected(&place(1), &tls);
        let told = logs(&upstreams);
        assert_eq!(told.upstream[0].health, Health::Ok);
        assert!(told.upstream[0].last_error.is_some(), "what was stays to be seen");
        assert_eq!(
            told.upstream[0].tls.as_deref(),
            Some("TLSv1.3 TLS_AES_256_GCM_SHA384 X25519MLKEM768")
        );
        assert_eq!(told.tls[0].handshakes, 2);
    }

    #[test]
    fn memory_is_bounded() {
        let upstreams = Upstreams::new();
        for last in 0..=255 {
            upstreams.failed(&place(last), &"ä".repeat(1000), Duration::ZERO);
        }
        let told = logs(&upstreams);
        assert_eq!(told.upstream.len(), MOST_ADDRESSES);
        assert_eq!(told.upstream.last().unwrap().address, place(255).address);
        assert!(told.upstream[0].last_error.as_ref().unwrap().why.len() < MOST_TEXT + 8);
    }
}
