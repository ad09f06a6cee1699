//! How much is served at once, in total and of one Agent.
//!
//! One slot is one client connection, or one more request of an HTTP/2 connection that has requests open. So everything
//! that takes memory while it is served is bounded by two numbers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::network::NetworkId;
use crate::config::Limits;

/// All slots.
#[derive(Debug)]
pub struct Slots {
    used: AtomicUsize,
    max: usize,
    max_per_agent: usize,
    agents: Mutex<HashMap<NetworkId, Weak<Agent>>>,
}

/// The slots of one Agent, which is whoever is in one network: a pod, or the host.
#[derive(Debug)]
pub(super) struct Agent {
    used: AtomicUsize,
    all: Arc<Slots>,
}

/// A held slot; given back on drop, so that a cancelled task cannot leak it.
#[derive(Debug)]
pub(super) struct Slot(Arc<Agent>);

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Total,
    Agent,
}

impl Full {
    /// For people.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Total => "limits.max_connections reached",
            Self::Agent => "limits.max_connections_per_agent reached",
        }
    }
}

impl Slots {
    /// None is held.
    pub fn new(limits: &Limits) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max: limits.max_connections,
            max_per_agent: limits.max_connections_per_agent,
            agents: Mutex::default(),
        }
    }

    /// How many are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Those of one Agent. To be kept: asking takes a lock.
    pub(super) fn of(self: &Arc<Self>, network: NetworkId) -> Arc<Agent> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&network).and_then(Weak::upgrade) {
            return agent;
        }
        agents.retain(|_, agent| agent.strong_count() > 0);
        let agent = Arc::new(Agent {
            used: AtomicUsize::new(0),
            all: Arc::clone(self),
        });
        agents.insert(network, Arc::downgrade(&agent));
        agent
    }
}

impl Agent {
    /// Takes one, until the guard is dropped.
    pub(super) fn take(self: &Arc<Self>) -> Result<Slot, Full> {
        if !below(&self.used, self.all.max_per_agent) {
            return Err(Full::Agent);
        }
        if !below(&self.all.used, self.all.max) {
            self.used.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Total);
        }
        Ok(Slot(Arc::clone(self)))
    }
}

/// Counts one more, unless there are `max`.
fn below(used: &AtomicUsize, max: usize) -> bool {
    let more = |used| (used < max).then_some(used + 1);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        .is_ok()
}

impl Slot {
    /// Whose it is.
    pub(super) fn agent(&self) -> Arc<Agent> {
        Arc::clone(&self.0)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
        self.0.all.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn one_agent_leaves_room_for_another() {
        let slots = Arc::new(Slots::new(&Limits {
            max_connections: 4,
            max_connections_per_agent: 3,
            ..Config::default().limits
        }));
        let (a, b) = (slots.of(NetworkId(1)), slots.of(NetworkId(2)));
        assert!(Arc::ptr_eq(&a, &slots.of(NetworkId(1))));
        let mut held: Vec<Slot> = (0..3).map(|_| a.take().unwrap()).collect();
        assert_eq!(a.take().unwrap_err(), Full::Agent);
        held.push(b.take().unwrap());
        assert_eq!(b.take().unwrap_err(), Full::Total);
        assert_eq!(slots.used(), 4);
        held.remove(0);
        held.push(b.take().unwrap());
        assert_eq!(a.take().unwrap_err(), Full::Total);
        drop(held);
        assert_eq!(slots.used(), 0);
        // What a refusal took back is free.
        let held: Vec<Slot> = (0..3).map(|_| a.take().unwrap()).collect();
        assert_eq!(held.len(), 3);
    }

    #[test]
    fn agents_that_are_gone_are_forgotten() {
        let slots = Arc::new(Slots::new(&Config::default().limits));
        for number in 0..10 {
            drop(slots.of(NetworkId(number)));
        }
        assert_eq!(slots.agents.lock().unwrap().len(), 1);
    }
}
