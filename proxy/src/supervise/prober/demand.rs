//! A look at every way at once, because somebody asks (`self-test`): beside the rounds, and without their limit.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{From, Prober, Tried, Way};

/// For all ways together. Each that fails may take twice [`super::LIMIT`], one after the other: where everything fails on a node
/// with hundreds of pods, the rest is told as not tried.
const AT_MOST: Duration = Duration::from_secs(60);

/// What is asked for, and what is known of it.
pub(super) struct Demand {
    waiting: VecDeque<Way>,
    results: BTreeMap<String, Option<Tried>>,
    until: Instant,
}

impl Demand {
    /// The way that is next, for the process that makes connections.
    pub(super) fn next(&mut self) -> Option<Way> {
        self.waiting.pop_front()
    }

    pub(super) fn note(&mut self, way: &str, tried: &Tried) {
        if let Some(result) = self.results.get_mut(way) {
            *result = Some(tried.clone());
        }
    }
}

impl Prober {
    /// Tries all of these ways now; their names are different ones. [`Prober::demanded`] has the results.
    pub async fn demand(&mut self, ways: Vec<Way>) {
        let mut demand = Demand {
            waiting: VecDeque::new(),
            results: ways.iter().map(|way| (way.name.clone(), None)).collect(),
            until: Instant::now() + AT_MOST,
        };
        for way in ways {
            match way.from {
                From::Here => self.ask_from_here(way, true),
                From::Cgroup { .. } => demand.waiting.push_back(way),
            }
        }
        let nobody = self.running.is_none() && !demand.waiting.is_empty();
        self.demand = Some(demand);
        if nobody {
            let why = self.problem.clone();
            let why = why.unwrap_or_else(|| "no process makes connections of our own now".to_owned());
            self.give_up_demand(&why);
        }
        self.ask_next().await;
    }

    /// The result of each way that was demanded, once all are there or the time is over; then they are forgotten.
    pub fn demanded(&mut self) -> Option<BTreeMap<String, Tried>> {
        let late = |demand: &Demand| Instant::now() >= demand.until;
        let demand = self
            .demand
            .take_if(|demand| late(demand) || demand.results.values().all(Option::is_some))?;
        let untried = || {
            Tried::not(format!(
                "not tried: the ways before it took {} s",
                AT_MOST.as_secs()
            ))
        };
        let results = demand.results.into_iter();
        Some(
            results
                .map(|(way, tried)| (way, tried.unwrap_or_else(untried)))
                .collect(),
        )
    }

    /// Nobody makes the connections that are still wanted. Those of this process itself go on.
    pub(super) fn give_up_demand(&mut self, why: &str) {
        let Some(demand) = &mut self.demand else { return };
        let asked = self.asked.take_if(|asked| asked.demanded);
        let waiting = demand.waiting.drain(..).map(|way| way.name);
        for way in waiting.chain(asked.map(|asked| asked.way)).collect::<Vec<_>>() {
            demand.note(&way, &Tried::not(why.to_owned()));
        }
    }
}
