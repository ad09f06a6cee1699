//! The one table of settings: name, default, what is accepted, what it does, who should change it, and how it is read
//! and shown. The parser, `config show`, the default file and the reference page are all made from [`TABLE`].

use std::thread;
use std::time::Duration;

pub use super::value::Shape;
use super::value::{Fault, Raw};
use super::{
    Agents, BelowPolicy, Ca, ClassifierAttach, Config, CrlPolicy, Datapath, Explicit, HttpsPolicy, Intercept,
    Limits, ListenAddress, Log, LogFormat, Mark, OnFailure, OutboundProxy, Pods, PodsApi, SamePriority,
    Status, TlsPolicy, Upstream, UpstreamNetwork, Worker,
};

mod parse;
mod table;

pub use table::TABLE;

/// What every variable of ours begins with.
pub const PREFIX: &str = "DD_FIPS_PROXY_";

/// One setting.
#[derive(Clone, Copy)]
pub struct Key {
    /// Its place in the file, as in `upstream.ca_file`.
    pub path: &'static str,
    /// How it is written on one line.
    pub shape: Shape,
    /// What is accepted, for messages and the reference.
    pub accepted: &'static str,
    /// The default in words, where it is not one fixed value.
    pub default_words: Option<&'static str>,
    /// A variable of the Agent's that stands in: it weighs more than the default, less than the file.
    pub fallback: Option<&'static str>,
    /// What it does, with its edge values.
    pub effect: &'static str,
    /// Who should change it.
    pub who: &'static str,
    /// Reads the value, checks it, and puts it into the draft.
    pub(super) set: fn(&mut Draft, &Raw) -> Result<(), Fault>,
    /// The value in use, as YAML on one line.
    pub(super) get: fn(&Config) -> String,
}

impl Key {
    /// `DD_FIPS_PROXY_` and the path in upper case joined by `_`: the Agent's own convention.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.path.replace('.', "_").to_ascii_uppercase())
    }

    /// Section and name: `upstream`, `ca_file`.
    pub fn split(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }
}

/// The row of `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    TABLE.iter().find(|key| key.path == path)
}

/// True when there are keys below `path`.
pub(super) fn is_section(path: &str) -> bool {
    TABLE.iter().any(|key| {
        key.path
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// The key that was probably meant, for a message. A known name in the wrong section counts as near.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let name = path.rsplit('.').next().unwrap_or(path);
    TABLE
        .iter()
        .map(|key| {
            (
                distance(path, key.path).min(distance(name, key.split().1) + 1),
                key.path,
            )
        })
        .min()
        .filter(|(distance, _)| *distance <= (name.len() / 3).max(2))
        .map(|(_, path)| path)
}

/// The variable that was probably meant.
pub(super) fn nearest_variable(variable: &str) -> Option<String> {
    TABLE
        .iter()
        .map(|key| (distance(variable, &key.variable()), key.variable()))
        .min()
        .filter(|(distance, _)| *distance <= (variable.len().saturating_sub(PREFIX.len()) / 3).max(2))
        .map(|(_, variable)| variable)
}

/// Insertions, removals and replacements between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut row = vec![left];
        for (y, corner) in b.iter().zip(above.windows(2)) {
            let (diagonal, up) = (corner[0], corner[1]);
            left = (diagonal + usize::from(x != *y)).min(up + 1).min(left + 1);
            row.push(left);
        }
        above = row;
    }
    above.last().copied().unwrap_or(0)
}

/// A configuration that is not checked as a whole yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    /// `status.port`, when it was set.
    pub(super) status_port: Option<u16>,
    /// `limits.max_connections_per_agent`, when it was set.
    pub(super) max_connections_per_agent: Option<usize>,
}

/// What one Agent may have of so many connections unless it is set: whoever runs wild leaves a quarter to the others.
pub(super) fn share(max_connections: usize) -> usize {
    max_connections - max_connections / 4
}

impl Default for Config {
    /// The defaults: here and nowhere else.
    fn default() -> Self {
        const PORT_RANGE_START: u16 = 9803;
        let seconds = Duration::from_secs;
        Self {
            site: crate::catalog::Site::default(),
            log: Log {
                level: "info".to_owned(),
                format: LogFormat::Text,
                access: false,
            },
            explicit: Explicit {
                enabled: true,
                local_address: ListenAddress::Localhost,
                port_range_start: PORT_RANGE_START,
                allowed_users: Vec::new(),
                allowed_cgroups: Vec::new(),
            },
            intercept: Intercept {
                enabled: true,
                requested: false,
                datapath: Datapath::Auto,
                agents: Agents {
                    cgroups: vec!["/system.slice/datadog-agent*.service".to_owned()],
                    namespaces: Vec::new(),
                    pods: Pods {
                        api: PodsApi::Auto,
                        label_selector: "agent.datadoghq.com/component=agent".to_owned(),
                        node: None,
                        service_account: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
                    },
                },
                ports: vec![80, 443],
                cidrs: Vec::new(),
                https: HttpsPolicy::Auto,
                https_passthrough_names: Vec::new(),
                https_below_policy: BelowPolicy::Refuse,
                on_failure: OnFailure::Closed,
                reset_existing: false,
                interfaces: Vec::new(),
                classifier_priority: 10,
                classifier_attach: ClassifierAttach::Auto,
                classifier_same_priority: SamePriority::Keep,
                mark: Mark {
                    value: 0x00d0_0000,
                    mask: 0x00f0_0000,
                },
            },
            ca: Ca {
                dir: "/var/lib/agent-fips-proxy/ca".into(),
                validity_days: 365,
                certificate_file: None,
                key_file: None,
            },
            upstream: Upstream {
                port: 443,
                network: UpstreamNetwork::Pod,
                ca_file: None,
                tls_policy: TlsPolicy::Fips,
                crl_dir: None,
                crl_policy: CrlPolicy::SoftFail,
                pins: Vec::new(),
                client_certificate_file: None,
                client_key_file: None,
                allow_private: Vec::new(),
                endpoints: std::collections::BTreeMap::new(),
                proxy: OutboundProxy::default(),
                connect_timeout: seconds(5),
                response_timeout: seconds(60),
                pool_idle_timeout: seconds(50),
            },
            limits: Limits {
                max_connections: 4096,
                max_connections_per_agent: share(4096),
                min_body_rate: 64,
                idle_timeout: seconds(120),
                header_timeout: seconds(10),
                max_header_bytes: 65536,
                drain_timeout: seconds(20),
            },
            status: Status {
                address: ListenAddress::Localhost,
                port: PORT_RANGE_START,
                socket: "/run/agent-fips-proxy/admin.sock".into(),
            },
            worker: Worker {
                user: "agent-fips-proxy".to_owned(),
                threads: thread::available_parallelism().map_or(1, usize::from).min(2),
                sandbox: true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_convention() {
        let mut variables: Vec<String> = TABLE.iter().map(Key::variable).collect();
        assert_eq!(variables[0], "DD_FIPS_PROXY_SITE");
        assert!(variables.contains(&"DD_FIPS_PROXY_INTERCEPT_AGENTS_PODS_LABEL_SELECTOR".to_owned()));
        variables.sort();
        variables.dedup();
        assert_eq!(variables.len(), TABLE.len(), "two keys with one variable");
        assert!(
            TABLE.iter().all(|key| !is_section(key.path)),
            "a key cannot also be a section"
        );
    }

    #[test]
    fn distances_are_levenshtein() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
            ("same", "same", 0),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_key_is_found_across_sections_and_nonsense_has_none() {
        assert_eq!(nearest("log.levle"), Some("log.level"));
        assert_eq!(nearest("port_range_start"), Some("explicit.port_range_start"));
        assert_eq!(nearest("upstream.tls_polcy"), Some("upstream.tls_policy"));
        assert_eq!(nearest("completely.unrelated"), None);
        assert_eq!(
            nearest_variable("DD_FIPS_PROXY_INTERCEPT_ENABLE").as_deref(),
            Some("DD_FIPS_PROXY_INTERCEPT_ENABLED")
        );
        assert_eq!(nearest_variable("DD_FIPS_PROXY_ZZZZZZZZZ"), None);
    }
}
