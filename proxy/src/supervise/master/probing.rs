//! Connections of our own: which ways there are, and when they are tried.

use std::net::SocketAddr;

use super::Master;
use crate::intercept::Taken;
use crate::self_test;
use crate::supervise::prober::{From, Place, Way};

impl Master {
    /// Tries every way when it is time, while somebody serves.
    pub(super) async fn probe(&mut self) {
        self.prober.look_after().await;
        if !self.prober.is_due() || !self.workers.iter().any(|worker| worker.ready && !worker.draining) {
            return;
        }
        let mut ways = Vec::new();
        if let Some(address) = self.listeners.explicit() {
            ways.push(Way {
                name: "explicit".to_owned(),
                address,
                from: From::Here,
            });
        }
        if self.interception.attached() {
            match self.interception.probe_cgroups() {
                Ok([bare, hooked]) => {
                    if !self.interception.probe_is_ready() {
                        self.follow_agents().await;
                    }
                    self.prober.start(&Place { bare, hooked }).await;
                    ways.extend(self.taken_ways());
                }
                Err(error) => self
                    .prober
                    .fail(format!("cannot make connections of our own: {error}")),
            }
        } else {
            self.prober.end();
        }
        self.prober.try_all(ways).await;
    }

    pub(super) async fn on_self_test(&mut self) {
        self.announce();
        self.push_state().await;
    }

    fn taken_ways(&self) -> Vec<Way> {
        let ways = match self.interception.ways() {
            Ok(ways) => ways,
            Err(error) => {
                tracing::error!(%error, "cannot try the ways of Agents' connections: is LimitNOFILE too low?");
                return Vec::new();
            }
        };
        let [v4, _] = self_test::ADDRESSES;
        // Any port that is taken does.
        let Some(port) = self.config.intercept.ports.first() else {
            return Vec::new();
        };
        let address = SocketAddr::new(v4, *port);
        ways.into_iter()
            .map(|way| Way {
                name: way.name,
                address,
                from: From::Cgroup {
                    hooked: way.taken == Taken::Cgroup,
                    namespace: way.namespace,
                },
            })
            .collect()
    }
}
