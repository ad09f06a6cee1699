//! Which addresses of a name took no connection lately. Such an address is asked last, for a while that doubles with each failure;
//! nothing is ever given up: when no other address works, it is tried all the same.
//!
//! What is known comes from real use. When the while is over, one connection is made to the address beside the requests, and not
//! by one of them ([`Health::due`]): an address that swallows packets costs no request its time again. Without requests nothing
//! is checked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::relay::network::NetworkId;

/// How long an address is asked last after its first failure: what a restart takes.
const FIRST: Duration = Duration::from_secs(1);
/// And at most.
const LONGEST: Duration = Duration::from_secs(60);
/// Addresses that are remembered by a thread; more fail only where everything fails.
const MAX_KNOWN: usize = 256;

/// Connections that may be made in each other's place. What one of them met says nothing of another: a server may refuse one name
/// and serve another, and what is meant for a private address, or goes through the outbound proxy, has addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::relay) struct Road {
    pub(super) network: NetworkId,
    pub(super) name: Arc<str>,
    /// The original destination, where it is dialled.
    pub(super) original: Option<SocketAddr>,
    /// Through the outbound proxy.
    pub(super) proxied: bool,
}

/// An address on such a road.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::relay) struct Place {
    pub(super) road: Road,
    pub(super) address: SocketAddr,
}

/// An address that failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    times: u32,
    until: Instant,
    /// It is being checked.
    checked: bool,
}

/// What a thread knows.
#[derive(Debug, Default)]
pub(in crate::relay) struct Health(RefCell<HashMap<Place, Failed>>);

impl Health {
    /// A connection was made.
    pub(super) fn works(&self, place: &Place) {
        if self.0.borrow_mut().remove(place).is_some() {
            tracing::info!(name = %place.road.name, address = %place.address, "takes connections again");
        }
    }

    /// No connection was made. Says for how long the address is asked last from now on.
    pub(super) fn fails(&self, place: &Place) -> Duration {
        let now = Instant::now();
        let mut known = self.0.borrow_mut();
        if known.len() >= MAX_KNOWN && !known.contains_key(place) {
            known.retain(|_, failed| failed.until > now);
            if known.len() >= MAX_KNOWN {
                return Duration::ZERO;
            }
        }
        let failed = known.entry(place.clone()).or_insert(Failed {
            times: 0,
            until: now,
            checked: false,
        });
        // Several that were on their way at once are one failure.
        if failed.times == 0 || failed.until <= now {
            let pause = FIRST * 2_u32.saturating_pow(failed.times);
            failed.times = failed.times.saturating_add(1).min(16);
            failed.until = now + pause.min(LONGEST);
        }
        failed.checked = false;
        failed.until.saturating_duration_since(now)
    }

    /// True for an address that failed last time.
    pub(super) fn is_out(&self, place: &Place) -> bool {
        self.0.borrow().contains_key(place)
    }

    /// Puts those that failed last, the longest ago first among them.
    pub(super) fn sort(&self, road: &Road, addresses: &mut [SocketAddr]) {
        let known = self.0.borrow();
        // The usual way.
        if known.is_empty() {
            return;
        }
        addresses.sort_by_key(|address| {
            let place = Place {
                road: road.clone(),
                address: *address,
            };
            known.get(&place).map(|failed| failed.until)
        });
    }

    /// The addresses of a road whose while is over; each is to be checked by whoever was told, once.
    pub(super) fn due(&self, road: &Road) -> Vec<SocketAddr> {
        let mut known = self.0.borrow_mut();
        if known.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let due = known
            .iter_mut()
            .filter(|(place, failed)| place.road == *road && failed.until <= now && !failed.checked);
        due.map(|(place, failed)| {
            failed.checked = true;
            place.address
        })
        .collect()
    }

    /// A network is gone.
    pub(in crate::relay) fn leave(&self, network: NetworkId) {
        self.0
            .borrow_mut()
            .retain(|place, _| place.road.network != network);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(last: u8) -> Place {
        Place {
            road: Road {
                network: NetworkId::HOST,
                name: Arc::from("trace.agent.ddog-gov.com"),
                original: None,
                proxied: false,
            },
            address: ([203, 0, 113, last], 443).into(),
        }
    }

    fn sorted(health: &Health) -> Vec<u8> {
        let mut addresses: Vec<SocketAddr> = (1..=3).map(|last| place(last).address).collect();
        health.sort(&place(1).road, &mut addresses);
        addresses
            .iter()
            .map(|address| match address.ip() {
                std::net::IpAddr::V4(ip) => ip.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_asked_last_until_it_works() {
        let health = Health::default();
        assert_eq!(sorted(&health), [1, 2, 3]);
        health.fails(&place(1));
        assert_eq!(sorted(&health), [2, 3, 1]);
        tokio::time::advance(Duration::from_millis(10)).await;
        health.fails(&place(2));
        assert_eq!(
            sorted(&health),
            [3, 1, 2],
            "the one that failed longer ago goes first"
        );
        assert!(health.is_out(&place(1)) && !health.is_out(&place(3)));
        health.works(&place(1));
        assert_eq!(sorted(&health), [1, 3, 2]);
        // Others are not meant.
        let mut others = vec![place(2), place(2), place(2)];
        others[0].road.name = Arc::from("api.ddog-gov.com");
        others[1].road.original = Some(place(2).address);
        others[2].road.proxied = true;
        for other in others {
            assert!(!health.is_out(&other), "{other:?}");
            assert_eq!(health.due(&other.road), []);
        }
        health.leave(NetworkId(7));
        assert!(health.is_out(&place(2)));
        health.leave(NetworkId::HOST);
        assert!(!health.is_out(&place(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_checked_once_each_time_after_a_while_that_doubles() {
        let health = Health::default();
        let due = || health.due(&place(1).road).len();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            health.fails(&place(1));
            // Those that were on their way.
            health.fails(&place(1));
            let start = Instant::now();
            while due() == 0 {
                tokio::time::advance(Duration::from_millis(500)).await;
            }
            assert_eq!(due(), 0, "somebody checks it already");
            pauses.push(start.elapsed().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        health.works(&place(1));
        assert_eq!(due(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let health = Health::default();
        for number in 0..1000_u16 {
            let mut place = place(1);
            place.address.set_port(number);
            health.fails(&place);
        }
        assert_eq!(health.0.borrow().len(), MAX_KNOWN);
        tokio::time::advance(FIRST * 2).await;
        health.fails(&place(9));
        assert!(health.is_out(&place(9)));
    }
}
