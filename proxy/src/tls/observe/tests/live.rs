//! Handshakes of rustls with itself, in memory, read while they pass: what we read is what the two ends say they have.

#![expect(
    clippy::disallowed_methods,
    reason = "the ends here must be able to do what our own sessions may not"
)]

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{
    ALL_CIPHER_SUITES, ALL_KX_GROUPS, Ticketer, cipher_suite, default_provider, kx_group,
};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::config::TlsPolicy;
use crate::tls::provider;

const NAME: &str = "trace.agent.ddog-gov.com";

struct Ends {
    client: ClientConfig,
    server: ServerConfig,
}

impl Ends {
    fn new(
        version: &'static SupportedProtocolVersion,
        client: CryptoProvider,
        server: CryptoProvider,
    ) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(Arc::new(client))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let server = ServerConfig::builder_with_provider(Arc::new(server))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        Self { client, server }
    }

    /// A handshake in which the server's bytes come in pieces of these sizes.
    fn meet(&self, sizes: &[usize]) -> Met {
        let name = NAME.try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(self.client.clone()), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(self.server.clone())).unwrap();
        let (mut reader, mut hello) = (HelloReader::default(), None);
        let (mut observer, mut session) = (Observer::default(), None);
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            if hello.is_none() {
                hello = reader.feed(&bytes).unwrap();
            }
            take(&bytes, |bytes| server.read_tls(bytes));
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            for piece in in_pieces(&bytes, sizes) {
                match observer.server(piece) {
                    Progress::Known(known) => session = Some(known),
                    Progress::More => assert!(session.is_none()),
                    other => panic!("{other:?}"),
                }
            }
            take(&bytes, |bytes| client.read_tls(bytes));
            client.process_new_packets().unwrap();
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Met {
            hello: hello.unwrap(),
            session: session.unwrap(),
            client,
        }
    }
}

fn take(mut bytes: &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) {
    while !bytes.is_empty() {
        read(&mut bytes).unwrap();
    }
}

struct Met {
    hello: ClientHello,
    session: AgentSession,
    client: ClientConnection,
}

impl Met {
    /// What was read against what the client has. rustls sends no group of a resumed session of TLS 1.2.
    fn agrees(&self, expected: &str) {
        assert_eq!(brief(&self.session), expected);
        assert_eq!(self.hello.server_name.as_deref(), Some(NAME));
        assert_eq!(self.hello.protocols, ["h2", "http/1.1"]);
        assert!(self.hello.suites.contains(&self.session.suite));
        assert!(self.hello.versions.contains(&self.session.version));
        let version = provider::version_name(self.client.protocol_version().unwrap());
        assert_eq!(self.session.version, version);
        let suite = self.client.negotiated_cipher_suite().unwrap();
        assert_eq!(self.session.suite, provider::suite_name(suite.suite()));
        let group = self.client.negotiated_key_exchange_group();
        if let Some(group) = &self.session.group {
            assert!(self.hello.groups.contains(group));
        }
        assert_eq!(
            self.session.group,
            group.map(|group| names::group(group.name().into()))
        );
        let kind = self.client.handshake_kind().unwrap();
        assert_eq!(self.session.resumed, kind == HandshakeKind::Resumed);
        assert_eq!(
            self.session.retried,
            kind == HandshakeKind::FullWithHelloRetryRequest
        );
    }
}

/// All that rustls can do, in its order; its defaults under `fips` have neither ChaCha20 nor bare X25519.
fn everything() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: ALL_CIPHER_SUITES.to_vec(),
        kx_groups: ALL_KX_GROUPS.to_vec(),
        ..default_provider()
    }
}

fn only(group: &'static dyn rustls::crypto::SupportedKxGroup) -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![group],
        ..everything()
    }
}

fn ours() -> CryptoProvider {
    provider::provider(TlsPolicy::Fips)
}

#[test]
fn sessions_of_tls13_are_those_of_the_client() {
    for (group, session) in [
        (kx_group::SECP256R1MLKEM768, "SecP256r1MLKEM768"),
        (kx_group::X25519MLKEM768, "X25519MLKEM768 retried"),
        (kx_group::SECP256R1, "secp256r1"),
        (kx_group::SECP384R1, "secp384r1 retried"),
    ] {
        let met = Ends::new(&TLS13, ours(), only(group)).meet(&[1, 700]);
        met.agrees(&format!("TLSv1.3 TLS_AES_256_GCM_SHA384 {session}"));
        assert_eq!(judge(&met.session), Ok(()));
    }
}

#[test]
fn a_client_with_other_ideas_is_below() {
    let met = Ends::new(&TLS13, only(kx_group::X25519), everything()).meet(&[1]);
    met.agrees("TLSv1.3 TLS_AES_256_GCM_SHA384 x25519");
    assert_eq!(judge(&met.session).unwrap_err().label, "group");
    let chacha = CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..everything()
    };
    let met = Ends::new(&TLS13, chacha, everything()).meet(&[3]);
    assert_eq!(met.session.suite, "TLS_CHACHA20_POLY1305_SHA256");
    assert_eq!(judge(&met.session).unwrap_err().label, "suite");
}

#[test]
fn resumptions_of_tls13_have_a_group() {
    let ends = Ends::new(&TLS13, ours(), everything());
    let first = ends.meet(&[1]);
    assert!(!first.session.resumed);
    let second = ends.meet(&[64]);
    second.agrees(&format!("{} resumed", brief(&first.session)));
    assert_eq!(judge(&second.session), Ok(()));
}

#[test]
fn sessions_of_tls12_and_their_resumptions_are_those_of_the_client() {
    for tickets in [false, true] {
        let mut ends = Ends::new(&TLS12, ours(), only(kx_group::SECP384R1));
        if tickets {
            ends.server.ticketer = Ticketer::new().unwrap();
        }
        for size in [1, 13, 4096] {
            let met = ends.meet(&[size]);
            let group = if size == 1 {
                "secp384r1 ems"
            } else {
                "- ems resumed"
            };
            assert_eq!(
                brief(&met.session),
                format!("TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 {group}")
            );
            assert_eq!(
                met.session.resumed,
                met.client.handshake_kind() == Some(HandshakeKind::Resumed)
            );
            assert_eq!(judge(&met.session), Ok(()));
        }
    }
}

/// Records as small as rustls makes them: every message is in several.
#[test]
fn messages_over_many_records_are_put_together() {
    for version in [&TLS12, &TLS13] {
        let mut ends = Ends::new(version, ours(), everything());
        ends.client.max_fragment_size = Some(40);
        ends.server.max_fragment_size = Some(40);
        let met = ends.meet(&[1, 2, 3, 50]);
        assert_eq!(judge(&met.session), Ok(()));
        assert_eq!(met.hello.server_name.as_deref(), Some(NAME));
    }
}
