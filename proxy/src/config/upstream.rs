//! `upstream.*`: the way to the intake, and whom we trust on it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::catalog::{self, Product};

/// `upstream.*`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The intake's port.
    pub port: u16,
    /// From which network namespace an intercepted pod's connections are made.
    pub network: UpstreamNetwork,
    /// Trust only these roots instead of the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// Which TLS is approved.
    pub tls_policy: TlsPolicy,
    /// Folder of certificate revocation lists.
    pub crl_dir: Option<PathBuf>,
    /// What a missing or expired revocation list means.
    pub crl_policy: CrlPolicy,
    /// Keys of which the intake's verified path must hold one. None: any path that verifies will do.
    pub pins: Vec<Pin>,
    /// Certificate chain for a gateway that asks who we are (PEM).
    pub client_certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key_file: Option<PathBuf>,
    /// Non-public networks that may be dialled: PrivateLink, a gateway on this host.
    pub allow_private: Vec<IpNet>,
    /// Product to `host[:port]` that is dialled in place of the intake's own address; the certificate is still verified
    /// for the intake name.
    pub endpoints: BTreeMap<Product, Endpoint>,
    /// The site's own way out.
    pub proxy: OutboundProxy,
    /// TCP and TLS set-up of one address; with an outbound proxy also the making of the tunnel.
    pub connect_timeout: Duration,
    /// From when the intake has the request's last byte (or takes no more of its body) to the response head.
    pub response_timeout: Duration,
    /// How long an unused connection to the intake is kept.
    pub pool_idle_timeout: Duration,
}

impl Upstream {
    /// Host and port that are resolved and dialled for a product's name: its own unless `upstream.endpoints` says
    /// otherwise.
    pub fn endpoint<'a>(&'a self, product: Product, name: &'a str) -> (&'a str, u16) {
        match self.endpoints.get(&product) {
            Some(endpoint) => (&endpoint.host, endpoint.port.unwrap_or(self.port)),
            None => (name, self.port),
        }
    }

    /// Files that are read once, by a starting worker. Whoever changes one wants it read again at the next reload.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca_file, &self.client_certificate_file, &self.proxy.ca_file]
            .into_iter()
            .chain(self.secret_files())
            .flatten()
    }

    /// Those of [`Upstream::files`] that nobody else may read.
    pub fn secret_files(&self) -> [&Option<PathBuf>; 2] {
        [&self.client_key_file, &self.proxy.credentials_file]
    }
}

/// `host[:port]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// Port, when it is not `upstream.port`.
    pub port: Option<u16>,
}

/// `upstream.network`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamNetwork {
    /// From the pod's own: its address, network policies and security groups go on to apply.
    Pod,
    /// From the host's.
    Host,
}

/// `upstream.tls_policy`. There is no "off".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsPolicy {
    /// TLS 1.2 with extended master secret, and 1.3.
    Fips,
    /// TLS 1.3 only; both halves of a hybrid group approved.
    Strict,
}

/// `upstream.crl_policy`. A revoked certificate is refused under both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrlPolicy {
    /// What no list covers is accepted, and an expired list goes on to count; both are told.
    SoftFail,
    /// Every certificate of the path but the root must be covered by a list that is not expired.
    HardFail,
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo, as in RFC 7469: `upstream.pins`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Pin(pub [u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

impl TryFrom<String> for Pin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The way curl and HPKP write it is understood, too.
        let digits = text
            .strip_prefix("sha256//")
            .or_else(|| text.strip_prefix("sha256/"))
            .unwrap_or(text);
        STANDARD
            .decode(digits)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is not the base64 of 32 bytes"))
    }
}

/// `upstream.proxy.*`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundProxy {
    /// Where it is; without it nothing else here counts.
    pub url: Option<ProxyUrl>,
    /// `user:password`.
    pub credentials_file: Option<PathBuf>,
    /// Roots of an `https` proxy's own certificate (PEM), instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// What goes out without it.
    pub no_proxy: Vec<NoProxy>,
    /// Products that go through it; empty: all.
    pub products: Vec<Product>,
}

/// `http://host:port` or `https://host:port`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ProxyUrl {
    /// TLS to the proxy itself (`https`).
    pub tls: bool,
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl ProxyUrl {
    /// `host:port`
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl From<ProxyUrl> for String {
    fn from(url: ProxyUrl) -> Self {
        url.to_string()
    }
}

impl TryFrom<String> for ProxyUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for ProxyUrl {
    type Err = String;

    /// The messages never quote the text: people write passwords into such URLs.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tls, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err("it begins neither with http:// nor with https://".to_owned());
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(
                "credentials do not belong here, where `config show` prints them; put user:password into a \
                 file and name it in upstream.proxy.credentials_file"
                    .to_owned(),
            );
        }
        let (host, port) = split_authority(rest).ok_or("it is not of the form scheme://host:port")?;
        let port = port.ok_or("it names no port")?;
        Ok(Self { tls, host, port })
    }
}

/// `host[:port]`, `[2001:db8::1]:443`, `2001:db8::1`: the host normalised, a port never 0. `None`: it is none.
pub(super) fn split_authority(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':')?)),
            }
        }
        None if text.parse::<IpAddr>().is_ok() => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = catalog::normalise(host);
    if host.parse::<IpAddr>().is_err() && !catalog::is_dns_name(&host) {
        return None;
    }
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port: &u16| *port > 0)?),
        None => None,
    };
    Some((host, port))
}

/// `host:port` with the brackets of an IPv6 address.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// One entry of `upstream.proxy.no_proxy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NoProxy {
    what: Exempt,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exempt {
    /// `*`
    Everything,
    /// Exactly this name: what the Agent means by it, too.
    Name(String),
    /// `.example.net` or `*.example.net`: every name below it, not the name itself.
    Below(String),
    /// Addresses.
    Network(IpNet),
}

impl NoProxy {
    /// True when a connection to `host` (name or address) and `port`, which an intercepted client meant for the address
    /// `original`, goes out without the proxy. Names are not resolved for this: behind a proxy they often cannot be.
    pub fn matches(&self, host: &str, port: u16, original: Option<IpAddr>) -> bool {
        if self.port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        match &self.what {
            Exempt::Everything => true,
            Exempt::Name(name) => name == host,
            Exempt::Below(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Exempt::Network(network) => host
                .parse()
                .ok()
                .into_iter()
                .chain(original)
                .any(|ip: IpAddr| network.contains(&ip.to_canonical())),
        }
    }
}

impl fmt::Display for NoProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.what, self.port) {
            (Exempt::Everything, _) => f.write_str("*"),
            (Exempt::Name(name), None) => f.write_str(name),
            (Exempt::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Exempt::Below(domain), None) => write!(f, ".{domain}"),
            (Exempt::Below(domain), Some(port)) => write!(f, ".{domain}:{port}"),
            (Exempt::Network(network), None) => network.fmt(f),
            (Exempt::Network(network), Some(port)) => {
                f.write_str(&authority(&network.addr().to_string(), port))
            }
        }
    }
}

impl From<NoProxy> for String {
    fn from(entry: NoProxy) -> Self {
        entry.to_string()
    }
}

impl TryFrom<String> for NoProxy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for NoProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is neither a name, a .suffix, an address nor a network");
        let entry = |what, port| Ok(Self { what, port });
        if text == "*" {
            return entry(Exempt::Everything, None);
        }
        if let Ok(network) = text.parse::<IpNet>() {
            if network.trunc() != network {
                return Err(format!(
                    "`{text}` has bits beyond its prefix; `{}` is meant",
                    network.trunc()
                ));
            }
            return entry(Exempt::Network(network), None);
        }
        let below = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
        let (host, port) = split_authority(below.unwrap_or(text)).ok_or_else(wrong)?;
        match (below, host.parse::<IpAddr>()) {
            (None, Ok(ip)) => entry(Exempt::Network(ip.to_canonical().into()), port),
            (None, Err(_)) => entry(Exempt::Name(host), port),
            (Some(_), Err(_)) => entry(Exempt::Below(host), port),
            (Some(_), Ok(_)) => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests;
