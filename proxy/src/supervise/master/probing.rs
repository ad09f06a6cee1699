//! Connections of our own: which ways there are, and when they are tried.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Master;
use crate::intercept::Taken;
use crate::self_test;
use crate::supervise::admin::Answer;
use crate::supervise::prober::verdict::{self, Evidence};
use crate::supervise::prober::{From, Place, Way};
use crate::supervise::protocol::{Purpose, ToWorker};
use crate::tls::module::SelfTest;

/// How long the worker may take for the module's tests, which take milliseconds.
const MODULE: Duration = Duration::from_secs(5);

/// A self-test that somebody waits for.
pub(super) struct SelfTesting {
    tell: Vec<oneshot::Sender<Answer>>,
    /// What the worker says of the module.
    pub(super) module: Option<Result<SelfTest, String>>,
    /// Until when it may.
    until: Instant,
}

impl Master {
    /// Tries every way when it is time, while somebody serves.
    pub(super) async fn probe(&mut self) {
        self.prober.look_after().await;
        // Whoever waits has all ways tried already.
        if !self.prober.is_due() || !self.serves() || self.self_testing.is_some() {
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
        ways.extend(self.taken_ways().await);
        self.prober.try_all(ways).await;
    }

    pub(super) async fn on_self_test(&mut self) {
        self.finish_self_test();
        self.announce();
        self.push_state().await;
    }

    /// Tries everything now, for whoever waits behind `tell`; one who comes while that goes on hears the same.
    pub(super) async fn begin_self_test(&mut self, tell: oneshot::Sender<Answer>) {
        if let Some(testing) = &mut self.self_testing {
            testing.tell.push(tell);
            return;
        }
        if !self.serves() {
            // Whoever asked may have gone.
            let _ = tell.send(Answer::Error("no worker serves now; the log says why".to_owned()));
            return;
        }
        self.follow_agents().await;
        let first = self.first_worker;
        let worker = self.workers.iter_mut().rev();
        let worker = worker.filter(|worker| worker.ready && !worker.draining && worker.id >= first);
        let module = match worker.into_iter().next() {
            Some(worker) => {
                worker.send(&ToWorker::SelfTest).await;
                None
            }
            None => Some(Err("the worker is still that of the program before".to_owned())),
        };
        self.self_testing = Some(SelfTesting {
            tell: vec![tell],
            module,
            until: Instant::now() + MODULE,
        });
        let bound = self
            .explicit_ports()
            .into_iter()
            .filter(|(.., unbound)| unbound.is_none());
        let mut ways: Vec<Way> = bound
            .map(|(_, address, _)| Way {
                name: verdict::port_way(address),
                address,
                from: From::Here,
            })
            .collect();
        ways.extend(self.taken_ways().await);
        self.prober.demand(ways).await;
        self.finish_self_test();
    }

    /// Answers whoever waits for a self-test, once everything is known.
    pub(super) fn finish_self_test(&mut self) {
        let Some(testing) = &mut self.self_testing else {
            return;
        };
        if testing.module.is_none() {
            if Instant::now() < testing.until {
                return;
            }
            testing.module = Some(Err(format!(
                "the worker did not answer within {} s",
                MODULE.as_secs()
            )));
        }
        let Some(results) = self.prober.demanded() else {
            return;
        };
        let Some(testing) = self.self_testing.take() else {
            return;
        };
        let verdict = verdict::judge(Evidence {
            interception: &self.interception.status(),
            unhooked: &self.interception.unhooked(),
            results: &results,
            ports: &self.explicit_ports(),
            module: testing.module.unwrap_or_else(|| Err("not asked".to_owned())),
        });
        let body = serde_json::to_value(&verdict).unwrap_or_default();
        for tell in testing.tell {
            // Whoever asked may have gone.
            let _ = tell.send(Answer::Ok(body.clone()));
        }
    }

    fn serves(&self) -> bool {
        self.workers.iter().any(|worker| worker.ready && !worker.draining)
    }

    /// Every port of the Agent's range: product, address, and why it is not bound.
    fn explicit_ports(&self) -> Vec<(String, SocketAddr, Option<String>)> {
        let ports = self.listeners.states();
        ports
            .filter(|(purpose, ..)| matches!(purpose, Purpose::Explicit(_)))
            .map(|(purpose, address, unbound)| (purpose.name().into_owned(), address, unbound))
            .collect()
    }

    /// The ways of Agents that are taken, with a process that makes connections as they do.
    async fn taken_ways(&mut self) -> Vec<Way> {
        if !self.interception.attached() {
            self.prober.end();
            return Vec::new();
        }
        match self.interception.probe_cgroups() {
            Ok([bare, hooked]) => {
                if !self.interception.probe_is_ready() {
                    self.follow_agents().await;
                }
                self.prober.start(&Place { bare, hooked }).await;
            }
            Err(error) => {
                self.prober
                    .fail(format!("cannot make connections of our own: {error}"));
                return Vec::new();
            }
        }
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
