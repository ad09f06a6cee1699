//! Readers and printers of values that only one or two keys have.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::catalog::{self, Product, Protocol};
use crate::config::upstream::split_authority;
use crate::config::value::{Fault, Raw, list, network, parsed, text};
use crate::config::{Endpoint, InterfacePattern, ListenAddress, Pin};
use crate::intercept::CgroupGlob;

/// More pins than anybody has keys would only make each handshake slower.
const MAX_PINS: usize = 32;

/// A level, or `tracing` directives. A lone word that is no level is a typing error, although `tracing` would take it
/// for the name of a module.
pub(super) fn level(raw: &Raw) -> Result<String, Fault> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = text(raw)?;
    let sound = text
        .split(',')
        .all(|part| LEVELS.contains(&part) || part.contains('='))
        && EnvFilter::try_new(text).is_ok();
    if sound {
        Ok(text.to_owned())
    } else {
        Err(Fault::wrong(format!(
            "`{text}` is neither a level nor a list of directives"
        )))
    }
}

pub(super) fn address(raw: &Raw) -> Result<ListenAddress, Fault> {
    ListenAddress::try_from(text(raw)?.to_owned()).map_err(Fault::wrong)
}

/// What [`cgroup`] takes, for the lists of them.
pub(super) const CGROUPS: &str = "a list of cgroup paths that begin with / (`*` stands for any text within one component, \
                                  `**` for any number of components)";

/// A cgroup path as the kernel writes it, with `*` and `**`.
pub(super) fn cgroup(raw: &Raw) -> Result<String, Fault> {
    let text = text(raw)?;
    CgroupGlob::parse(text).map_err(Fault::wrong)?;
    Ok(text.to_owned())
}

/// Not so wide that it takes the protection away: 0.0.0.0/0 would allow every metadata service and every neighbour.
pub(super) fn private_network(raw: &Raw) -> Result<IpNet, Fault> {
    let network = network(raw)?;
    if let IpAddr::V6(v6) = network.addr()
        && v6.to_ipv4_mapped().is_some()
    {
        // Addresses are compared in their IPv4 form: this network would hold none.
        return Err(Fault::wrong(format!(
            "`{network}` is an IPv4 network in the clothes of IPv6; write it as IPv4"
        )));
    }
    let least = if network.addr().is_ipv4() { 8 } else { 7 };
    if network.prefix_len() < least {
        return Err(Fault::wrong(format!(
            "`{network}` is too wide: name the networks that are really dialled"
        )));
    }
    Ok(network)
}

/// `host`, `host:port`, `192.0.2.1:443`, `[2001:db8::1]:443`, `2001:db8::1`.
pub(super) fn endpoint(raw: &Raw) -> Result<Endpoint, Fault> {
    let text = text(raw)?;
    split_authority(text)
        .map(|(host, port)| Endpoint { host, port })
        .ok_or_else(|| Fault::wrong(format!("`{text}` is not host[:port]")))
}

/// The name of a product that we send: what is left as it is goes where the Agent sent it, whatever a setting says.
pub(super) fn product(text: &str) -> Result<Product, Fault> {
    let product: Product = text.parse().map_err(Fault::wrong)?;
    match product.protocol() {
        Protocol::Http => Ok(product),
        Protocol::Stream => Err(Fault::wrong(format!(
            "`{text}` is not HTTP: it is passed through as it is, or refused, and never sent by the proxy; leave it out"
        ))),
    }
}

/// At least two, and no key twice: with a single pin the day on which the intake's key changes is an outage.
pub(super) fn pins(raw: &Raw) -> Result<Vec<Pin>, Fault> {
    let pins: Vec<Pin> = list(raw, parsed)?;
    let mut unique = pins.clone();
    unique.sort_unstable();
    unique.dedup();
    match (pins.len(), unique.len()) {
        (0, _) => Ok(pins),
        (_, 1) => Err(Fault::wrong(
            "there is only one pin; add one of a spare key that is not in use, so that the intake's key can change",
        )),
        (all, different) if all != different => Err(Fault::wrong("a pin is given twice")),
        (all, _) if all > MAX_PINS => Err(Fault::wrong(format!("{all} pins are too many"))),
        _ => Ok(pins),
    }
}

/// An absolute path: a service has no useful working directory.
pub(super) fn path(raw: &Raw) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text(raw)?);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Fault::wrong(format!(
        "`{}` is not an absolute path",
        path.display()
    )))
}

/// `null`, or the path.
pub(super) fn path_text(path: Option<&Path>) -> String {
    path.map_or("null".to_owned(), |path| yaml_text(&path.to_string_lossy()))
}

/// The address of a Unix socket has room for 107 bytes and a NUL (unix(7)).
pub(super) fn socket(raw: &Raw) -> Result<PathBuf, Fault> {
    let path = path(raw)?;
    if path.as_os_str().len() <= 107 {
        return Ok(path);
    }
    Err(Fault::wrong(format!(
        "`{}` is longer than 107 bytes",
        path.display()
    )))
}

/// A user name as useradd(8) takes it; not root, because the worker parses what comes from the network.
/// A user by name or number, root included.
pub(super) fn member(raw: &Raw) -> Result<String, Fault> {
    let text = text(raw)?;
    if text == "root" || text.parse::<u32>().is_ok() {
        return Ok(text.to_owned());
    }
    user(raw)
}

pub(super) fn user(raw: &Raw) -> Result<String, Fault> {
    let text = text(raw)?;
    let sound = text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
    if text == "root" {
        return Err(Fault::wrong("the worker must not be root"));
    }
    if sound {
        Ok(text.to_owned())
    } else {
        Err(Fault::wrong(format!("`{text}` is not a user name")))
    }
}

/// A Kubernetes equality selector: `key=value[,key=value]`.
pub(super) fn selector(raw: &Raw) -> Result<String, Fault> {
    let text = text(raw)?;
    let sound = text.split(',').all(|part| {
        part.split_once('=').is_some_and(|(key, value)| {
            let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !key.is_empty() && key.chars().all(|c| name(c) || c == '/') && value.chars().all(name)
        })
    });
    if sound {
        Ok(text.to_owned())
    } else {
        Err(Fault::wrong(format!("`{text}` is not a label selector")))
    }
}

/// The name of a Kubernetes node: a DNS subdomain (RFC 1123).
pub(super) fn node(raw: &Raw) -> Result<String, Fault> {
    let text = text(raw)?;
    if catalog::is_dns_name(text) {
        Ok(text.to_owned())
    } else {
        Err(Fault::wrong(format!("`{text}` is not a node name")))
    }
}

/// A network interface (at most 15 bytes: IFNAMSIZ), or the beginning of some with `*` at the end.
pub(super) fn interface(raw: &Raw) -> Result<InterfacePattern, Fault> {
    let text = text(raw)?;
    let name = text.strip_suffix('*').unwrap_or(text);
    let sound = !name.is_empty()
        && name.len() <= 15
        && !name.contains(|c: char| c == '/' || c == '*' || c.is_whitespace());
    if sound {
        Ok(InterfacePattern(text.to_owned()))
    } else {
        Err(Fault::wrong(format!("`{text}` is not an interface name")))
    }
}

/// The word of an enum, as in the file.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    // Enums without fields always become a JSON string.
    serde_json::to_value(value)
        .ok()
        .and_then(|word| word.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// `5s`, or `1500ms` where seconds would lose something.
pub(super) fn duration_text(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// `[80, 443]`
pub(super) fn list_text<T: Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| yaml_text(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// A scalar that YAML reads back as the same text.
pub(super) fn yaml_text(text: &str) -> String {
    let plain = !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '='))
        && !text.starts_with(['-', '=', '.']);
    // JSON strings are YAML strings; text without control characters cannot fail to become one.
    if plain {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

/// A packet mark, with all its digits.
pub(super) fn mark_text(mark: u32) -> String {
    format!("{mark:#010x}")
}

pub(super) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(super) const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}
