//! Sessions of Agents under the local authority, in process: what is agreed on, what is minted and for whom, what a client's
//! distrust looks like, and what a stolen key is good for. OpenSSL, Go and other clients are in the suite `ca`.

#![expect(
    clippy::disallowed_methods,
    reason = "the clients here must be able to do what our own may not"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a test file; its helpers are not seen as tests"
)]

use std::sync::Arc;

use agent_fips_proxy::config::TlsPolicy;
use agent_fips_proxy::tls::Negotiated;
use agent_fips_proxy::tls::ca::{self, Authorities, OpenAuthority, Role};
use agent_fips_proxy::tls::server::{AcceptError, REASONS, ServerStream, alert};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DnType, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, ALL_KX_GROUPS, cipher_suite, default_provider, kx_group};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;

#[path = "authority/local.rs"]
mod local;
use local::{Local as World, catalog};

const NAME: &str = "trace.agent.ddog-gov.com";
const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// What makes a client another one.
type Change = fn(&mut CryptoProvider);
type Versions = &'static [&'static SupportedProtocolVersion];

const ONLY13: Versions = &[&TLS13];
const ONLY12: Versions = &[&TLS12];

fn domains() -> Vec<String> {
    catalog().domains()
}

fn world() -> World {
    world_with(TlsPolicy::Fips)
}

fn world_with(policy: TlsPolicy) -> World {
    World::new(policy)
}

impl World {
    /// A client that trusts the authority, or only somebody else.
    fn client(
        &self,
        trusts: bool,
        change: impl FnOnce(&mut CryptoProvider),
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut provider = default_provider();
        change(&mut provider);
        let roots = if trusts { self.roots() } else { world().roots() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }

    /// A handshake; the hello is fed in pieces of `piece` bytes.
    async fn shake(&self, client: ClientConfig, name: &str, piece: usize) -> (Accepted, Connected) {
        let (ours, theirs) = duplex(256 * 1024);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connecting = async move {
            TlsConnector::from(Arc::new(client))
                .connect(name, theirs)
                .await
                .map_err(|error| error.to_string())
        };
        let accepting = async {
            let (first, io) = first_of(ours, piece).await;
            self.server.accept(first, io).await
        };
        tokio::join!(accepting, connecting)
    }
}

type Accepted = Result<(ServerStream<DuplexStream>, Negotiated), AcceptError>;
type Connected = Result<tokio_rustls::client::TlsStream<DuplexStream>, String>;

/// What the relay has read when it decides: here any piece of the hello.
async fn first_of(mut io: DuplexStream, piece: usize) -> (Vec<u8>, DuplexStream) {
    let mut first = vec![0; piece];
    let read = io.read(&mut first).await.unwrap();
    assert!(read > 0, "the client left before its hello");
    first.truncate(read);
    (first, io)
}

#[tokio::test]
async fn an_agent_that_trusts_the_authority_is_served_whatever_pieces_its_hello_comes_in() {
    let world = world();
    for piece in [1, 7, 600, 65536] {
        let (accepted, connected) = world.shake(world.client(true, |_| {}, BOTH), NAME, piece).await;
        let (mut stream, negotiated) = accepted.unwrap();
        let mut client = connected.unwrap();
        assert_eq!(negotiated.version, "TLSv1.3");
        assert_eq!(negotiated.suite, "TLS_AES_256_GCM_SHA384");
        assert_eq!(negotiated.peer, NAME);
        assert!(negotiated.http2);
        client.write_all(b"ping").await.unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
    }
    assert_eq!(world.server.leaves(), 1);
}

#[tokio::test]
async fn what_is_agreed_on_is_approved() {
    let world = world();
    let table: [(Change, Versions, &str, &str, &str); 4] = [
        // As Go before 1.24: X25519 first, and P-256 for who asks.
        (
            |p| p.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
            ONLY13,
            "TLSv1.3",
            "TLS_AES_256_GCM_SHA384",
            "secp256r1",
        ),
        // As Go from 1.24 on.
        (
            |p| p.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ONLY13,
            "TLSv1.3",
            "TLS_AES_256_GCM_SHA384",
            "X25519MLKEM768",
        ),
        (
            |p| {
                p.cipher_suites = vec![
                    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                    cipher_suite::TLS13_AES_128_GCM_SHA256,
                ];
            },
            ONLY13,
            "TLSv1.3",
            "TLS_AES_128_GCM_SHA256",
            "secp256r1",
        ),
        (
            |p| p.cipher_suites = ALL_CIPHER_SUITES.to_vec(),
            ONLY12,
            "TLSv1.2",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "secp256r1",
        ),
    ];
    for (change, versions, version, suite, group) in table {
        let (accepted, connected) = world
            .shake(world.client(true, change, versions), NAME, 65536)
            .await;
        let (_, negotiated) = accepted.unwrap();
        connected.unwrap();
        assert_eq!(
            (
                negotiated.version.as_str(),
                negotiated.suite.as_str(),
                negotiated.group.as_deref()
            ),
            (version, suite, Some(group))
        );
    }
}

#[tokio::test]
async fn what_is_not_approved_is_refused_with_its_reason() {
    let world = world();
    let table: [(Change, Versions, &str); 4] = [
        (
            |p| p.cipher_suites = vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
            ONLY13,
            "no_common_suite",
        ),
        (
            |p| p.kx_groups = vec![kx_group::X25519],
            ONLY13,
            "no_common_suite",
        ),
        (
            |p| p.kx_groups = vec![kx_group::X25519],
            ONLY12,
            "no_common_suite",
        ),
        (
            |p| p.cipher_suites = vec![cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256],
            ONLY12,
            "no_common_suite",
        ),
    ];
    for (change, versions, reason) in table {
        let (accepted, connected) = world
            .shake(world.client(true, change, versions), NAME, 65536)
            .await;
        let error = accepted.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(connected.is_err());
    }
    let strict = world_with(TlsPolicy::Strict);
    let (accepted, _) = strict
        .shake(strict.client(true, |_| {}, &[&TLS12]), NAME, 65536)
        .await;
    assert_eq!(accepted.unwrap_err().reason, "no_common_version");
    let mut only_other = world.client(true, |p| p.kx_groups = ALL_KX_GROUPS.to_vec(), BOTH);
    only_other.alpn_protocols = vec![b"dd-rc-v1".to_vec()];
    let (accepted, _) = world.shake(only_other, NAME, 65536).await;
    assert_eq!(accepted.unwrap_err().reason, "no_common_protocol");
}

#[tokio::test]
async fn distrust_is_recognised_in_both_versions() {
    let world = world();
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let (accepted, connected) = world
            .shake(world.client(false, |_| {}, versions), NAME, 65536)
            .await;
        let error = accepted.unwrap_err();
        assert!(error.distrusts(), "{error}");
        assert!(
            REASONS.contains(&error.reason) && error.alert.is_some(),
            "{error:?}"
        );
        assert!(error.to_string().contains("https_passthrough_names"), "{error}");
        assert!(connected.is_err());
    }
}

#[tokio::test]
async fn a_client_that_leaves_without_a_word_is_not_called_distrustful() {
    let world = world();
    let (ours, mut theirs) = duplex(64 * 1024);
    let client = world.client(true, |_| {}, BOTH);
    let mut connection =
        rustls::ClientConnection::new(Arc::new(client), ServerName::try_from(NAME).unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    theirs.write_all(&hello).await.unwrap();
    let (hello, io) = first_of(ours, 65536).await;
    let (accepted, ()) = tokio::join!(world.server.accept(hello, io), async {
        let mut some = [0; 100];
        theirs.read_exact(&mut some).await.unwrap();
        drop(theirs);
    });
    let error = accepted.unwrap_err();
    assert!(error.may_distrust() && !error.distrusts(), "{error}");
}

#[tokio::test]
async fn nothing_is_minted_for_names_that_are_not_ours() {
    let world = world();
    for name in [
        "www.example.net",
        "ddog-gov.com",
        "evilddog-gov.com",
        "trace.agent.ddog-gov.com.example.net",
        "docs.ddog-gov.com",
        "192.0.2.1",
        "2001:db8::1",
    ] {
        let (accepted, connected) = world.shake(world.client(true, |_| {}, BOTH), name, 65536).await;
        let error = accepted.unwrap_err();
        let expected = if name.parse::<std::net::IpAddr>().is_ok() {
            // RFC 6066 section 3: an address is not sent as a server name.
            ("no_name", "MissingExtension")
        } else {
            ("not_intake", "UnrecognisedName")
        };
        assert_eq!(error.reason, expected.0, "{name}: {error}");
        let said = connected.unwrap_err();
        assert!(said.contains(expected.1), "{name}: {said}");
    }
    assert_eq!(world.server.leaves(), 0);
}

#[tokio::test]
async fn no_more_names_than_the_bound_are_remembered() {
    let world = world();
    let client = world.client(true, |_| {}, BOTH);
    for number in 0..300 {
        let name = format!("7-{number}-0-app.agent.ddog-gov.com");
        let (accepted, connected) = world.shake(client.clone(), &name, 65536).await;
        accepted.unwrap();
        connected.unwrap();
    }
    assert_eq!(world.server.leaves(), 256);
}

#[tokio::test]
async fn leaves_say_what_they_should() {
    let world = world();
    let mut serials = Vec::new();
    for name in [NAME, "api.ddog-gov.com"] {
        let (accepted, connected) = world.shake(world.client(true, |_| {}, BOTH), name, 65536).await;
        accepted.unwrap();
        let client = connected.unwrap();
        let chain = client.get_ref().1.peer_certificates().unwrap();
        assert_eq!(chain.len(), 1, "the root is not sent");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert!((24 * 3600..=48 * 3600).contains(&life), "{life}");
        let backdated = ca::now() - leaf.validity().not_before.timestamp();
        assert!((3600..3700).contains(&backdated), "{backdated}");
        let basic = leaf.basic_constraints().unwrap().unwrap();
        assert!(!basic.value.ca);
        let usage = leaf.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.server_auth && !usage.value.any && !usage.value.client_auth);
        let names: Vec<String> = leaf
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, [format!("DNSName({name})")]);
        let authority = leaf
            .extensions()
            .iter()
            .any(|extension| extension.oid.to_id_string() == "2.5.29.35");
        assert!(authority, "no authority key identifier");
        serials.push(leaf.raw_serial().to_vec());
    }
    assert_ne!(
        serials[0], serials[1],
        "leaves share a key, never a serial number"
    );
}

#[tokio::test]
async fn sessions_are_resumed_from_memory() {
    let world = world();
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let client = world.client(true, |_| {}, versions);
        let mut resumed = Vec::new();
        for _ in 0..2 {
            let (accepted, connected) = world.shake(client.clone(), NAME, 65536).await;
            let (mut stream, negotiated) = accepted.unwrap();
            resumed.push(negotiated.resumed);
            let mut client = connected.unwrap();
            // The tickets of TLS 1.3 come with the first bytes after the handshake.
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            client.read_u8().await.unwrap();
        }
        assert_eq!(resumed, [false, true]);
    }
}

/// An issuing authority of the operator's, below a root that Agents trust already.
#[tokio::test]
async fn an_authority_of_the_operators_own_is_served_with_its_chain() {
    let keys: [fn() -> KeyPair; 3] = [
        || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ];
    for key in keys {
        let folder = tempfile::tempdir().unwrap();
        let mut company = CertificateParams::default();
        company.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        company
            .distinguished_name
            .push(DnType::CommonName, "company root");
        let company = CertifiedIssuer::self_signed(company, KeyPair::generate().unwrap()).unwrap();
        let key = key();
        let mut issuing = CertificateParams::default();
        issuing
            .distinguished_name
            .push(DnType::CommonName, "company issuing for agents");
        issuing
            .distinguished_name
            .push(DnType::OrganizationalUnitName, "Überwachung  of  nodes");
        issuing.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        issuing.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        issuing.not_after = rcgen::date_time_ymd(2090, 1, 1);
        issuing.name_constraints = Some(NameConstraints {
            permitted_subtrees: domains().into_iter().map(GeneralSubtree::DnsName).collect(),
            excluded_subtrees: vec![
                GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
                GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
            ],
        });
        let issuing = issuing.signed_by(&key, &company).unwrap();
        let (certificate_file, key_file) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        std::fs::write(&certificate_file, issuing.pem() + &company.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let open = OpenAuthority::supplied(&certificate_file, &key_file).unwrap();
        let (authorities, _) = Authorities::load(&[open], &domains(), ca::now()).unwrap();
        let own = World {
            server: local::server(TlsPolicy::Fips, authorities),
            ..world()
        };
        let mut roots = RootCertStore::empty();
        roots.add(company.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (accepted, connected) = own.shake(client, NAME, 65536).await;
        accepted.unwrap();
        let stream = connected.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        assert_eq!(chain.len(), 2, "leaf and issuing authority, not the root");
        assert_eq!(own.server.authorities().signing, Some(Role::Supplied));
    }
}

/// A hello, as a client of ours would write it.
fn hello_bytes(client: ClientConfig) -> Vec<u8> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// Larger than a TLS record, as post-quantum shares make them; one that is larger than a handshake message may be is refused.
#[tokio::test]
async fn a_hello_of_many_records_is_read() {
    let world = world();
    for piece in [1400, 5000, 65536] {
        let mut client = world.client(true, |_| {}, BOTH);
        client.alpn_protocols = (0..200)
            .map(|number| format!("{number:0>240}").into_bytes())
            .collect();
        client.alpn_protocols.push(b"http/1.1".to_vec());
        let bytes = hello_bytes(client.clone());
        assert!(bytes.len() > 2 * 16384, "{} bytes", bytes.len());
        let (accepted, connected) = world.shake(client, NAME, piece).await;
        let (_, negotiated) = accepted.unwrap();
        assert!(!negotiated.http2);
        connected.unwrap();
    }
}

/// Whatever was read beyond the hello is part of the session: here it is rubbish, and must be found to be.
#[tokio::test]
async fn bytes_after_the_hello_are_not_lost() {
    let world = world();
    let mut bytes = hello_bytes(world.client(true, |_| {}, BOTH));
    bytes.extend([0x55; 9000]);
    let (ours, mut theirs) = duplex(64 * 1024);
    let (accepted, ()) = tokio::join!(world.server.accept(bytes, ours), async {
        // The server's flight is read and then nothing more comes: without the rubbish this would be a client that left.
        let mut some = [0; 100];
        theirs.read_exact(&mut some).await.unwrap();
        drop(theirs);
    });
    let error = accepted.unwrap_err();
    assert_eq!(error.reason, "protocol", "{error}");
}

/// Data threads share it.
#[test]
fn a_server_may_be_used_from_several_threads() {
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    shared(&world().server);
}

/// What somebody with the key file can do: anything inside of the domains, nothing outside.
#[test]
fn a_stolen_key_is_worth_nothing_elsewhere() {
    let world = world();
    let one = world.store.published().unwrap().remove(0);
    let key = std::fs::read_to_string(world.store.dir().join(format!("{}.key", one.facts.id()))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&one.pem, KeyPair::from_pem(&key).unwrap()).unwrap();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(world.roots()), Arc::new(default_provider()))
            .build()
            .unwrap();
    let accepted = |names: &[&str], wanted: &str| {
        let names: Vec<SanType> = names
            .iter()
            .map(|name| match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        verifier
            .verify_server_cert(
                leaf.der(),
                &[],
                &ServerName::try_from(wanted.to_owned()).unwrap(),
                &[],
                UnixTime::now(),
            )
            .is_ok()
    };
    assert!(accepted(&[NAME], NAME));
    assert!(accepted(
        &["browser-intake-ddog-gov.com"],
        "browser-intake-ddog-gov.com"
    ));
    for foreign in [
        "www.example.net",
        "evilddog-gov.com",
        "ddog-gov.com.example.net",
        "192.0.2.1",
        "2001:db8::1",
    ] {
        assert!(!accepted(&[foreign], foreign), "{foreign}");
        // Nor hidden beside a name that is permitted.
        assert!(!accepted(&[NAME, foreign], foreign), "{foreign}");
        assert!(!accepted(&[NAME, foreign], NAME), "{foreign}");
    }
}

#[tokio::test]
async fn what_is_no_hello_is_told_so() {
    let world = world();
    for bytes in [
        b"\x16\x03\x01\x00\x05hello".as_slice(),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x00",
    ] {
        let (ours, mut theirs) = duplex(64 * 1024);
        let error = world.server.accept(bytes.to_vec(), ours).await.unwrap_err();
        assert_eq!(error.reason, "protocol", "{error}");
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        // What is no record at all gets no alert.
        assert!(matches!(said.first(), None | Some(21)), "an alert: {said:?}");
    }
    assert_eq!(
        alert::record(alert::Alert::UnrecognizedName),
        [21, 3, 3, 0, 2, 2, 112]
    );
}
