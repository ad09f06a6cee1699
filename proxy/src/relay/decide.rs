//! What is done with a connection and with a request: pure functions of what is known, no I/O.

use std::net::IpAddr;

use super::classify::Class;
use super::origin::Origin;
use crate::catalog::{Catalog, Product, is_dns_name, normalise};

/// What is done with an intercepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Speak HTTP with the client; re-encrypt towards the intake.
    Terminate,
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
    /// 421: well-formed, but the name is not ours to serve on this connection.
    Misdirected,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) product: Product,
    /// The intake name; `None`: the product's own.
    pub(super) name: Option<String>,
}

/// Decides for an intercepted connection from its first bytes; `host` is the Host (or the authority of an absolute
/// target) of the first head when it is HTTP/1.
///
/// Only plain HTTP for an intake name is terminated: everything else was none of our business and stays untouched.
pub(super) fn connection(class: Class, host: Option<&str>, catalog: &Catalog) -> Decision {
    match (class, host) {
        (Class::Http1, Some(host)) => match Authority::parse(host) {
            Ok(Authority {
                host: Host::Name(name),
                ..
            }) if catalog.lookup(&name).is_some() => Decision::Terminate,
            Ok(_) => Decision::Tunnel,
            Err(reason) => Decision::Refuse(Refusal::Bad(reason)),
        },
        // HTTP/1.0 without Host, for whoever lives at that address.
        (Class::Http1, None) => Decision::Tunnel,
        (Class::Http2 | Class::Tls | Class::Opaque | Class::Silent, _) => Decision::Tunnel,
    }
}

/// Decides for one request of a terminated connection. `target` is the authority of an absolute-form target, `host` the
/// Host header: both must agree (RFC 9112 section 3.2.2 lets the target win; two names for one request are refused here).
pub(super) fn request(
    origin: &Origin,
    target: Option<&str>,
    host: Option<&str>,
    path: &str,
    catalog: &Catalog,
) -> Result<Route, Refusal> {
    if let (Some(target), Some(host)) = (target, host)
        && !target.eq_ignore_ascii_case(host)
    {
        return Err(Refusal::Bad("the request target and Host name different hosts"));
    }
    let authority = target
        .or(host)
        .map(Authority::parse)
        .transpose()
        .map_err(Refusal::Bad)?;
    let route = match origin {
        Origin::Explicit { product, local } => {
            explicit(*product, local.ip(), local.port(), authority, path, catalog)
        }
        Origin::Intercepted(original) => intercepted(original.0.port(), authority, catalog),
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
    if port.is_some_and(|port| port != original_port && port != 80) {
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
        if let Ok(ip) = text.parse::<IpAddr>() {
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
mod tests {
    use super::*;
    use crate::relay::origin::OriginalDst;

    fn catalog() -> Catalog {
        Catalog::new(&"ddog-gov.com".parse().unwrap())
    }

    #[test]
    fn only_plain_http_for_an_intake_name_is_terminated() {
        use Class::{Http1, Http2, Opaque, Silent, Tls};
        for (class, host, expected) in [
            (Http1, Some("app.ddog-gov.com"), Decision::Terminate),
            (
                Http1,
                Some("7-81-0-app.agent.ddog-gov.com:80"),
                Decision::Terminate,
            ),
            (Http1, Some("APP.DDOG-GOV.COM."), Decision::Terminate),
            (Http1, Some("example.org"), Decision::Tunnel),
            (Http1, Some("evilddog-gov.com"), Decision::Tunnel),
            (Http1, Some("app.ddog-gov.com.evil.org"), Decision::Tunnel),
            (Http1, Some("203.0.113.1"), Decision::Tunnel),
            (Http1, None, Decision::Tunnel),
            (
                Http1,
                Some("key@app.ddog-gov.com"),
                Decision::Refuse(Refusal::Bad("Host carries user-info")),
            ),
            (
                Http1,
                Some("a b"),
                Decision::Refuse(Refusal::Bad("malformed Host")),
            ),
            (Http1, Some(""), Decision::Refuse(Refusal::Bad("malformed Host"))),
            (Http2, Some("app.ddog-gov.com"), Decision::Tunnel),
            (Tls, None, Decision::Tunnel),
            (Opaque, None, Decision::Tunnel),
            (Silent, None, Decision::Tunnel),
        ] {
            assert_eq!(
                connection(class, host, &catalog()),
                expected,
                "{class:?} {host:?}"
            );
        }
    }

    #[test]
    fn explicit_ports_serve_their_product_only() {
        let bad = |reason| Err(Refusal::Bad(reason));
        let own = |product| Ok(Route { product, name: None });
        let named = |product, name: &str| {
            Ok(Route {
                product,
                name: Some(name.to_owned()),
            })
        };
        for (product, host, path, expected) in [
            (
                Product::Metrics,
                Some("localhost:9804"),
                "/api/v2/series",
                own(Product::Metrics),
            ),
            (Product::Metrics, Some("127.0.0.1:1"), "/", own(Product::Metrics)),
            (Product::Metrics, Some("[::1]:9804"), "/", own(Product::Metrics)),
            (
                Product::Metrics,
                Some("[::ffff:127.0.0.1]"),
                "/",
                own(Product::Metrics),
            ),
            (
                Product::Metrics,
                Some("10.1.2.3:9804"),
                "/",
                own(Product::Metrics),
            ),
            (Product::Metrics, None, "/", own(Product::Metrics)),
            (
                Product::Metrics,
                Some("localhost"),
                "/api/v1/validate",
                own(Product::Api),
            ),
            (
                Product::Metrics,
                Some("app.ddog-gov.com"),
                "/support/flare/1",
                own(Product::Flare),
            ),
            (
                Product::Metrics,
                Some("App.ddog-gov.com.:443"),
                "/",
                named(Product::Metrics, "app.ddog-gov.com"),
            ),
            (
                Product::DbmSamples,
                Some("dbm-metrics-intake.ddog-gov.com"),
                "/",
                named(Product::DbmSamples, "dbm-metrics-intake.ddog-gov.com"),
            ),
            (
                Product::Metrics,
                Some("trace.agent.ddog-gov.com"),
                "/",
                Err(Refusal::Misdirected),
            ),
            (
                Product::Traces,
                Some("example.org"),
                "/",
                Err(Refusal::Misdirected),
            ),
            (
                Product::Traces,
                Some("203.0.113.9"),
                "/",
                bad("Host is an IP address"),
            ),
            (
                Product::Traces,
                Some("169.254.169.254"),
                "/",
                bad("Host is an IP address"),
            ),
            (
                Product::Traces,
                Some("[2001:db8::1]"),
                "/",
                bad("Host is an IP address"),
            ),
            (
                Product::Traces,
                Some("trace.agent.ddog-gov.com:22"),
                "/",
                bad("Host names a foreign port"),
            ),
            (
                Product::Traces,
                Some("a@localhost"),
                "/",
                bad("Host carries user-info"),
            ),
            (Product::Traces, Some("localhost:"), "/", bad("malformed Host")),
            (Product::Traces, Some("localhost:+80"), "/", bad("malformed Host")),
            (
                Product::Traces,
                Some("localhost:99999"),
                "/",
                bad("malformed Host"),
            ),
            (Product::Traces, Some("127.1"), "/", bad("malformed Host")),
            (Product::Traces, Some("0x7f000001"), "/", bad("malformed Host")),
            (Product::Traces, Some("[::1"), "/", bad("malformed Host")),
            (Product::Traces, Some("local host"), "/", bad("malformed Host")),
        ] {
            let origin = Origin::Explicit {
                product,
                local: "10.1.2.3:9804".parse().unwrap(),
            };
            assert_eq!(
                request(&origin, None, host, path, &catalog()),
                expected,
                "{product} {host:?} {path}"
            );
        }
    }

    #[test]
    fn intercepted_requests_name_their_intake() {
        let origin = Origin::Intercepted(OriginalDst("203.0.113.1:80".parse().unwrap()));
        let served = |name: &str, product| {
            Ok(Route {
                product,
                name: Some(name.to_owned()),
            })
        };
        for (target, host, expected) in [
            (
                None,
                Some("trace.agent.ddog-gov.com"),
                served("trace.agent.ddog-gov.com", Product::Traces),
            ),
            (
                None,
                Some("process.ddog-gov.com:80"),
                served("process.ddog-gov.com", Product::Processes),
            ),
            (
                None,
                Some("process.ddog-gov.com:8080"),
                Err(Refusal::Bad("Host names a foreign port")),
            ),
            (None, Some("localhost"), Err(Refusal::Misdirected)),
            (
                None,
                Some("127.0.0.1"),
                Err(Refusal::Bad("Host is an IP address")),
            ),
            (None, None, Err(Refusal::Bad("no Host"))),
            (
                Some("process.ddog-gov.com"),
                Some("process.ddog-gov.com"),
                served("process.ddog-gov.com", Product::Processes),
            ),
            (
                Some("example.org"),
                Some("process.ddog-gov.com"),
                Err(Refusal::Bad("the request target and Host name different hosts")),
            ),
            (
                Some("example.org"),
                Some("example.org"),
                Err(Refusal::Bad("absolute-form for a foreign host")),
            ),
        ] {
            assert_eq!(
                request(&origin, target, host, "/", &catalog()),
                expected,
                "{target:?} {host:?}"
            );
        }
    }
}
