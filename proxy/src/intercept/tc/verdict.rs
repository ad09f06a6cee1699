//! Whether packets reach our classifier, given who else is there and what they answer. Pure: the kernel's rules and the
//! vendor table of the design, nothing else.
//!
//! The kernel's rules: TCX programs run first. -1 goes on to the next; 0, 2 and 7 are final, and no classic filter runs
//! after them; any other value ends TCX and goes on to the classic filters (`tcx_run`, 6.6). Classic filters run by
//! priority; with direct action 0, 2, 4, 7 and 8 end the run, anything else goes on (`cls_bpf_exec_opcode`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::chain::{Entry, Place};

/// What a program answers for an intake packet. The names are those of linux/pkt_cls.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Returns {
    /// -1: the next one decides.
    Unspec,
    /// 0: the packet goes on, and no other classifier sees it.
    Ok,
    /// 2: dropped.
    Shot,
    /// 7: sent elsewhere.
    Redirect,
    /// Another value.
    Other(i32),
    /// Nobody looked.
    Unknown,
}

impl fmt::Display for Returns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unspec => f.write_str("UNSPEC"),
            Self::Ok => f.write_str("OK"),
            Self::Shot => f.write_str("SHOT"),
            Self::Redirect => f.write_str("REDIRECT"),
            Self::Other(value) => value.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl From<i32> for Returns {
    fn from(value: i32) -> Self {
        match value {
            -1 => Self::Unspec,
            0 => Self::Ok,
            2 => Self::Shot,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// How ours is, or would be, attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// At the head of TCX.
    TcxFirst,
    /// A classic filter.
    Classic {
        /// `intercept.classifier_priority`
        priority: u16,
        /// `intercept.classifier_same_priority: prepend`
        prepend: bool,
    },
}

/// A foreign classifier and what it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The classifier.
    pub entry: Entry,
    /// Its answer.
    pub returns: Returns,
}

/// Whether packets reach ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// They do.
    Yes,
    /// They do not.
    No {
        /// Who stops them.
        by: String,
        /// What to set.
        setting: String,
    },
    /// It depends on somebody whose answer nobody knows.
    Unknown {
        /// On whom.
        by: String,
        /// Why it is not known.
        why: String,
        /// What makes sure.
        setting: String,
    },
}

/// The forecast for one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Whether packets reach ours.
    pub reached: Reached,
    /// What else to know; empty when there is nothing to do.
    pub advice: Vec<String>,
}

/// What comes after a classifier answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Next,
    /// The rest of TCX is left out.
    Classic,
    End,
    Unknown,
}

/// Foresees what happens. `chain` is what is there without ours, in the order of [`super::chain()`].
pub fn forecast(chain: &[Judged], ours: Attachment) -> Forecast {
    let mut unknown = None;
    let mut skip_tcx = false;
    for judged in chain.iter().filter(|judged| runs_before(&judged.entry, ours)) {
        if skip_tcx && judged.entry.place == Place::Tcx {
            continue;
        }
        match then(judged) {
            Then::Next => {}
            Then::Classic => skip_tcx = true,
            Then::End => {
                return Forecast {
                    reached: Reached::No {
                        by: judged.entry.to_string(),
                        setting: setting(chain, judged, ours),
                    },
                    advice: Vec::new(),
                };
            }
            Then::Unknown => unknown = unknown.or(Some(judged)),
        }
    }
    let reached = unknown.map_or(Reached::Yes, |judged| Reached::Unknown {
        by: judged.entry.to_string(),
        why: why_unknown(judged).to_owned(),
        setting: setting(chain, judged, ours),
    });
    Forecast {
        advice: advice(chain, ours),
        reached,
    }
}

/// True for those that see a packet before ours does.
fn runs_before(entry: &Entry, ours: Attachment) -> bool {
    match (ours, entry.place) {
        (Attachment::TcxFirst, _) => false,
        (Attachment::Classic { .. }, Place::Tcx) => true,
        (
            Attachment::Classic { priority, prepend },
            Place::Classic {
                priority: theirs,
                chain,
                protocol,
                ..
            },
        ) => {
            // Other chains are entered by a jump only. At our own priority the newest is first, so that whoever comes
            // or comes back later is; only `prepend` puts ours back. It needs the same kind and protocol.
            let same = !(prepend && can_share(entry, protocol));
            chain == 0 && (theirs < priority || (theirs == priority && same))
        }
    }
}

/// One priority holds one kind and one protocol: else the kernel refuses ours (EINVAL). 3 is `ETH_P_ALL`.
fn can_share(entry: &Entry, protocol: u16) -> bool {
    entry.kind == "bpf" && protocol == 3
}

fn then(judged: &Judged) -> Then {
    let Judged { entry, returns } = judged;
    if !entry.direct_action || entry.program.is_none() {
        return Then::Unknown;
    }
    match (entry.place, returns) {
        (_, Returns::Unknown) => Then::Unknown,
        (_, Returns::Unspec) => Then::Next,
        (_, Returns::Ok | Returns::Shot | Returns::Redirect) => Then::End,
        (Place::Tcx, Returns::Other(_)) => Then::Classic,
        // TC_ACT_STOLEN and TC_ACT_TRAP.
        (Place::Classic { .. }, Returns::Other(4 | 8)) => Then::End,
        (Place::Classic { .. }, Returns::Other(_)) => Then::Next,
    }
}

fn why_unknown(judged: &Judged) -> &'static str {
    if judged.entry.kind != "bpf" || judged.entry.program.is_none() {
        "it is no eBPF program: which packets it takes depends on its own rules and actions"
    } else if !judged.entry.direct_action {
        "it is not in direct-action mode: what happens depends on the actions behind it"
    } else {
        "nobody looked what it answers; `agent-fips-proxy doctor --probe` asks it with one test packet"
    }
}

/// What makes ours come before everyone who may stop a packet.
fn setting(chain: &[Judged], by: &Judged, ours: Attachment) -> String {
    let Attachment::Classic { priority, .. } = ours else {
        return "intercept.datapath: cgroup".to_owned();
    };
    const EARLIER: &str = "intercept.classifier_attach: tcx (Linux 6.6), or intercept.datapath: cgroup";
    let stopping = |judged: &&Judged| matches!(then(judged), Then::End | Then::Unknown);
    if by.entry.place == Place::Tcx || chain.iter().any(|j| j.entry.place == Place::Tcx && stopping(&j)) {
        return format!("{EARLIER}; no priority of a classic filter is reached after TCX");
    }
    let first = chain
        .iter()
        .filter(|judged| runs_before(&judged.entry, ours) && stopping(judged))
        .filter_map(|judged| match judged.entry.place {
            Place::Classic { priority, .. } => Some(priority),
            Place::Tcx => None,
        })
        .min()
        .unwrap_or(priority);
    let order = if first == priority {
        ": at equal priority whoever is added last runs first"
    } else {
        ""
    };
    if first > 1 {
        let lower = first - 1;
        return format!("intercept.classifier_priority: {lower} (it must be lower than {first}{order})");
    }
    let sharing = match by.entry.place {
        Place::Classic { protocol, .. } => can_share(&by.entry, protocol),
        Place::Tcx => false,
    };
    if sharing {
        format!(
            "{EARLIER}; nothing is lower than priority 1{order}, so that a classic filter comes first only with \
             intercept.classifier_priority: 1 and intercept.classifier_same_priority: prepend"
        )
    } else {
        format!("{EARLIER}; nothing is lower than priority 1")
    }
}

/// What to know although packets reach ours.
fn advice(chain: &[Judged], ours: Attachment) -> Vec<String> {
    let mut advice = Vec::new();
    for judged in chain {
        let entry = &judged.entry;
        match (ours, entry.place) {
            (Attachment::TcxFirst, Place::Tcx) => advice.push(format!(
                "{entry} runs after ours; should it put itself first again, ours is put back a few times, then reported"
            )),
            (
                Attachment::Classic {
                    priority,
                    prepend: true,
                },
                Place::Classic { priority: theirs, .. },
            ) if theirs == priority => advice.push(format!(
                "{entry} shares priority {priority}: whoever is added last runs first, so ours is added anew whenever it \
                 comes back (intercept.classifier_same_priority: prepend)"
            )),
            _ => {}
        }
    }
    advice
}

#[cfg(test)]
mod tests;
