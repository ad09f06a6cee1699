//! What the settings of `upstream` say together, and whether the files that they name are of any use.

use std::net::IpAddr;

use super::Check;
use crate::address;
use crate::config::{CrlPolicy, Upstream};
use crate::secret;
use crate::tls::{identity, roots};

impl Check<'_> {
    pub(super) fn upstream(&mut self, upstream: &Upstream) {
        self.endpoints(upstream);
        self.roots(upstream);
        self.revocation(upstream);
        self.client_certificate(upstream);
        self.proxy(upstream);
    }

    /// An address that the proxy would refuse to dial is better refused here. Names are judged when they resolve.
    fn endpoints(&mut self, upstream: &Upstream) {
        for (product, endpoint) in &upstream.endpoints {
            let Ok(address) = endpoint.host.parse::<IpAddr>() else {
                continue;
            };
            if !address::may_dial(address, &upstream.allow_private) {
                let problem = format!(
                    "{product} leads to {address}, which is not public; add its network to \
                     upstream.allow_private"
                );
                self.refuse(["upstream.endpoints", "upstream.allow_private"], &problem);
            }
        }
    }

    fn roots(&mut self, upstream: &Upstream) {
        let files = [
            ("upstream.ca_file", &upstream.ca_file),
            ("upstream.proxy.ca_file", &upstream.proxy.ca_file),
        ];
        for (key, file) in files {
            if let Some(file) = file
                && let Err(problem) = roots::check_file(file)
            {
                self.refuse([key], &problem);
            }
        }
    }

    /// The lists themselves are read by the worker alone: they come from elsewhere, and the master reads nothing that does.
    fn revocation(&mut self, upstream: &Upstream) {
        match &upstream.crl_dir {
            Some(folder) => {
                if let Err(error) = std::fs::read_dir(folder) {
                    let problem = format!(
                        "{}: {error}; name a folder that the worker can read, or remove the key",
                        folder.display()
                    );
                    self.refuse(["upstream.crl_dir"], &problem);
                }
            }
            None if upstream.crl_policy == CrlPolicy::HardFail => self.refuse(
                ["upstream.crl_policy", "upstream.crl_dir"],
                "hard_fail without revocation lists would refuse every intake; name their folder in \
                 upstream.crl_dir",
            ),
            None => {}
        }
    }

    /// Whether key and certificate belong together is the worker's to say: the master holds no key.
    fn client_certificate(&mut self, upstream: &Upstream) {
        let keys = ["upstream.client_certificate_file", "upstream.client_key_file"];
        match (&upstream.client_certificate_file, &upstream.client_key_file) {
            (Some(certificate), Some(key)) => {
                if let Err(problem) = identity::check_certificate_file(certificate) {
                    self.refuse([keys[0]], &problem);
                }
                if let Err(error) = secret::check(key) {
                    self.refuse([keys[1]], &error.to_string());
                }
            }
            (None, None) => {}
            _ => self.refuse(keys, "one is of no use without the other; set both or none"),
        }
    }

    fn proxy(&mut self, upstream: &Upstream) {
        let proxy = &upstream.proxy;
        if let Some(file) = &proxy.credentials_file
            && let Err(error) = secret::check(file)
        {
            self.refuse(["upstream.proxy.credentials_file"], &error.to_string());
        }
        let Some(url) = &proxy.url else {
            let set = [
                (
                    "upstream.proxy.credentials_file",
                    proxy.credentials_file.is_some(),
                ),
                ("upstream.proxy.ca_file", proxy.ca_file.is_some()),
                ("upstream.proxy.no_proxy", !proxy.no_proxy.is_empty()),
                ("upstream.proxy.products", !proxy.products.is_empty()),
            ];
            for (key, _) in set.iter().filter(|(_, set)| *set) {
                self.warnings.push(format!(
                    "{key} ({}) has no effect without upstream.proxy.url",
                    self.source(key)
                ));
            }
            return;
        };
        if let Ok(address) = url.host.parse::<IpAddr>()
            && !address::may_be_proxy(address, &upstream.allow_private)
        {
            let problem =
                format!("{address} is no address for a proxy; add its network to upstream.allow_private");
            self.refuse(["upstream.proxy.url", "upstream.allow_private"], &problem);
        }
        if !url.tls && proxy.ca_file.is_some() {
            self.warnings.push(format!(
                "upstream.proxy.ca_file ({}) has no effect: upstream.proxy.url is http",
                self.source("upstream.proxy.ca_file")
            ));
        }
        let here = url.host == "localhost"
            || url
                .host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.to_canonical().is_loopback());
        if !url.tls && proxy.credentials_file.is_some() && !here {
            self.warnings.push(format!(
                "upstream.proxy.credentials_file ({}): the credentials go to the proxy in clear text; use https in \
                 upstream.proxy.url where the proxy offers it",
                self.source("upstream.proxy.credentials_file")
            ));
        }
    }
}
