//! Sites: which Datadog the Agent reports to, and what is known of those that there are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::{is_dns_name, normalise};

/// A Datadog site: a domain name, lower case, no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Site(String);

impl Site {
    /// The domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is known of it; `None` for a site that we never heard of, which works all the same.
    pub fn known(&self) -> Option<&'static KnownSite> {
        KNOWN_SITES.iter().find(|known| known.domain == self.0)
    }
}

impl Default for Site {
    /// The Agent's own default.
    fn default() -> Self {
        Self("datadoghq.com".to_owned())
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Site> for String {
    fn from(site: Site) -> Self {
        site.0
    }
}

impl TryFrom<String> for Site {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = normalise(text);
        if !is_dns_name(&name) || !name.contains('.') {
            return Err(format!(
                "`{text}` is not a site: a domain such as datadoghq.com, us5.datadoghq.com or ddog-gov.com is expected"
            ));
        }
        Ok(Self(name))
    }
}

/// What is known of a site.
#[derive(Debug, PartialEq, Eq)]
pub struct KnownSite {
    /// Its domain.
    pub domain: &'static str,
    /// Datadog's name for it.
    pub name: &'static str,
    /// The port of the Agent's logs over TCP under TLS; `None`: it takes logs over HTTP alone, and has no name for others.
    pub tcp_logs: Option<u16>,
    /// AWS PrivateLink is documented for it. Elsewhere a private address in an answer is somebody's mistake, or a gateway.
    pub private_link: bool,
}

/// The sites that there are. Nothing is limited to them: `site` takes any domain.
///
/// Sources: Datadog's documentation (`regions.config.js`, "Network Traffic", "AWS PrivateLink"; 2026); for the last three, which it
/// does not list, the Agent (`pkg/config/utils/endpoints.go` and `pkg/util/ddsite`: sites to whose names it adds a version and
/// a trailing dot). Ports of TCP logs: the Agent's `comp/logs/agent/config/config.go` (`logsEndpoints`).
pub const KNOWN_SITES: &[KnownSite] = &[
    known("datadoghq.com", "US1", Some(10516), true),
    known("us3.datadoghq.com", "US3", None, false),
    known("us5.datadoghq.com", "US5", None, false),
    known("datadoghq.eu", "EU", Some(443), false),
    known("ap1.datadoghq.com", "AP1", None, true),
    known("ap2.datadoghq.com", "AP2", None, true),
    known("uk1.datadoghq.com", "UK1", None, false),
    known("ddog-gov.com", "US1-FED", None, false),
    known("us2.ddog-gov.com", "US2-FED", None, false),
    known("ddog-gov.mil", "government, not documented", None, false),
    known("datad0g.com", "staging", Some(10516), false),
    known("datad0g.eu", "staging, EU", Some(443), false),
];

const fn known(
    domain: &'static str,
    name: &'static str,
    tcp_logs: Option<u16>,
    private_link: bool,
) -> KnownSite {
    KnownSite {
        domain,
        name,
        tcp_logs,
        private_link,
    }
}
