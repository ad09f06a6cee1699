//! The way to the intake when it is not the plain one: PrivateLink, outbound proxies, revoked certificates, pins, gateways
//! that ask who we are.

#[path = "upstream/private.rs"]
mod private;
#[path = "upstream/proxies.rs"]
mod proxies;
#[path = "upstream/trust.rs"]
mod trust;

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use harness::agent::{Curl, curl};
use harness::ca::Fault;
use harness::cgroup::Cgroup;
use harness::eventually;
use harness::intake::{Intake, Options, Peer};
use harness::proxy::{Launch, Proxy};
use harness::suite::{Need, case, run};
use harness::world::{API_KEY, World, names};
use nix::sys::signal::Signal;
use rustls_pki_types::CertificateDer;
use serde_json::Value;

/// Where a VPC endpoint would be, inside a namespace of the test.
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 20, 0, 10));

fn main() -> ExitCode {
    run(vec![
        case(
            "private_dns_needs_allow_private",
            &[Need::Root],
            private::private_dns_needs_allow_private,
        ),
        case(
            "an_endpoint_is_for_its_product",
            &[Need::Root],
            private::an_endpoint_is_for_its_product,
        ),
        case(
            "intercepted_for_a_private_address",
            &[Need::Bpf],
            private::intercepted_for_a_private_address,
        ),
        case(
            "intercepted_with_an_endpoint",
            &[Need::Bpf],
            private::intercepted_with_an_endpoint,
        ),
        case("through_a_proxy", &[Need::Root], proxies::through_a_proxy),
        case(
            "through_a_proxy_that_speaks_tls",
            &[Need::Root],
            proxies::through_a_proxy_that_speaks_tls,
        ),
        case(
            "credentials_follow_their_file",
            &[Need::Root],
            proxies::credentials_follow_their_file,
        ),
        case(
            "what_a_proxy_refuses_is_told",
            &[Need::Root],
            proxies::what_a_proxy_refuses_is_told,
        ),
        case(
            "intercepted_through_a_proxy",
            &[Need::Bpf],
            proxies::intercepted_through_a_proxy,
        ),
        case(
            "a_revoked_certificate_is_refused_without_a_restart",
            &[Need::Root],
            trust::a_revoked_certificate_is_refused_without_a_restart,
        ),
        case(
            "an_expired_list_is_an_alarm",
            &[Need::Root],
            trust::an_expired_list_is_an_alarm,
        ),
        case(
            "a_wrong_pin_sends_nothing",
            &[Need::Root],
            trust::a_wrong_pin_sends_nothing,
        ),
        case(
            "a_gateway_that_asks_who_we_are",
            &[Need::Root],
            trust::a_gateway_that_asks_who_we_are,
        ),
    ])
}

/// An intake at [`PRIVATE`], and what can be said about its certificate.
struct Gateway {
    intake: Intake,
    serial: rcgen::SerialNumber,
    pin: String,
}

impl Gateway {
    fn new(world: &World) -> Result<Self> {
        Self::asking(world, None, false)
    }

    /// It lets in who has a certificate of `clients`.
    fn asking(world: &World, clients: Option<CertificateDer<'static>>, http2: bool) -> Result<Self> {
        world.net.ip(&format!("address replace {PRIVATE}/32 dev lo"))?;
        let leaf = world.authority.leaf(&names(), Fault::None)?;
        let (serial, pin) = (leaf.serial.clone(), leaf.pin.clone());
        let options = Options {
            addresses: vec![PRIVATE],
            port: 443,
            leaf,
            peer: Peer::Modern,
            http2,
            api_key: Some(API_KEY.to_owned()),
        };
        Ok(Self {
            intake: Intake::gateway(Some(&world.net), options, clients)?,
            serial,
            pin,
        })
    }
}

/// Every intake name leads to `address`.
fn all_names(address: IpAddr) -> Vec<(String, IpAddr)> {
    names().into_iter().map(|name| (name, address)).collect()
}

fn start<'a>(world: &'a World, config: &Value) -> Result<Proxy<'a>> {
    Launch::new(&world.host).config(config)?.start()
}

/// A request to an explicit port.
fn ask(world: &World, port: u16) -> Result<Curl> {
    request(world, None, &format!("http://localhost:{port}/api/v2/series"))
}

/// A request of an Agent, in its cgroup.
fn request(world: &World, agent: Option<&Cgroup>, url: &str) -> Result<Curl> {
    let key = format!("DD-API-KEY: {API_KEY}");
    curl(
        &world.host,
        agent,
        &["-4", "-H", &key, "--data-binary", "payload", url],
    )
}

/// Asks until the answer is as wanted: a reload and a changed file take a moment.
fn until(world: &World, proxy: &Proxy<'_>, wanted: impl Fn(&Curl) -> bool) -> Result<Curl> {
    let last = std::cell::RefCell::new(None);
    eventually("another answer", Duration::from_secs(30), || {
        let answer = ask(world, 9804)?;
        let good = wanted(&answer);
        let told = format!("{answer:?}");
        *last.borrow_mut() = Some(told);
        Ok(good.then_some(answer))
    })
    .map_err(|error| error.context(format!("the last one: {:?}\n{}", last.borrow(), proxy.log())))
}

/// The configuration is another one: read it.
fn reload(proxy: &Proxy<'_>, config: &Value) -> Result<()> {
    proxy.rewrite(config)?;
    proxy.signal(Signal::SIGHUP)
}

/// A file of this host, replaced in one step.
fn file(world: &World, name: &str, text: &str, mode: u32) -> Result<PathBuf> {
    let (new, path) = (world.host.folder().join(".new"), world.host.folder().join(name));
    std::fs::write(&new, text)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}
