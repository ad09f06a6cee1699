//! What settings say together: pairs that cannot be, each named with both keys, and what is allowed but should be
//! known.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{ConfigError, Source};
use super::keys::{Draft, share};
use super::{Config, Datapath, HttpsException, Limits, ListenAddress};
use crate::catalog::{self, Catalog};

mod upstream;

/// A configuration and what was found.
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<String>,
}

/// Completes the draft and judges it as a whole. Keys that `failed` by themselves hold a default here, and are left
/// out.
pub(super) fn whole(
    draft: Draft,
    requested: bool,
    sources: &BTreeMap<&'static str, Source>,
    failed: &BTreeSet<&'static str>,
) -> Checked {
    let Draft {
        mut config,
        status_port,
        max_connections_per_agent,
    } = draft;
    config.intercept.requested = requested;
    config.status.port = status_port.unwrap_or(config.explicit.port_range_start);
    config.limits.max_connections_per_agent =
        max_connections_per_agent.unwrap_or_else(|| share(config.limits.max_connections));
    let mut check = Check {
        sources,
        failed,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    check.something_to_do(&config);
    check.agents(&config);
    check.passthrough_names(&config);
    check.mark(&config);
    check.status_port(&config);
    check.connections(&config.limits);
    check.authority(&config);
    check.upstream(&config.upstream);
    check.clear_text(&config);
    let Check { errors, warnings, .. } = check;
    Checked {
        config,
        errors,
        warnings,
    }
}

struct Check<'a> {
    sources: &'a BTreeMap<&'static str, Source>,
    failed: &'a BTreeSet<&'static str>,
    errors: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Check<'_> {
    fn something_to_do(&mut self, config: &Config) {
        if !config.explicit.enabled && !config.intercept.enabled {
            self.refuse(
                ["explicit.enabled", "intercept.enabled"],
                "both are false, so there is nothing to do; set one of them to true",
            );
        }
    }

    fn agents(&mut self, config: &Config) {
        let intercept = &config.intercept;
        if intercept.enabled && intercept.agents.is_empty() && intercept.interfaces.is_empty() {
            self.refuse(
                ["intercept.agents.cgroups", "intercept.enabled"],
                "interception is on, but the list of Agents is empty; name their cgroups or set \
                 intercept.enabled to false",
            );
        }
        if !intercept.interfaces.is_empty() && intercept.datapath == Datapath::Cgroup {
            self.refuse(
                ["intercept.interfaces", "intercept.datapath"],
                "interfaces are taken by the tc datapath only; set intercept.datapath to auto or tc, or leave \
                 intercept.interfaces out",
            );
        }
    }

    /// A name that is no intake's is never terminated: an entry for it is a mistake, most likely of the site.
    fn passthrough_names(&mut self, config: &Config) {
        let catalog = Catalog::new(&config.site);
        for exception in &config.intercept.https_passthrough_names {
            let HttpsException::Name(name) = exception else {
                continue;
            };
            let known = match name.strip_prefix('*') {
                None => catalog.lookup(name).is_some(),
                Some(rest) => rest.ends_with(&format!(".{}", config.site)),
            };
            if !known {
                let problem = format!(
                    "`{name}` is no intake name of the site {}, so it is never terminated; name what `status` or \
                     docs/reference/PRODUCTS.md shows",
                    config.site
                );
                self.refuse(["intercept.https_passthrough_names", "site"], &problem);
            }
        }
    }

    fn mark(&mut self, config: &Config) {
        let mark = config.intercept.mark;
        if mark.value & !mark.mask != 0 {
            let problem =
                format!("{mark}: the value has bits outside of the mask; the kernel would never see it");
            self.refuse(["intercept.mark.value", "intercept.mark.mask"], &problem);
        }
    }

    fn status_port(&mut self, config: &Config) {
        let taken = catalog::TABLE.iter().find(|entry| {
            entry.offset.is_some_and(|offset| {
                config.explicit.port_range_start.checked_add(offset) == Some(config.status.port)
            })
        });
        if let Some(entry) = taken.filter(|_| {
            config.explicit.enabled && overlap(config.status.address, config.explicit.local_address)
        }) {
            let problem = format!(
                "{} is the port of the product {} (range from {}); leave status.port out, or choose a port \
                 outside the range",
                config.status.port, entry.name, config.explicit.port_range_start
            );
            self.refuse(["status.port", "explicit.port_range_start"], &problem);
        }
    }

    fn connections(&mut self, limits: &Limits) {
        if limits.max_connections_per_agent > limits.max_connections {
            let problem = format!(
                "one Agent may have {}, all together {}: leave limits.max_connections_per_agent out, or set it to a smaller \
                 number",
                limits.max_connections_per_agent, limits.max_connections
            );
            self.refuse(
                ["limits.max_connections_per_agent", "limits.max_connections"],
                &problem,
            );
        }
    }

    /// The files themselves are judged when they are used: whoever checks a configuration need not be root.
    fn authority(&mut self, config: &Config) {
        if config.ca.certificate_file.is_some() != config.ca.key_file.is_some() {
            self.refuse(
                ["ca.certificate_file", "ca.key_file"],
                "one is set without the other; an authority of your own needs both, ours needs neither",
            );
        }
    }

    fn clear_text(&mut self, config: &Config) {
        if config.explicit.enabled && !is_loopback(config.explicit.local_address) {
            self.warnings.push(format!(
                "explicit.local_address ({}) is {}: Agents send API keys and data to it in clear text, and \
                 whoever reaches it can use the proxy",
                self.source("explicit.local_address"),
                config.explicit.local_address
            ));
        }
        if !is_loopback(config.status.address) {
            self.warnings.push(format!(
                "status.address ({}) is {}: whoever reaches it reads status and metrics, in clear text and \
                 without a password",
                self.source("status.address"),
                config.status.address
            ));
        }
    }

    /// An error of `keys` together; the first one that was set gives the place.
    fn refuse<const N: usize>(&mut self, keys: [&'static str; N], problem: &str) {
        if keys.iter().any(|key| self.failed.contains(key)) {
            return;
        }
        let first = keys
            .iter()
            .copied()
            .find(|key| self.sources.contains_key(key))
            .unwrap_or(keys[0]);
        let source = self.source(first);
        self.errors
            .push(ConfigError::new(source, keys.join(" and "), problem));
    }

    fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }
}

/// True when both would bind the same address.
fn overlap(a: ListenAddress, b: ListenAddress) -> bool {
    let (a, b) = (a.addresses(), b.addresses());
    a.iter().any(|x| {
        b.iter()
            .any(|y| x == y || x.is_unspecified() || y.is_unspecified())
    })
}

fn is_loopback(address: ListenAddress) -> bool {
    address
        .addresses()
        .iter()
        .all(|address| address.to_canonical().is_loopback())
}
