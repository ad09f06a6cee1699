//! What settings say together: pairs that cannot be, each named with both keys, and what is allowed but should be
//! known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::{ConfigError, Source};
use super::keys::Draft;
use super::{Config, Datapath, ListenAddress};
use crate::catalog;
use crate::tls::roots;

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
    } = draft;
    config.intercept.requested = requested;
    config.status.port = status_port.unwrap_or(config.explicit.port_range_start);
    let mut check = Check {
        sources,
        failed,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    check.something_to_do(&config);
    check.agents(&config);
    check.mark(&config);
    check.status_port(&config);
    check.endpoints(&config);
    check.roots(&config);
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

    /// An address that the proxy would refuse to dial is better refused here. Names are judged when they resolve.
    fn endpoints(&mut self, config: &Config) {
        for (product, endpoint) in &config.upstream.endpoints {
            let Ok(address) = endpoint.host.parse::<IpAddr>() else {
                continue;
            };
            let allowed = config
                .upstream
                .allow_private
                .iter()
                .any(|network| network.contains(&address));
            if !is_public(address) && !allowed {
                let problem = format!(
                    "{product} leads to {address}, which is not public; add its network to \
                     upstream.allow_private"
                );
                self.refuse(["upstream.endpoints", "upstream.allow_private"], &problem);
            }
        }
    }

    fn roots(&mut self, config: &Config) {
        let Some(file) = &config.upstream.ca_file else {
            return;
        };
        if let Err(error) = roots::check_file(file) {
            // The message begins with the key; the error names it, too.
            let text = error.to_string();
            let problem = text.strip_prefix("upstream.ca_file ").unwrap_or(&text).to_owned();
            self.refuse(["upstream.ca_file"], &problem);
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

/// Coarse on purpose: the relay's own rule decides at the dial; here are the networks that people write into a
/// configuration.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unique_local()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast())
        }
    }
}
