//! What a look at an intake means, and what to do about it. The advice about PrivateLink is that of Datadog's guide.

use std::fmt;
use std::net::IpAddr;

use http::StatusCode;
use serde::Serialize;

use super::Target;
use crate::config::{Config, TlsPolicy};
use crate::relay::upstream::look::{Address, Answered, Look};

/// A certificate that ends so soon is told, in days.
const SOON: i64 = 14;

/// How a step ended; the worst one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Nothing that anybody has to do something about.
    Note,
    /// The way works, and somebody should know.
    Warn,
    /// The way does not work, or leads where it should not.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Note => "note",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        })
    }
}

/// One step of the way.
#[derive(Debug, Serialize)]
pub struct Step {
    /// `dns`, `tcp`, `proxy`, `tls` or `http`.
    pub step: &'static str,
    /// How it ended.
    pub level: Level,
    /// What was seen.
    pub detail: String,
    /// What to do; absent where there is nothing to do, or the detail says it.
    pub cure: Option<String>,
}

/// Whether private addresses are expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Nobody said so.
    Unsaid,
    /// They would be no surprise (`upstream.allow_private`).
    Possible,
    /// They are, because of this.
    Private(String),
}

impl Expectation {
    /// From the configuration and the command line.
    pub fn of(config: &Config, target: &Target, private_link: bool) -> Self {
        let upstream = &config.upstream;
        if let Some(endpoint) = upstream.endpoints.get(&target.product) {
            let vpce = endpoint
                .host
                .split('.')
                .any(|label| label == "vpce" || label.starts_with("vpce-"));
            return if vpce {
                Self::Private(format!(
                    "upstream.endpoints.{} names a VPC endpoint",
                    target.product
                ))
            } else {
                Self::Unsaid
            };
        }
        let beyond_this_host = |ip: IpAddr| !ip.is_loopback();
        if target.private_link && private_link {
            Self::Private("--private-link says so".to_owned())
        } else if target.private_link
            && upstream
                .allow_private
                .iter()
                .any(|net| beyond_this_host(net.addr()))
        {
            Self::Possible
        } else {
            Self::Unsaid
        }
    }
}

/// What is judged.
pub struct Case<'a> {
    /// What was seen.
    pub look: &'a Look,
    /// What we were told.
    pub config: &'a Config,
    /// What was looked at.
    pub target: &'a Target,
    /// What DNS should say.
    pub expectation: Expectation,
    /// `GET /probe`
    pub request: String,
    /// An API key was sent.
    pub with_key: bool,
}

/// Every step with its meaning.
pub fn judge(case: &Case<'_>) -> Vec<Step> {
    let look = case.look;
    let mut steps = dns(case);
    // One address that works is a way that works.
    let works = look.addresses.iter().any(|address| address.tls.is_some());
    let bad = if works { Level::Warn } else { Level::Fail };
    for address in look.addresses.iter().filter(|address| address.dialled) {
        steps.extend(of_address(case, address, bad));
    }
    steps.extend(look.http.as_ref().map(|answered| http(case, answered)));
    steps
}

const NO_ZONE: &str = "the Route 53 private hosted zone of this name is not associated with this VPC, or has no A record of it; the VPC \
                       needs enableDnsHostnames and enableDnsSupport";

fn dns(case: &Case<'_>) -> Vec<Step> {
    let look = case.look;
    let step = |level, detail, cure: Option<String>| Step {
        step: "dns",
        level,
        detail,
        cure,
    };
    let wants_private = matches!(case.expectation, Expectation::Private(_));
    if let Some(unresolved) = &look.unresolved {
        let error = format!("{}: {}", look.host, unresolved.error);
        return vec![match (unresolved.unknown, case.target.optional) {
            (true, true) => step(
                Level::Note,
                format!("{error}; not every site has this name, and not every Agent wants it"),
                None,
            ),
            (true, false) if wants_private => step(Level::Fail, error, Some(NO_ZONE.to_owned())),
            (true, false) => step(
                Level::Fail,
                error,
                Some("check `site` and upstream.endpoints; if they are right, this host's resolver must know the name".to_owned()),
            ),
            (false, _) => step(
                Level::Fail,
                error,
                Some(
                    "the name servers of /etc/resolv.conf must answer: check them, and that UDP and TCP 53 to them are open; behind an \
                     outbound proxy that resolves names, set upstream.proxy.url"
                        .to_owned(),
                ),
            ),
        }];
    }
    let list: Vec<String> = look
        .addresses
        .iter()
        .map(|address| {
            let kind = if address.public { "public" } else { "private" };
            format!("{} {kind}", address.address.ip())
        })
        .collect();
    let took = crate::cli::output::millis(look.resolved_us);
    let mut steps = vec![step(
        Level::Ok,
        format!("{}: {} in {took}", look.host, list.join(", ")),
        None,
    )];
    let public = look.addresses.iter().any(|address| address.public);
    match &case.expectation {
        // The proxy resolves the intake's name.
        _ if look.proxy.is_some() => {}
        Expectation::Private(why) if public => steps.push(step(
            Level::Fail,
            format!("public, although a private address is expected: {why}"),
            Some(NO_ZONE.to_owned()),
        )),
        Expectation::Possible if public => steps.push(step(
            Level::Warn,
            "public, although upstream.allow_private lets private addresses in; right, if this product has no VPC endpoint".to_owned(),
            Some(NO_ZONE.to_owned()),
        )),
        _ => {}
    }
    let some = look.addresses.iter().any(|address| address.dialled);
    for address in look.addresses.iter().filter(|address| !address.dialled) {
        let ip = address.address.ip();
        let expected = match &case.expectation {
            Expectation::Private(why) => format!("a private address is expected ({why}), but"),
            _ => "a private address that nobody expects:".to_owned(),
        };
        let (level, effect) = if some {
            (Level::Warn, "left out")
        } else {
            (Level::Fail, "never dialled")
        };
        steps.push(step(
            level,
            format!("{ip}: {expected} {effect} without upstream.allow_private"),
            Some(format!(
                "if a VPC endpoint or a gateway of yours answers there: upstream.allow_private: [{}]; otherwise somebody's resolver \
                 leads the intake's name astray",
                network(ip)
            )),
        ));
    }
    steps
}

/// What an operator would write for an address.
fn network(ip: IpAddr) -> String {
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    format!("{ip}/{bits}")
}

fn of_address(case: &Case<'_>, address: &Address, bad: Level) -> Vec<Step> {
    let mut steps = Vec::new();
    let step = |step, level, detail, cure: Option<String>| Step {
        step,
        level,
        detail,
        cure,
    };
    let error = || address.error.clone().unwrap_or_default();
    match address.connected_us {
        Some(took) => steps.push(step(
            "tcp",
            Level::Ok,
            format!("{} in {}", address.address, crate::cli::output::millis(took)),
            None,
        )),
        None => {
            steps.push(step("tcp", bad, error(), Some(unreachable(case, address))));
            return steps;
        }
    }
    if let Some(failed) = address.failed {
        let detail = match address.reason {
            Some(reason) => format!("{} ({reason})", error()),
            None => error(),
        };
        // What TLS and the outbound proxy say names its cure; that nothing came does not.
        let silent = failed == "tls" && address.reason.is_none();
        let cure = silent.then(|| {
            "TCP is accepted and TLS is not answered: a firewall or a proxy on the way, or not the intake; check upstream.endpoints, \
             or raise upstream.connect_timeout for a slow way"
                .to_owned()
        });
        steps.push(step(failed, bad, detail, cure));
        return steps;
    }
    if let Some(tls) = &address.tls {
        steps.push(tls_step(case, address, tls));
    }
    steps
}

fn unreachable(case: &Case<'_>, address: &Address) -> String {
    let port = case.look.port;
    if case.look.proxy.is_some() {
        return "check upstream.proxy.url, and that this host may reach the proxy".to_owned();
    }
    if address.public {
        return format!(
            "this host must be allowed out to TCP {port} of the intake's addresses (firewall, security group, route); where the only way \
             out is a proxy, set upstream.proxy.url"
        );
    }
    format!(
        "DNS is right and TCP {port} is not: check VPC peering and routes; the security group of the VPC endpoint must allow inbound TCP \
         {port}, that of this host outbound"
    )
}

fn tls_step(case: &Case<'_>, address: &Address, tls: &crate::tls::Negotiated) -> Step {
    let policy = match case.config.upstream.tls_policy {
        TlsPolicy::Fips => "fips",
        TlsPolicy::Strict => "strict",
    };
    let mut detail = format!(
        "{}: {} {} {}, within upstream.tls_policy {policy}",
        address.address,
        tls.version,
        tls.suite,
        tls.group.as_deref().unwrap_or("-")
    );
    if let Some(took) = address.secured_us {
        detail.push_str(&format!(", in {}", crate::cli::output::millis(took)));
    }
    let shown = address.shown.as_ref();
    let leaf = shown.and_then(|shown| shown.certificates.first());
    if let Some(leaf) = leaf {
        detail.push_str(&format!(
            "; certificate {} for {}, by {}, until {}",
            leaf.subject, tls.peer, leaf.issuer, leaf.not_after
        ));
    }
    if let Some(anchor) = shown.and_then(|shown| shown.anchor.as_ref()) {
        detail.push_str(&format!(", root {anchor}"));
    }
    let soon = leaf.filter(|leaf| leaf.days_left < SOON);
    Step {
        step: "tls",
        level: if soon.is_some() { Level::Warn } else { Level::Ok },
        detail,
        cure: soon.map(|leaf| {
            format!(
                "the server's certificate ends in {} days: its owner must renew it",
                leaf.days_left
            )
        }),
    }
}

fn http(case: &Case<'_>, answered: &Answered) -> Step {
    let took = crate::cli::output::millis(answered.took_us);
    let (level, detail, cure) = match (&answered.error, answered.status) {
        (None, Some(status)) => {
            let said = format!("{status} to {} in {took}", case.request);
            let refused = status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN;
            match status {
                _ if case.with_key && refused => (
                    Level::Fail,
                    format!("{said}: the API key is refused"),
                    Some("the key must be one of this site and not be revoked; `site` must be that of the key".to_owned()),
                ),
                500..=599 => (
                    Level::Warn,
                    format!("{said}: the way is good, the intake is not well"),
                    Some("try again later; Datadog's status page, or the gateway of upstream.endpoints".to_owned()),
                ),
                _ if case.with_key => (Level::Ok, said, None),
                _ => (Level::Ok, format!("{said}; without an API key any status proves the way"), None),
            }
        }
        (error, _) => (
            Level::Fail,
            format!("no answer to {}: {}", case.request, error.as_deref().unwrap_or("nothing came")),
            Some(
                "TLS was made, so the server is the intake or your gateway: it is overloaded, or what stands behind upstream.endpoints \
                 does not answer; --timeout waits longer"
                    .to_owned(),
            ),
        ),
    };
    Step {
        step: "http",
        level,
        detail,
        cure,
    }
}
