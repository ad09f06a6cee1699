//! Who is asked for names that the hosts file does not have: the servers of resolv.conf, or the C library.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver as Hickory, TokioResolver, system_conf};

use super::{DEFAULT_TTL, ResolveError};

/// Who is asked.
#[derive(Clone, Debug, Default)]
pub(super) enum Servers {
    /// `getaddrinfo`: there is no resolv.conf with a server in it.
    #[default]
    Libc,
    /// The servers of resolv.conf.
    Dns(Arc<TokioResolver>),
    /// A test's.
    #[cfg(test)]
    Test(Arc<super::tests::outage::Counting>),
}

impl Servers {
    /// Those of this resolv.conf.
    pub(super) fn read(path: &Path) -> Self {
        configured(path).map_or(Self::Libc, |servers| Self::Dns(Arc::new(servers)))
    }

    /// Addresses, and how long they may be kept.
    pub(super) async fn ask(&self, name: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        match self {
            Self::Libc => ask_libc(name).await,
            Self::Dns(servers) => ask_dns(servers, name).await,
            #[cfg(test)]
            Self::Test(counting) => counting.ask(name),
        }
    }
}

async fn ask_dns(servers: &TokioResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    // The trailing dot keeps search domains out: an intake name is always whole.
    let found = servers.lookup_ip([name, "."].concat()).await.map_err(|error| {
        if error.is_nx_domain() {
            ResolveError::Denied("the name does not exist (NXDOMAIN)".to_owned())
        } else if error.is_no_records_found() {
            ResolveError::Denied("the name has no A or AAAA record".to_owned())
        } else {
            ResolveError::Lookup(error.to_string())
        }
    })?;
    let ttl = found.valid_until().saturating_duration_since(Instant::now());
    non_empty(found.iter().collect(), ttl)
}

async fn ask_libc(name: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    let found = tokio::net::lookup_host((name, 0)).await.map_err(|error| {
        let text = error.to_string();
        // The code of getaddrinfo is lost on the way; the texts for EAI_AGAIN are glibc's and musl's, in no other language,
        // since nobody calls setlocale. Taken for a "no", an outage means more questions; the other way round a name might wait.
        if text.contains("Temporary failure in name resolution") || text.contains("Try again") {
            ResolveError::Lookup(text)
        } else {
            ResolveError::Denied(text)
        }
    })?;
    non_empty(found.map(|address| address.ip()).collect(), DEFAULT_TTL)
}

fn non_empty(ips: Vec<IpAddr>, ttl: Duration) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    if ips.is_empty() {
        return Err(ResolveError::Denied("the answer holds no address".to_owned()));
    }
    Ok((ips, ttl))
}

/// A client for the servers of resolv.conf; `None` when it is missing or names none.
fn configured(path: &Path) -> Option<TokioResolver> {
    let text = std::fs::read(path)
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "cannot read"))
        .ok()?;
    let (config, mut options) = system_conf::parse_resolv_conf(text)
        .inspect_err(
            |error| tracing::info!(path = %path.display(), %error, "asking the C library for names instead"),
        )
        .ok()?;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.try_tcp_on_error = true;
    // Answers are kept here, with the last good one: a second cache would only hide TTLs.
    options.cache_size = 0;
    let builder = Hickory::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder
        .build()
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot use the DNS servers"))
        .ok()
}
