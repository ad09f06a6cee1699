//! Real handshakes of `tls::Client` in process, or with OpenSSL where our own library cannot be a bad enough server:
//! what is offered (read from the bytes of the ClientHello), what is agreed, and every way a server can be refused.

#![expect(
    clippy::disallowed_methods,
    reason = "the servers here must be able to do what our own may not"
)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test file; its helpers are not seen as tests"
)]

#[path = "fips_handshake/trust.rs"]
mod trust;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent_fips_proxy::config::{Config, TlsPolicy, Upstream};
use agent_fips_proxy::tls::error::REASONS;
use agent_fips_proxy::tls::{Client, ClientStream, ConfigError, HandshakeError, Negotiated};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, ALL_KX_GROUPS, cipher_suite, default_provider, kx_group};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio_rustls::TlsAcceptor;

const NAME: &str = "trace.agent.ddog-gov.com";

// --- What is offered.

#[tokio::test]
async fn the_fips_policy_offers_exactly_this() {
    let hello = hello_of(TlsPolicy::Fips).await;
    // 0x00ff is the renegotiation signal of RFC 5746, not a suite.
    assert_eq!(
        hello.suites,
        [0x1302, 0x1301, 0xc02c, 0xc02b, 0xc030, 0xc02f, 0x00ff]
    );
    assert_eq!(
        hello.groups,
        [SECP256R1_MLKEM768, X25519_MLKEM768, SECP256R1, SECP384R1]
    );
    assert_eq!(
        hello.shares,
        [SECP256R1_MLKEM768, SECP256R1],
        "both halves of every share sent are approved"
    );
    assert_eq!(hello.signatures, SIGNATURES);
    assert_eq!(hello.versions, [0x0304, 0x0303]);
    assert!(hello.extended_master_secret && !hello.early_data);
    assert_eq!(hello.alpn, ["h2", "http/1.1"]);
    assert_eq!(hello.name.as_deref(), Some(NAME));
}

#[tokio::test]
async fn the_strict_policy_offers_exactly_this() {
    let hello = hello_of(TlsPolicy::Strict).await;
    assert_eq!(hello.suites, [0x1302, 0x1301]);
    assert_eq!(hello.groups, [SECP256R1_MLKEM768, SECP256R1, SECP384R1]);
    assert_eq!(hello.shares, [SECP256R1_MLKEM768, SECP256R1]);
    assert_eq!(hello.signatures, SIGNATURES);
    assert_eq!(hello.versions, [0x0304]);
    assert!(!hello.early_data);
}

// --- What is agreed.

#[tokio::test]
async fn tls13_prefers_the_hybrid_with_both_halves_approved() {
    let server = Server {
        groups: vec![kx_group::SECP256R1, kx_group::SECP256R1MLKEM768],
        ..Server::good()
    };
    let (_, negotiated) = server.meet(&server.client(TlsPolicy::Fips)).await.unwrap();
    assert_eq!(
        negotiated,
        Negotiated {
            version: "TLSv1.3".to_owned(),
            suite: "TLS_AES_256_GCM_SHA384".to_owned(),
            group: Some("SecP256r1MLKEM768".to_owned()),
            http2: true,
            peer: NAME.to_owned(),
            ..Negotiated::default()
        }
    );
}

#[tokio::test]
async fn a_server_may_insist_on_the_other_hybrid_only_under_fips() {
    let server = Server {
        groups: vec![kx_group::X25519MLKEM768],
        ..Server::good()
    };
    let (_, negotiated) = server.meet(&server.client(TlsPolicy::Fips)).await.unwrap();
    assert_eq!(negotiated.group.as_deref(), Some("X25519MLKEM768"));
    assert_eq!(server.refusal(TlsPolicy::Strict).await.reason, "no_common_suite");
}

#[tokio::test]
async fn a_server_without_hybrids_gets_p256_or_p384() {
    for (group, name) in [
        (kx_group::SECP256R1, "secp256r1"),
        (kx_group::SECP384R1, "secp384r1"),
    ] {
        let server = Server {
            groups: vec![group],
            ..Server::good()
        };
        let (_, negotiated) = server.meet(&server.client(TlsPolicy::Strict)).await.unwrap();
        assert_eq!(negotiated.group.as_deref(), Some(name));
    }
}

#[tokio::test]
async fn tls12_is_for_the_fips_policy_only() {
    let server = Server {
        versions: vec![&TLS12],
        alpn: vec!["http/1.1"],
        ..Server::good()
    };
    let (_, negotiated) = server.meet(&server.client(TlsPolicy::Fips)).await.unwrap();
    assert_eq!(negotiated.version, "TLSv1.2");
    assert!(
        negotiated.suite.starts_with("TLS_ECDHE_ECDSA_WITH_AES_"),
        "{}",
        negotiated.suite
    );
    assert_eq!(negotiated.group.as_deref(), Some("secp256r1"));
    assert!(!negotiated.http2);

    let error = server.refusal(TlsPolicy::Strict).await;
    assert_eq!(error.reason, "no_common_version");
    assert!(error.to_string().contains("upstream.tls_policy"), "{error}");
}

#[tokio::test]
async fn sessions_are_resumed_and_data_flows_both_ways() {
    for version in [&TLS13, &TLS12] {
        let server = Server {
            versions: vec![version],
            ..Server::good()
        };
        let client = server.client(TlsPolicy::Fips);
        let acceptor = server.acceptor();
        let mut resumed = Vec::new();
        for _ in 0..2 {
            let (near, far) = duplex(1 << 16);
            // A clone on purpose: the memory of sessions is shared.
            let client = client.clone();
            let (ours, theirs) = tokio::join!(client.connect(NAME, near), acceptor.accept(far));
            let ((mut ours, negotiated), mut theirs) = (ours.unwrap(), theirs.unwrap());
            let mut four = [0; 4];
            theirs.write_all(b"pong").await.unwrap();
            ours.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"pong");
            ours.write_all(b"ping").await.unwrap();
            theirs.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"ping");
            resumed.push(negotiated.resumed);
        }
        assert_eq!(resumed, [false, true], "{version:?}");
    }
}

#[tokio::test]
async fn a_session_holds_a_bounded_amount_of_unsent_data() {
    let server = Server::good();
    let (mut stream, _) = server.meet(&server.client(TlsPolicy::Fips)).await.unwrap();
    let (_, session) = stream.get_mut();
    let much = vec![0; 1 << 20];
    let taken = std::io::Write::write(&mut session.writer(), &much).unwrap();
    assert!(
        taken <= 128 * 1024,
        "{taken} bytes were taken into the session's buffer"
    );
    assert!(taken > 64 * 1024, "a write of 64 KiB must fit at once: {taken}");
}

// --- What is refused.

#[tokio::test]
async fn every_bad_certificate_has_its_reason_and_its_cure() {
    type Spoil = fn(&mut CertificateParams);
    let cases: [(Spoil, &str, &str); 6] = [
        (
            |c| c.not_after = rcgen::date_time_ymd(2020, 1, 1),
            "certificate_expired",
            "clock",
        ),
        (
            |c| c.not_before = rcgen::date_time_ymd(2099, 1, 1),
            "certificate_not_yet_valid",
            "clock",
        ),
        (
            |c| c.subject_alt_names = names("trace.agent.datadoghq.com"),
            "wrong_name",
            "upstream.endpoints",
        ),
        (
            |c| c.subject_alt_names = Vec::new(),
            "wrong_name",
            "upstream.endpoints",
        ),
        (
            |c| c.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            "bad_certificate",
            "server authentication",
        ),
        (
            |c| c.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "unknown_issuer",
            "upstream.ca_file",
        ),
    ];
    for (spoil, reason, cure) in cases {
        let server = Server::with(spoil);
        for policy in [TlsPolicy::Fips, TlsPolicy::Strict] {
            let error = server.refusal(policy).await;
            assert_eq!(error.reason, reason, "{error}");
            let text = error.to_string();
            assert!(text.contains(NAME) && text.contains(cure), "{reason}: {text}");
        }
    }
}

#[tokio::test]
async fn a_stranger_is_refused_self_signed_or_not() {
    let ours = Server::good();
    let mut stranger = Server::issued_by("another root", |_| {});
    let error = stranger.meet(&ours.client(TlsPolicy::Fips)).await.err().unwrap();
    assert_eq!(error.reason, "unknown_issuer", "{error}");
    assert!(error.to_string().contains("upstream.ca_file"), "{error}");

    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec![NAME.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    stranger.chain = vec![own.der().clone()];
    stranger.key = key.serialize_der();
    let error = stranger.meet(&ours.client(TlsPolicy::Fips)).await.err().unwrap();
    assert_eq!(error.reason, "unknown_issuer", "{error}");
}

#[tokio::test]
async fn a_root_of_the_same_name_with_another_key_is_no_root() {
    let error = Server::good()
        .meet(&Server::good().client(TlsPolicy::Fips))
        .await
        .err()
        .unwrap();
    assert_eq!(error.reason, "bad_certificate");
    assert!(error.to_string().contains("upstream.ca_file"), "{error}");
}

#[tokio::test]
async fn a_server_with_unapproved_cryptography_only_is_refused() {
    let chacha = vec![
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let servers = [
        Server {
            suites: chacha.clone(),
            ..Server::good()
        },
        Server {
            suites: chacha,
            versions: vec![&TLS12],
            ..Server::good()
        },
        Server {
            groups: vec![kx_group::X25519],
            ..Server::good()
        },
        Server {
            groups: vec![kx_group::X25519],
            versions: vec![&TLS12],
            ..Server::good()
        },
    ];
    for server in servers {
        let error = server.refusal(TlsPolicy::Fips).await;
        assert_eq!(error.reason, "no_common_suite", "{error}");
        assert!(error.to_string().contains("not approved"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_tls_server_is_told_from_one() {
    let client = Server::good().client(TlsPolicy::Fips);
    // The last two are fatal alerts: protocol_version (70) and unrecognized_name (112).
    let answers: [(&[u8], &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"),
        (b"", "closed"),
        (&[21, 3, 3, 0, 2, 2, 70], "no_common_version"),
        (&[21, 3, 3, 0, 2, 2, 112], "alert"),
    ];
    for (answer, reason) in answers {
        let (near, mut far) = duplex(1 << 16);
        let (result, ()) = tokio::join!(client.connect(NAME, near), async move {
            read_hello(&mut far).await;
            far.write_all(answer).await.unwrap();
        });
        let error = result.err().unwrap();
        assert_eq!(error.reason, reason, "{error}");
        assert!(REASONS.contains(&error.reason));
    }
}

#[tokio::test]
async fn only_dns_names_are_dialled_and_hostile_ones_are_escaped() {
    let client = Server::good().client(TlsPolicy::Fips);
    for name in [
        "203.0.113.1",
        "2001:db8::1",
        "",
        "a b",
        "evil\n2026-01-01 forged line",
    ] {
        let (near, _far) = duplex(64);
        let error = client.connect(name, near).await.err().unwrap();
        assert_eq!(error.reason, "wrong_name", "{name}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

// --- Servers that only OpenSSL can play.

#[tokio::test]
async fn openssl_without_extended_master_secret_is_refused() {
    let server = Server::good();
    let Some(openssl) = OpenSsl::start(&server, &["-tls1_2"], "Options = -ExtendedMasterSecret") else {
        return;
    };
    let error = openssl.meet(&server.client(TlsPolicy::Fips)).await.err().unwrap();
    assert_eq!(error.reason, "no_ems", "{error}");
    assert!(error.to_string().contains("RFC 7627"), "{error}");
}

#[tokio::test]
async fn openssl_with_tls11_only_is_refused() {
    let server = Server::good();
    let args = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let Some(openssl) = OpenSsl::start(&server, &args, "MinProtocol = TLSv1") else {
        return;
    };
    let error = openssl.meet(&server.client(TlsPolicy::Fips)).await.err().unwrap();
    assert_eq!(error.reason, "no_common_version", "{error}");
}

#[tokio::test]
async fn openssl_of_today_is_met_with_both_versions() {
    // Also the proof that the two refusals above are about the version and the extension, not about OpenSSL.
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let server = Server::good();
        let Some(openssl) = OpenSsl::start(&server, &[flag], "") else {
            return;
        };
        let negotiated = openssl.meet(&server.client(TlsPolicy::Fips)).await.unwrap();
        assert_eq!(negotiated.version, version);
    }
}

// --- What must never exist.

/// The handshake that the next test runs in a process of its own, with `SSLKEYLOGFILE` set.
#[tokio::test]
async fn one_handshake() {
    let server = Server::good();
    server.meet(&server.client(TlsPolicy::Fips)).await.unwrap();
}

#[test]
fn no_key_log_is_written_when_the_environment_asks_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("keys");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_handshake"])
        .env("SSLKEYLOGFILE", &log)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert!(!log.exists(), "traffic keys were written to a file");
}

// --- Roots.

#[test]
fn a_ca_file_that_is_of_no_use_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let good = Server::good().ca_pem;
    let key = KeyPair::generate().unwrap().serialize_pem();
    let section = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let cases = [
        ("empty.pem", String::new(), "no PEM certificate"),
        ("key.pem", key.clone(), "no PEM certificate"),
        ("words.pem", section("not base64!"), "not valid base64"),
        (
            "cut.pem",
            format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n"),
            "certificate 2: the section has no end line",
        ),
        (
            "junk.pem",
            section("AAAA"),
            "certificate 1 is not a usable trust anchor",
        ),
    ];
    for (file, text, problem) in cases {
        let path = dir.path().join(file);
        std::fs::write(&path, text).unwrap();
        let error = Client::new(&upstream(TlsPolicy::Fips, Some(path.clone())))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("upstream.ca_file") && error.contains(&*path.to_string_lossy()),
            "{error}"
        );
        assert!(error.contains(problem), "{error}");
        assert!(!error.contains(&key[40..60]), "{error}");
    }
    let absent = Client::new(&upstream(TlsPolicy::Fips, Some(dir.path().join("absent.pem"))))
        .err()
        .unwrap();
    assert!(
        matches!(&absent, ConfigError::CaFile { .. }) && absent.to_string().contains("No such file"),
        "{absent}"
    );
}

#[test]
fn the_digest_of_the_roots_is_of_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Server::good().ca_pem, Server::good().ca_pem);
    let digest = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let client = Client::new(&upstream(TlsPolicy::Fips, Some(path))).unwrap();
        (client.roots().count, client.roots().sha256.clone())
    };
    let one = digest("a", a.clone());
    let two = digest("ab", format!("{a}{b}"));
    assert_eq!((one.0, two.0), (1, 2));
    assert_ne!(one.1, two.1);
    assert_eq!(two, digest("bab", format!("{b}{a}{b}")));
}

// --- The other side.

/// A server and everything about it that a test may spoil.
struct Server {
    versions: Vec<&'static SupportedProtocolVersion>,
    suites: Vec<rustls::SupportedCipherSuite>,
    groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
    alpn: Vec<&'static str>,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    ca_pem: String,
}

impl Server {
    fn good() -> Self {
        Self::with(|_| {})
    }

    fn with(spoil: fn(&mut CertificateParams)) -> Self {
        Self::issued_by("test root", spoil)
    }

    fn issued_by(root: &str, spoil: fn(&mut CertificateParams)) -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, root);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let mut leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        spoil(&mut leaf);
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &ca).unwrap();
        Self {
            versions: vec![&TLS13, &TLS12],
            suites: ALL_CIPHER_SUITES.to_vec(),
            groups: ALL_KX_GROUPS.to_vec(),
            alpn: vec!["h2", "http/1.1"],
            chain: vec![leaf.der().clone()],
            key: key.serialize_der(),
            ca_pem: ca.pem(),
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = CryptoProvider {
            cipher_suites: self.suites.clone(),
            kx_groups: self.groups.clone(),
            ..default_provider()
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                self.chain.clone(),
                PrivateKeyDer::try_from(self.key.clone()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client that trusts this server's authority.
    fn client(&self, policy: TlsPolicy) -> Client {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.ca_pem).unwrap();
        Client::new(&upstream(policy, Some(file.path().to_owned()))).unwrap()
    }

    async fn meet(
        &self,
        client: &Client,
    ) -> Result<(ClientStream<DuplexStream>, Negotiated), HandshakeError> {
        let (near, far) = duplex(1 << 16);
        let (ours, _) = tokio::join!(client.connect(NAME, near), self.acceptor().accept(far));
        if let Err(error) = &ours {
            assert!(
                REASONS.contains(&error.reason),
                "{} is not one of the closed set",
                error.reason
            );
        }
        ours
    }

    async fn refusal(&self, policy: TlsPolicy) -> HandshakeError {
        self.meet(&self.client(policy)).await.err().unwrap()
    }
}

fn names(name: &str) -> Vec<rcgen::SanType> {
    vec![rcgen::SanType::DnsName(name.try_into().unwrap())]
}

fn upstream(tls_policy: TlsPolicy, ca_file: Option<PathBuf>) -> Upstream {
    Upstream {
        ca_file,
        tls_policy,
        ..Config::default().upstream
    }
}

/// `openssl s_server` on a socket in a folder of its own, ended with the value. Not on a port: between the choice of a free one and its
/// use another test may have it.
struct OpenSsl {
    child: Child,
    dir: tempfile::TempDir,
}

/// Its name there.
const SOCKET: &str = "socket";

impl OpenSsl {
    /// None, said loudly, where openssl is not installed; with `CI=true` that is a failure.
    fn start(server: &Server, args: &[&str], settings: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
            eprintln!("SKIPPED: openssl is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let cert = file("cert.der", &server.chain[0]);
        let key = file("key.der", &server.key);
        let conf = format!("openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\n{settings}\n");
        let conf = file("openssl.cnf", conf.as_bytes());
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-unix"])
            .arg(dir.path().join(SOCKET))
            .args(["-certform", "DER", "-cert"])
            .arg(cert)
            .args(["-keyform", "DER", "-key"])
            .arg(key)
            .args(args)
            .env("OPENSSL_CONF", conf)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { child, dir })
    }

    async fn meet(&self, client: &Client) -> Result<Negotiated, HandshakeError> {
        let socket = self.dir.path().join(SOCKET);
        for _ in 0..200 {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                return client
                    .connect(NAME, stream)
                    .await
                    .map(|(_, negotiated)| negotiated);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("openssl s_server did not open {}", socket.display());
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// --- The ClientHello, read from its bytes (RFC 8446, 4.1.2).

const SECP256R1: u16 = 0x0017;
const SECP384R1: u16 = 0x0018;
const SECP256R1_MLKEM768: u16 = 0x11eb;
const X25519_MLKEM768: u16 = 0x11ec;

/// ECDSA P-384, P-256, P-521; Ed25519; RSA-PSS and PKCS#1 (certificates only) with SHA-512, SHA-384, SHA-256.
const SIGNATURES: [u16; 10] = [
    0x0503, 0x0403, 0x0603, 0x0807, 0x0806, 0x0805, 0x0804, 0x0601, 0x0501, 0x0401,
];

#[derive(Default)]
struct Hello {
    suites: Vec<u16>,
    groups: Vec<u16>,
    shares: Vec<u16>,
    signatures: Vec<u16>,
    versions: Vec<u16>,
    alpn: Vec<String>,
    name: Option<String>,
    extended_master_secret: bool,
    early_data: bool,
}

async fn hello_of(policy: TlsPolicy) -> Hello {
    let client = Server::good().client(policy);
    let (near, mut far) = duplex(1 << 16);
    let (_, bytes) = tokio::join!(
        client.connect(NAME, near),
        async move { read_hello(&mut far).await }
    );
    parse(&bytes)
}

async fn read_hello(io: &mut DuplexStream) -> Vec<u8> {
    let mut header = [0; 5];
    io.read_exact(&mut header).await.unwrap();
    assert_eq!(header[0], 22, "not a handshake record");
    let mut record = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    io.read_exact(&mut record).await.unwrap();
    record
}

fn parse(record: &[u8]) -> Hello {
    let mut bytes = Bytes(record);
    assert_eq!(bytes.take(1), [1], "not a ClientHello");
    let _length_version_random = bytes.take(3 + 2 + 32);
    let _session = bytes.vec8();
    let mut hello = Hello {
        suites: u16s(bytes.vec16()),
        ..Hello::default()
    };
    let _compression = bytes.vec8();
    let mut extensions = Bytes(bytes.vec16());
    while !extensions.0.is_empty() {
        let kind = extensions.u16();
        let mut body = Bytes(extensions.vec16());
        match kind {
            0 => hello.name = Some(String::from_utf8(body.0[5..].to_vec()).unwrap()),
            10 => hello.groups = u16s(body.vec16()),
            13 => hello.signatures = u16s(body.vec16()),
            16 => {
                let mut list = Bytes(body.vec16());
                while !list.0.is_empty() {
                    hello.alpn.push(String::from_utf8(list.vec8().to_vec()).unwrap());
                }
            }
            23 => hello.extended_master_secret = true,
            42 => hello.early_data = true,
            43 => hello.versions = u16s(body.vec8()),
            51 => {
                let mut list = Bytes(body.vec16());
                while !list.0.is_empty() {
                    hello.shares.push(list.u16());
                    let _share = list.vec16();
                }
            }
            _ => {}
        }
    }
    hello
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        head
    }
    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }
    fn vec8(&mut self) -> &'a [u8] {
        let count = self.take(1)[0];
        self.take(usize::from(count))
    }
    fn vec16(&mut self) -> &'a [u8] {
        let count = self.u16();
        self.take(usize::from(count))
    }
}

fn u16s(bytes: &[u8]) -> Vec<u16> {
    bytes
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect()
}
