//! Sessions towards the intake: one constructor for every client configuration, one call for every handshake.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::{ClientConnection, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateRevocationListDer, DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::crl::Crls;
use super::error::{ConfigError, HandshakeError};
use super::identity::{self, Identity, Presenter};
use super::pins::Pins;
use super::provider::{self, Offer};
use super::roots::{self, RootsStatus};
use super::sessions::Sessions;
use super::{Negotiated, TrustStatus, verify};
use crate::config::{CrlPolicy, OutboundProxy, Pin, TlsPolicy, Upstream};
use crate::secret::Secrets;

/// Plaintext that a session may hold between us and the socket, in bytes, in each direction of its queues. Two HTTP
/// bodies' worth of our 64 KiB writes: less stalls a bulk upload, more only moves waiting from the client into our
/// memory.
const BUFFER_LIMIT: usize = 128 * 1024;

/// A stream that is encrypted towards the intake.
pub type ClientStream<IO> = tokio_rustls::client::TlsStream<IO>;

/// Names of which it is remembered that they saw our certificate; patterns in the catalogue allow endless ones.
const REMEMBERED_NAMES: usize = 1024;

/// Makes TLS sessions under `upstream.tls_policy`. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What stays as it is, and the state that a changed revocation list replaces.
struct Shared {
    policy: TlsPolicy,
    names: Names,
    protocols: &'static [&'static [u8]],
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    roots_status: RootsStatus,
    presenter: Arc<Presenter>,
    pins: Option<Pins>,
    /// All pins stood in one path: there is no spare.
    no_spare_pin: AtomicBool,
    crls: Option<Mutex<Crls>>,
    /// The lists have changed, and no state could be made of them.
    behind: AtomicBool,
    /// How many lists were expired at the last look.
    expired: AtomicUsize,
    /// That of `state`: asked for with each request.
    generation: AtomicU64,
    state: RwLock<Arc<State>>,
}

/// One set of revocation lists and all that was made under it. Another set makes a new one, session memory included: a
/// resumed session is not verified again, so none may outlive the lists that it was verified with.
struct State {
    connector: TlsConnector,
    crls: Vec<CertRevocationList<'static>>,
    crl_policy: CrlPolicy,
    /// `hard_fail` and not a single list: the library would take that for "do not check".
    refuses_all: bool,
    sessions: Arc<Sessions>,
    /// Names whose sessions began with our certificate.
    presented: Mutex<HashSet<String>>,
}

/// What is said about intakes alone.
#[derive(Default)]
struct Intake {
    crls: Option<Crls>,
    identity: Option<Identity>,
    pins: Vec<Pin>,
}

/// What a server may be called.
#[derive(Clone, Copy, Debug)]
enum Names {
    /// DNS names: an intake has no other.
    Dns,
    /// DNS names and IP addresses: the API server of Kubernetes and an outbound proxy may be known by their address.
    DnsOrIp,
}

impl Client {
    /// A client for these settings. Secret files are read with the rights of this moment.
    ///
    /// # Errors
    /// Roots, revocation lists or a client certificate that cannot be used, or a cryptographic module that does not
    /// answer as approved.
    pub fn new(upstream: &Upstream) -> Result<Self, ConfigError> {
        Self::with_secrets(upstream, &Secrets::default())
    }

    /// As [`Client::new`], with secret files that may be open already.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_secrets(upstream: &Upstream, secrets: &Secrets) -> Result<Self, ConfigError> {
        let crls = upstream
            .crl_dir
            .as_deref()
            .map(|folder| Crls::load(folder, upstream.crl_policy))
            .transpose()?;
        let identity = match (&upstream.client_certificate_file, &upstream.client_key_file) {
            (Some(certificate), Some(key)) => {
                let provider = provider::provider(upstream.tls_policy);
                Some(Identity::load(certificate, key, secrets, &provider)?)
            }
            _ => None,
        };
        let intake = Intake {
            crls,
            identity,
            pins: upstream.pins.clone(),
        };
        let roots = roots::load("upstream.ca_file", upstream.ca_file.as_deref())?;
        Self::build(
            upstream.tls_policy,
            Names::Dns,
            &[b"h2", b"http/1.1"],
            roots,
            intake,
        )
    }

    /// A client for one authority's servers, HTTP/1.1 only: it trusts exactly the certificates of `ca_file` (PEM), and a
    /// server may be named by its IP address. Everything else is as for an intake, without what is said about intakes
    /// alone: revocation lists, pins, client certificate.
    ///
    /// # Errors
    /// As [`Client::new`], in words: the file is not `upstream.ca_file`.
    pub fn for_authority(policy: TlsPolicy, ca_file: &Path) -> Result<Self, String> {
        let roots = roots::load("", Some(ca_file)).map_err(|error| match error {
            ConfigError::CaFile { path, problem, .. } => format!("{}: {problem}", path.display()),
            other => other.to_string(),
        })?;
        Self::build(policy, Names::DnsOrIp, &[b"http/1.1"], roots, Intake::default())
            .map_err(|error| error.to_string())
    }

    /// A client for an outbound proxy that speaks TLS itself: as [`Client::for_authority`], with the roots of
    /// `upstream.proxy.ca_file` or the system's.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn for_proxy(policy: TlsPolicy, proxy: &OutboundProxy) -> Result<Self, ConfigError> {
        let roots = roots::load("upstream.proxy.ca_file", proxy.ca_file.as_deref())?;
        Self::build(policy, Names::DnsOrIp, &[b"http/1.1"], roots, Intake::default())
    }

    fn build(
        policy: TlsPolicy,
        names: Names,
        protocols: &'static [&'static [u8]],
        (store, roots_status): (RootCertStore, RootsStatus),
        Intake { crls, identity, pins }: Intake,
    ) -> Result<Self, ConfigError> {
        let provider = Arc::new(provider::provider(policy));
        let roots = Arc::new(store);
        let presenter = Arc::new(Presenter(identity));
        let lists = crls.as_ref().map(|crls| (crls.in_use(), crls.policy()));
        let expired = crls.as_ref().map_or(0, |crls| crls.expired(now()));
        let state = State::new(&provider, &roots, &presenter, policy, protocols, lists)?;
        let pins = (!pins.is_empty()).then(|| Pins {
            pins,
            roots: Arc::clone(&roots),
            algorithms: provider.signature_verification_algorithms,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                policy,
                names,
                protocols,
                provider,
                roots,
                roots_status,
                presenter,
                pins,
                no_spare_pin: AtomicBool::new(false),
                crls: crls.map(Mutex::new),
                behind: AtomicBool::new(false),
                expired: AtomicUsize::new(expired),
                generation: AtomicU64::new(0),
                state: RwLock::new(Arc::new(state)),
            }),
        })
    }

    /// Shakes hands over `io` as a client of `name`, which the certificate must be valid for. Sets no time limit: the
    /// caller's `upstream.connect_timeout` covers TCP and TLS together.
    ///
    /// # Errors
    /// See [`HandshakeError::reason`]. `io` is closed.
    pub async fn connect<IO>(
        &self,
        name: &str,
        io: IO,
    ) -> Result<(ClientStream<IO>, Negotiated), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let server = self.server_name(name)?;
        let state = self.state();
        if state.refuses_all {
            return Err(HandshakeError::revocation_unknown(name));
        }
        let (connected, presented) = identity::watching(state.connector.connect(server.clone(), io)).await;
        let mut stream = connected.map_err(|error| HandshakeError::from_io(name, &error))?;
        let (_, session) = stream.get_mut();
        // Only now: the handshake's own flights, certificates included, are not to be held back.
        session.set_buffer_limit(Some(BUFFER_LIMIT));
        let mut negotiated = Negotiated::of(session, name);
        if !negotiated.resumed {
            let chain = session.peer_certificates().unwrap_or_default();
            state.sessions.verified(&server, chain);
        }
        negotiated.client_certificate = state.presented(name, presented, negotiated.resumed);
        negotiated.pin = self.pin(&state, session, name)?;
        Ok((stream, negotiated))
    }

    /// Holds a session against the pins, before a byte of a request is written to it. A resumed one, too: its certificate
    /// is remembered, not verified again.
    fn pin(
        &self,
        state: &State,
        session: &ClientConnection,
        name: &str,
    ) -> Result<Option<String>, HandshakeError> {
        let Some(pins) = &self.shared.pins else {
            return Ok(None);
        };
        let matched = pins
            .matched(
                session.peer_certificates().unwrap_or_default(),
                &state.crls,
                state.crl_policy,
            )
            .map_err(|fault| HandshakeError::from_pins(name, &fault))?;
        if pins.pins.iter().all(|pin| matched.contains(pin)) {
            self.shared.no_spare_pin.store(true, Ordering::Relaxed);
        }
        Ok(matched.first().map(ToString::to_string))
    }

    fn server_name(&self, name: &str) -> Result<ServerName<'static>, HandshakeError> {
        let found = match self.shared.names {
            Names::Dns => DnsName::try_from(name.to_owned()).map(ServerName::DnsName),
            Names::DnsOrIp => ServerName::try_from(name.to_owned()),
        };
        found.map_err(|_| HandshakeError::not_a_name(name))
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks whether revocation lists have changed, or have expired under `hard_fail`; when they have, every later session is
    /// made anew under what holds now.
    ///
    /// # Errors
    /// The library refuses them; then the old ones stay in use.
    pub fn refresh(&self) -> Result<(), ConfigError> {
        self.refresh_at(now())
    }

    /// [`Client::refresh`] at a moment in seconds of Unix time.
    pub(super) fn refresh_at(&self, now: u64) -> Result<(), ConfigError> {
        let Some(crls) = &self.shared.crls else {
            return Ok(());
        };
        let shared = &self.shared;
        let lists = {
            let mut crls = lock(crls);
            let changed = crls.refresh();
            // Nobody verifies a remembered session again: when a list expires that has to matter now.
            let expired = crls.expired(now);
            let expires = shared.expired.swap(expired, Ordering::Relaxed) != expired
                && crls.policy() == CrlPolicy::HardFail;
            if !changed && !expires && !shared.behind.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Until it has worked, so that an error is not forgotten.
            shared.behind.store(true, Ordering::Relaxed);
            (crls.in_use(), crls.policy())
        };
        let generation = self.generation() + 1;
        let next = State::new(
            &shared.provider,
            &shared.roots,
            &shared.presenter,
            shared.policy,
            shared.protocols,
            Some(lists),
        )?;
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        // Only now: a connection that is made under the old one must not count as one of the new.
        self.shared.generation.store(generation, Ordering::Release);
        self.shared.behind.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Grows with each change of what servers are judged by. A connection of an earlier one should not carry new requests.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Whom this client trusts.
    pub fn roots(&self) -> &RootsStatus {
        &self.shared.roots_status
    }

    /// How else servers are judged, and who we are for them, at this moment.
    pub fn trust(&self) -> TrustStatus {
        let now = now();
        let crls = self.shared.crls.as_ref().map(|crls| lock(crls).status(now));
        let certificate = self
            .shared
            .presenter
            .0
            .as_ref()
            .map(|identity| identity.status.clone());
        let mut alarms: Vec<String> = crls.iter().flat_map(|crls| crls.alarms()).collect();
        alarms.extend(
            certificate
                .as_ref()
                .and_then(|certificate| certificate.alarm(now)),
        );
        if self.shared.no_spare_pin.load(Ordering::Relaxed) {
            alarms.push(
                "every key of upstream.pins is in use: when the intake changes its keys nothing will be sent; add \
                 one of a spare key"
                    .to_owned(),
            );
        }
        let pins = self.shared.pins.iter().flat_map(|pins| &pins.pins);
        TrustStatus {
            crls,
            pins: pins.map(ToString::to_string).collect(),
            client_certificate: certificate,
            alarms,
        }
    }

    /// Roots and algorithms that servers are judged with.
    pub(super) fn judges(&self) -> (&RootCertStore, WebPkiSupportedAlgorithms) {
        let shared = &self.shared;
        (&shared.roots, shared.provider.signature_verification_algorithms)
    }

    /// What this client offers.
    pub fn offer(&self) -> Offer {
        Offer::of(self.shared.policy)
    }
}

impl State {
    fn new(
        provider: &Arc<CryptoProvider>,
        roots: &Arc<RootCertStore>,
        presenter: &Arc<Presenter>,
        policy: TlsPolicy,
        protocols: &[&[u8]],
        lists: Option<(Vec<CertificateRevocationListDer<'static>>, CrlPolicy)>,
    ) -> Result<Self, ConfigError> {
        let checks = lists.is_some();
        let (lists, crl_policy) = lists.unwrap_or((Vec::new(), CrlPolicy::SoftFail));
        let crls = lists
            .iter()
            .map(|der| OwnedCertRevocationList::from_der(der).map(CertRevocationList::from))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| ConfigError::Refused(error.to_string()))?;
        let refuses_all = checks && crls.is_empty() && crl_policy == CrlPolicy::HardFail;
        let verifier = verify::verifier(provider, roots, lists, crl_policy)?;
        let sessions = Arc::new(Sessions::new());
        let config = client_config(policy, provider, verifier, presenter, &sessions, protocols)?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            crls,
            crl_policy,
            refuses_all,
            sessions,
            presented: Mutex::default(),
        })
    }

    /// Whether the server of this session knows our certificate: shown now, or in the session that is resumed.
    fn presented(&self, name: &str, now: bool, resumed: bool) -> bool {
        let mut names = lock(&self.presented);
        if resumed {
            return names.contains(name);
        }
        if now {
            if names.len() >= REMEMBERED_NAMES {
                names.clear();
            }
            names.insert(name.to_owned());
        } else {
            names.remove(name);
        }
        now
    }
}

/// Seconds of Unix time.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one place where a client configuration is made. Three gates, each with its own message: the provider is
/// approved, the library takes it, the finished configuration is approved. Key log, early data and secret extraction
/// are off by the library's default and are written out here so that a change of default changes nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the constructor that the lint sends everybody to"
)]
fn client_config(
    policy: TlsPolicy,
    provider: &Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    presenter: &Arc<Presenter>,
    sessions: &Arc<Sessions>,
    protocols: &[&[u8]],
) -> Result<ClientConfig, ConfigError> {
    if !provider.fips() {
        return Err(ConfigError::NotApproved {
            what: "set of algorithms",
        });
    }
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(provider::versions(policy))
        .map_err(|error| ConfigError::Refused(error.to_string()))?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::<Presenter>::clone(presenter));
    config.require_ems = true;
    config.key_log = Arc::new(rustls::NoKeyLog);
    config.enable_early_data = false;
    config.enable_secret_extraction = false;
    config.enable_sni = true;
    config.resumption = Resumption::store(Arc::<Sessions>::clone(sessions));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    if !config.fips() {
        return Err(ConfigError::NotApproved {
            what: "client configuration",
        });
    }
    Ok(config)
}
