//! The rows of `intercept` that concern Agents that speak HTTPS, in the order of the file.

use super::{KEY, SECURITY};
use crate::config::keys::parse::{list_text, word};
use crate::config::keys::{Key, Shape};
use crate::config::value::{choice, list, parsed};
use crate::config::{BelowPolicy, HttpsPolicy};

pub(super) const ROWS: &[Key] = &[
    Key {
        path: "intercept.https",
        accepted: "auto, terminate, passthrough, refuse",
        effect: "What happens to the TLS of an intercepted Agent that asks for an intake name. `terminate`: it \
                 ends here, under the local authority, and a session of ours goes to the intake; an authority is \
                 made when there is none. `passthrough`: it goes to its original destination as it is, with the \
                 Agent's own cryptography, which is read, recorded, and held to the policy \
                 (intercept.https_below_policy). `refuse`: the Agent gets an alert. `auto`: `terminate` once \
                 there is a local authority (`ca init`, ca.certificate_file), `passthrough` until then.",
        who: SECURITY,
        set: |draft, raw| {
            let words = [
                ("auto", HttpsPolicy::Auto),
                ("terminate", HttpsPolicy::Terminate),
                ("passthrough", HttpsPolicy::Passthrough),
                ("refuse", HttpsPolicy::Refuse),
            ];
            choice(raw, &words).map(|value| draft.config.intercept.https = value)
        },
        get: |config| word(&config.intercept.https),
        ..KEY
    },
    Key {
        path: "intercept.https_passthrough_names",
        shape: Shape::List,
        accepted: "a list of intake names such as config.datadoghq.com, of patterns such as \
                   *-app.agent.datadoghq.com, and of processes such as process:node",
        effect: "Whose HTTPS is passed through where it would be terminated or refused: clients that do not trust \
                 the local authority, because their roots are compiled in or a certificate is pinned. A process \
                 goes by its name in /proc/<pid>/comm, of at most 15 bytes, and is known with the datapath \
                 `cgroup` only. What passes is held to the policy as with `passthrough`. `status` says which \
                 clients do not trust us.",
        who: "operators of clients that `status` names as distrusting",
        set: |draft, raw| {
            list(raw, parsed).map(|value| draft.config.intercept.https_passthrough_names = value)
        },
        get: |config| list_text(&config.intercept.https_passthrough_names),
        ..KEY
    },
    Key {
        path: "intercept.https_below_policy",
        accepted: "refuse, record",
        effect: "An Agent's own session with an intake that passes through here and agrees on less than our own \
                 sessions under upstream.tls_policy `fips` do: a version below TLS 1.2, another suite, another \
                 group (X25519 alone is one), no extended master secret. `refuse`: it is cut before the Agent has \
                 sent anything. `record`: it is counted and goes on.",
        who: SECURITY,
        set: |draft, raw| {
            let words = [("refuse", BelowPolicy::Refuse), ("record", BelowPolicy::Record)];
            choice(raw, &words).map(|value| draft.config.intercept.https_below_policy = value)
        },
        get: |config| word(&config.intercept.https_below_policy),
        ..KEY
    },
];
