//! Which datapath takes an Agent, and why. A pure function: the master acts on it, `doctor` prints it.

use serde::{Deserialize, Serialize};

use crate::config::Datapath;

/// How an Agent's connections come to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Taken {
    /// Rewritten at `connect()`, to a listener on the loopback of the Agent's own namespace.
    Cgroup,
    /// Marked on the host side of the pod's interface, and picked up by a transparent listener of the host.
    Tc,
}

impl Taken {
    /// `cgroup` or `tc`: as in the configuration, in status and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Tc => "tc",
        }
    }
}

/// What is known of an Agent in one network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The namespace is the host's.
    pub host: bool,
    /// Why its cgroups cannot be hooked; `None` when they can.
    pub no_cgroup: Option<&'a str>,
    /// Why no classifier can stand on the host side of its interface; `None` when one can, or when nobody looked yet.
    pub no_classifier: Option<&'a str>,
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// `None`: this Agent cannot be taken, `why` says what to change.
    pub taken: Option<Taken>,
    /// For people.
    pub why: String,
}

/// Chooses.
pub fn choose(configured: Datapath, facts: Facts<'_>) -> Choice {
    let by = |taken, why: String| Choice {
        taken: Some(taken),
        why,
    };
    let not = |why: String| Choice { taken: None, why };
    match (configured, facts) {
        (Datapath::Auto | Datapath::Cgroup, Facts { no_cgroup: None, .. }) => by(
            Taken::Cgroup,
            "connections are rewritten at connect(), before any network plugin sees a packet".to_owned(),
        ),
        (
            Datapath::Cgroup,
            Facts {
                no_cgroup: Some(cgroup),
                host,
                ..
            },
        ) => not(format!(
            "{cgroup}{}",
            if host {
                ""
            } else {
                "; intercept.datapath: auto would take it with tc"
            }
        )),
        (
            Datapath::Auto,
            Facts {
                host: true,
                no_cgroup: Some(cgroup),
                ..
            },
        ) => not(format!(
            "{cgroup}; it lives in the host's network namespace, where tc takes nobody"
        )),
        (Datapath::Tc, Facts { host: true, .. }) => not(
            "it lives in the host's network namespace, where tc takes nobody; set intercept.datapath: auto"
                .to_owned(),
        ),
        (
            Datapath::Auto,
            Facts {
                no_cgroup: Some(cgroup),
                no_classifier: Some(classifier),
                ..
            },
        ) => not(format!("cgroup: {cgroup}; tc: {classifier}")),
        (
            Datapath::Tc,
            Facts {
                no_classifier: Some(classifier),
                ..
            },
        ) => not(classifier.to_owned()),
        (
            Datapath::Auto,
            Facts {
                no_cgroup: Some(cgroup),
                ..
            },
        ) => by(Taken::Tc, format!("not by cgroup: {cgroup}")),
        (Datapath::Tc, _) => by(Taken::Tc, "intercept.datapath: tc".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case() {
        use Datapath::{Auto, Cgroup, Tc};
        let (c, t) = (Some(Taken::Cgroup), Some(Taken::Tc));
        let cases = [
            // configured, host, cgroup usable, classifier usable, expected, words of the reason
            (Auto, false, true, true, c, "connect()"),
            (Auto, false, true, false, c, "connect()"),
            (Auto, true, true, false, c, "connect()"),
            (Auto, false, false, true, t, "not by cgroup: no-cgroup"),
            (
                Auto,
                false,
                false,
                false,
                None,
                "cgroup: no-cgroup; tc: no-classifier",
            ),
            (Auto, true, false, true, None, "host's network namespace"),
            (Cgroup, false, true, true, c, "connect()"),
            (Cgroup, true, true, true, c, "connect()"),
            (Cgroup, false, false, true, None, "intercept.datapath: auto"),
            (Cgroup, true, false, true, None, "no-cgroup"),
            (Tc, false, true, true, t, "intercept.datapath: tc"),
            (Tc, false, false, true, t, "intercept.datapath: tc"),
            (Tc, false, true, false, None, "no-classifier"),
            (Tc, true, true, true, None, "intercept.datapath: auto"),
        ];
        for (configured, host, cgroup, classifier, taken, words) in cases {
            let facts = Facts {
                host,
                no_cgroup: (!cgroup).then_some("no-cgroup"),
                no_classifier: (!classifier).then_some("no-classifier"),
            };
            let choice = choose(configured, facts);
            assert_eq!(choice.taken, taken, "{configured:?} {facts:?}");
            assert!(
                choice.why.contains(words),
                "{configured:?} {facts:?}: {}",
                choice.why
            );
        }
    }
}
