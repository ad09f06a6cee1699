//! What is done with a connection and with a request: pure functions of what is known, no I/O.

use std::net::IpAddr;

use super::classify::Class;
use super::origin::Origin;
use crate::catalog::{Catalog, Product, Protocol, is_dns_name, normalise};
use crate::config::HttpsException;
use crate::self_test;

/// What is done with an intercepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Speak HTTP with the client; re-encrypt towards the intake.
    Terminate,
    /// An Agent's own TLS session goes to its original destination as it is, is read and held to the policy.
    Passthrough,
    /// Leave it alone: bytes go to the original destination as they are.
    Tunnel,
    /// Answer with an error and close.
    Refuse(Refusal),
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 400: nothing any Agent sends.
    Bad(&'static str),
    /// 400: a protocol that is not relayed.
    Unsupported(&'static str),
    /// 421: well-formed, but the name is not ours to serve on this connection.
    Misdirected,
    /// An alert: `intercept.https` is `refuse`.
    Https,
    /// 503: `explicit.allowed_users` or `explicit.allowed_cgroups` do not have whoever asks.
    Stranger,
    /// 200, from ourselves: [`self_test::NAME`] was asked for.
    SelfTest,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) product: Product,
    /// The intake name; `None`: the product's own.
    pub(super) name: Option<String>,
}

/// Whether a silent client at this port may be waiting for the server's first word. Not at those of HTTP and HTTPS, where the client
/// speaks first (RFC 9110 section 3.3, RFC 8446 section 2): there nothing is dialled for it, for a bare connection to an intake's port
/// 80 would look like a leak to whoever watches.
pub(super) const fn server_may_speak_first(port: u16) -> bool {
    !matches!(port, 80 | 443)
}

/// Decides for an intercepted connection from its first bytes; `target` is the authority of an absolute-form target and
/// `host` the Host of the first head when it is HTTP/1. TLS is [`tls`]'s.
///
/// Only plain HTTP for an intake name is terminated: everything else was none of our business and stays untouched. HTTP/2
/// in the clear is the exception: its name comes compressed behind the preface, nobody could tell an intake's from another,
/// and passing it on could put an API key on the wire in the clear. No Agent speaks it. A head that names an intake and
/// something else is refused for the same reason: whoever reads it at its destination may believe either.
pub(super) fn connection(
    class: Class,
    target: Option<&str>,
    host: Option<&str>,
    catalog: &Catalog,
) -> Decision {
    if let (Some(target), Some(host)) = (target, host)
        && !target.eq_ignore_ascii_case(host)
        && (is_intake(target, catalog) || is_intake(host, catalog))
    {
        return Decision::Refuse(Refusal::Bad(TWO_HOSTS));
    }
    match (class, target.or(host)) {
        (Class::Http1, Some(host)) => match Authority::parse(host) {
            Ok(Authority {
                host: Host::Name(name),
                ..
            }) if catalog.lookup(&name).is_some() || name == self_test::NAME => Decision::Terminate,
            Ok(_) => Decision::Tunnel,
            Err(reason) => Decision::Refuse(Refusal::Bad(reason)),
        },
        // HTTP/1.0 without Host, for whoever lives at that address.
        (Class::Http1, None) => Decision::Tunnel,
        (Class::Http2, _) => Decision::Refuse(Refusal::Unsupported(
            "HTTP/2 without TLS is not relayed: let the Agent speak HTTP/1.1, or HTTPS",
        )),
        (Class::Tls | Class::Opaque | Class::Silent, _) => Decision::Tunnel,
    }
}

/// True for the authority of an intake, whatever its port.
fn is_intake(authority: &str, catalog: &Catalog) -> bool {
    matches!(
        Authority::parse(authority),
        Ok(Authority { host: Host::Name(name), .. }) if catalog.lookup(&name).is_some()
    )
}

const TWO_HOSTS: &str = "the request target and Host name different hosts";

/// What is done with TLS for an intake name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Https {
    Terminate,
    Passthrough,
    Refuse,
}

/// Decides for an intercepted connection that begins with a ClientHello, by the name in it (SNI); `process` is the client's
/// when a process is among the exceptions and the datapath tells it.
///
/// A name that is no intake's is none of our business, and without a name nobody asked for an intake: Agents always say it
/// (RFC 6066 section 3). A stream that is no HTTP inside its TLS (TCP logs) cannot be terminated; it is passed through
/// wherever HTTP would be.
pub(super) fn tls(
    server_name: Option<&str>,
    process: Option<&str>,
    https: Https,
    exceptions: &[HttpsException],
    catalog: &Catalog,
) -> Decision {
    let Some(name) = server_name.map(normalise) else {
        return Decision::Tunnel;
    };
    let Some(product) = catalog.lookup(&name) else {
        return Decision::Tunnel;
    };
    if exceptions
        .iter()
        .any(|exception| exception.covers(&name, process))
    {
        return Decision::Passthrough;
    }
    match (https, product.protocol()) {
        (Https::Terminate, Protocol::Http) => Decision::Terminate,
        (Https::Terminate, Protocol::Stream) | (Https::Passthrough, _) => Decision::Passthrough,
        (Https::Refuse, _) => Decision::Refuse(Refusal::Https),
    }
}

/// Decides for one request of a terminated connection. `target` is the authority of an absolute-form target, `host` the
/// Host header (in HTTP/2 `:authority`): both must agree (RFC 9112 section 3.2.2 lets the target win; two names for one
/// request are refused here). Within TLS the name must be `session`'s, the one that the client asked for by SNI: whoever
/// asks for two names means to confuse one of us (RFC 9110 section 7.4).
pub(super) fn request(
    origin: &Origin,
    session: Option<&str>,
    target: Option<&str>,
    host: Option<&str>,
    path: &str,
    catalog: &Catalog,
) -> Result<Route, Refusal> {
    if let (Some(target), Some(host)) = (target, host)
        && !target.eq_ignore_ascii_case(host)
    {
        return Err(Refusal::Bad(TWO_HOSTS));
    }
    let authority = target
        .or(host)
        .map(Authority::parse)
        .transpose()
        .map_err(Refusal::Bad)?;
    let in_the_clear = target.is_none() && session.is_none();
    if in_the_clear
        && matches!(&authority, Some(Authority { host: Host::Name(name), .. }) if name == self_test::NAME)
    {
        return Err(Refusal::SelfTest);
    }
    let route = match origin {
        Origin::Explicit { stranger: true, .. } => Err(Refusal::Stranger),
        Origin::Explicit { product, local, .. } => {
            explicit(*product, local.ip(), local.port(), authority, path, catalog)
        }
        Origin::Intercepted(original) => intercepted(original.0.port(), session, authority, catalog),
    };
    match route {
        // A foreign name in Host is misdirected; in an absolute target it is an attempt to use us as an open proxy.
        Err(Refusal::Misdirected) if target.is_some() => {
            Err(Refusal::Bad("absolute-form for a foreign host"))
        }
        route => route,
    }
}

fn explicit(
    product: Product,
    local: IpAddr,
    local_port: u16,
    authority: Option<Authority>,
    path: &str,
    catalog: &Catalog,
) -> Result<Route, Refusal> {
    let routed = Catalog::route(product, path);
    let own = Route {
        product: routed,
        name: None,
    };
    let Some(Authority { host, port }) = authority else {
        return Ok(own);
    };
    match host {
        Host::Ip(ip) if ip.is_loopback() || ip == local => Ok(own),
        Host::Ip(_) => Err(Refusal::Bad("Host is an IP address")),
        Host::Name(name) if name == "localhost" => Ok(own),
        Host::Name(name) => {
            if catalog.lookup(&name) != Some(product) && name != catalog.host(product) {
                return Err(Refusal::Misdirected);
            }
            if port.is_some_and(|port| ![80, 443, local_port].contains(&port)) {
                return Err(Refusal::Bad("Host names a foreign port"));
            }
            Ok(if routed == product {
                Route {
                    product,
                    name: Some(name),
                }
            } else {
                own
            })
        }
    }
}

fn intercepted(
    original_port: u16,
    session: Option<&str>,
    authority: Option<Authority>,
    catalog: &Catalog,
) -> Result<Route, Refusal> {
    let Some(Authority { host, port }) = authority else {
        return Err(Refusal::Bad("no Host"));
    };
    let Host::Name(name) = host else {
        return Err(Refusal::Bad("Host is an IP address"));
    };
    let product = catalog.lookup(&name).ok_or(Refusal::Misdirected)?;
    if session.is_some_and(|session| session != name) {
        return Err(Refusal::Misdirected);
    }
    let usual = if session.is_some() { 443 } else { 80 };
    if port.is_some_and(|port| port != original_port && port != usual) {
        return Err(Refusal::Bad("Host names a foreign port"));
    }
    Ok(Route {
        product,
        name: Some(name),
    })
}

/// `host[:port]` without user-info (RFC 3986 section 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// Lower case, no trailing dot.
    Name(String),
    Ip(IpAddr),
}

impl Authority {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const MALFORMED: &str = "malformed Host";
        if text.contains('@') {
            return Err("Host carries user-info");
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, after) = rest.split_once(']').ok_or(MALFORMED)?;
                let ip = inside.parse().map_err(|_| MALFORMED)?;
                let port = match after {
                    "" => None,
                    after => Some(after.strip_prefix(':').ok_or(MALFORMED)?),
                };
                (Host::Ip(IpAddr::V6(ip).to_canonical()), port)
            }
            None => {
                let (name, port) = match text.split_once(':') {
                    Some((name, port)) => (name, Some(port)),
                    None => (text, None),
                };
                (Self::name(name).ok_or(MALFORMED)?, port)
            }
        };
        let port = match port {
            None => None,
            // Digits only: `parse` would take a sign.
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| MALFORMED)?)
            }
            Some(_) => return Err(MALFORMED),
        };
        Ok(Self { host, port })
    }

    fn name(text: &str) -> Option<Host> {
        // An IPv6 address has its brackets, or a colon, and is not here.
        if text.ends_with(|last: char| last.is_ascii_digit())
            && let Ok(ip) = text.parse::<IpAddr>()
        {
            return Some(Host::Ip(ip));
        }
        let name = normalise(text);
        if !is_dns_name(&name) {
            return None;
        }
        // `127.1`, `0x7f000001` and the like: what some resolvers take for an address is no name.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
            return None;
        }
        Some(Host::Name(name))
    }
}

#[cfg(test)]
mod tests;
