//! Revocation lists, pins and client certificates, by real handshakes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agent_fips_proxy::config::{CrlPolicy, Pin};
use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;

use super::*;

/// A root, an intermediate and a server's certificate, and everything that a client may be told about them.
struct Chain {
    dir: tempfile::TempDir,
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
    leaf: rcgen::Certificate,
    leaf_key: KeyPair,
    versions: Vec<&'static SupportedProtocolVersion>,
    /// The server asks for a client certificate of this authority.
    asks: Option<CertificateDer<'static>>,
    /// What the server appends to its chain.
    appended: Vec<CertificateDer<'static>>,
}

const LEAF: u64 = 7;
const INTERMEDIATE: u64 = 8;

fn authority(name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

impl Chain {
    fn new() -> Self {
        let root = CertifiedIssuer::self_signed(authority("root", 1), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let intermediate =
            CertifiedIssuer::signed_by(authority("intermediate", INTERMEDIATE), key, &root).unwrap();
        let mut leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        leaf.serial_number = Some(SerialNumber::from(LEAF));
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&leaf_key, &intermediate).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), root.pem()).unwrap();
        std::fs::create_dir(dir.path().join("crls")).unwrap();
        Self {
            dir,
            root,
            intermediate,
            leaf,
            leaf_key,
            versions: vec![&TLS13, &TLS12],
            asks: None,
            appended: Vec::new(),
        }
    }

    fn settings(&self) -> Upstream {
        upstream(TlsPolicy::Fips, Some(self.dir.path().join("ca.pem")))
    }

    fn with_crls(&self, policy: CrlPolicy) -> Upstream {
        Upstream {
            crl_dir: Some(self.dir.path().join("crls")),
            crl_policy: policy,
            ..self.settings()
        }
    }

    fn crl(&self, name: &str, bytes: &[u8]) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, self.dir.path().join("crls").join(name)).unwrap();
    }

    /// Good lists of both authorities, which revoke what they are told to.
    fn crls(&self, intermediate_revokes: &[u64], root_revokes: &[u64]) {
        self.crl(
            "intermediate",
            &list(&self.intermediate, intermediate_revokes, 2025, 2090),
        );
        self.crl("root", &list(&self.root, root_revokes, 2025, 2090));
    }

    fn acceptor(&self) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap();
        let builder = match &self.asks {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone()).unwrap();
                let provider = Arc::new(default_provider());
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .unwrap(),
                )
            }
        };
        let mut chain = vec![self.leaf.der().clone(), self.intermediate.der().clone()];
        chain.extend(self.appended.iter().cloned());
        let config = builder.with_single_cert(
            chain,
            PrivateKeyDer::try_from(self.leaf_key.serialize_der()).unwrap(),
        );
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    /// A handshake, and one byte each way, so that an alert after it is seen, too.
    async fn meet(&self, client: &Client, acceptor: &TlsAcceptor) -> Result<Negotiated, HandshakeError> {
        let (near, far) = duplex(1 << 16);
        let serving = async {
            let Ok(mut stream) = acceptor.accept(far).await else {
                return;
            };
            if stream.read_u8().await.is_ok() {
                let _ = stream.write_all(b"!").await;
                let _ = stream.flush().await;
            }
        };
        let talking = async {
            let (mut stream, negotiated) = client.connect(NAME, near).await?;
            let answered = match stream.write_all(b"?").await {
                Ok(()) => stream.read_u8().await.map(drop),
                Err(error) => Err(error),
            };
            answered.map_err(|error| {
                HandshakeError::late_alert(NAME, &error).unwrap_or_else(|| panic!("no alert: {error}"))
            })?;
            Ok(negotiated)
        };
        let (result, ()) = tokio::join!(talking, serving);
        if let Err(error) = &result {
            assert!(REASONS.contains(&HandshakeError::clone(error).reason));
        }
        result
    }

    async fn judged(&self, settings: &Upstream) -> Result<Negotiated, HandshakeError> {
        self.meet(&Client::new(settings).unwrap(), &self.acceptor()).await
    }

    async fn reason(&self, settings: &Upstream) -> Result<(), &'static str> {
        self.judged(settings)
            .await
            .map(drop)
            .map_err(|error| error.reason)
    }
}

fn list(issuer: &Issuer<'_, KeyPair>, serials: &[u64], year: i32, until: i32) -> Vec<u8> {
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(year, 1, 1),
        next_update: date_time_ymd(until, 1, 1),
        crl_number: SerialNumber::from(u64::try_from(year).unwrap()),
        issuing_distribution_point: None,
        revoked_certs: serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2025, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().der().to_vec()
}

// --- Revocation.

#[tokio::test]
async fn a_revoked_certificate_is_refused_under_both_policies_wherever_it_stands_in_the_path() {
    for policy in [CrlPolicy::SoftFail, CrlPolicy::HardFail] {
        let chain = Chain::new();
        chain.crls(&[], &[]);
        assert_eq!(chain.reason(&chain.with_crls(policy)).await, Ok(()), "{policy:?}");
        chain.crls(&[99, LEAF], &[]);
        let error = chain.judged(&chain.with_crls(policy)).await.unwrap_err();
        assert_eq!(error.reason, "revoked");
        assert!(error.to_string().contains("upstream.crl_dir"), "{error}");
        chain.crls(&[], &[INTERMEDIATE]);
        assert_eq!(
            chain.reason(&chain.with_crls(policy)).await,
            Err("revoked"),
            "{policy:?}"
        );
        // Without the folder nobody looks.
        assert_eq!(chain.reason(&chain.settings()).await, Ok(()));
    }
}

#[tokio::test]
async fn what_no_list_covers_is_refused_by_hard_fail_alone() {
    let chain = Chain::new();
    for (what, expected) in [
        ("no list", "revocation_unknown"),
        ("one of two", "revocation_unknown"),
    ] {
        if what == "one of two" {
            chain.crl("intermediate", &list(&chain.intermediate, &[], 2025, 2090));
        }
        assert_eq!(
            chain.reason(&chain.with_crls(CrlPolicy::SoftFail)).await,
            Ok(()),
            "{what}"
        );
        let error = chain
            .judged(&chain.with_crls(CrlPolicy::HardFail))
            .await
            .unwrap_err();
        assert_eq!(error.reason, expected, "{what}");
        assert!(
            error.to_string().contains("upstream.crl_policy is hard_fail"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_expired_list_is_refused_by_hard_fail_and_counts_under_soft_fail() {
    let chain = Chain::new();
    chain.crl("root", &list(&chain.root, &[], 2025, 2090));
    chain.crl("intermediate", &list(&chain.intermediate, &[], 2020, 2021));
    assert_eq!(chain.reason(&chain.with_crls(CrlPolicy::SoftFail)).await, Ok(()));
    let error = chain
        .judged(&chain.with_crls(CrlPolicy::HardFail))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "crl_expired");
    assert!(error.to_string().contains("upstream.crl_dir"), "{error}");
    let client = Client::new(&chain.with_crls(CrlPolicy::SoftFail)).unwrap();
    let trust = client.trust();
    assert!(
        trust.alarms.len() == 1 && trust.alarms[0].contains("intermediate (since 2021-01-01T00:00:00Z)"),
        "{:?}",
        trust.alarms
    );
    assert_eq!(trust.crls.unwrap().count, 2);

    chain.crl("intermediate", &list(&chain.intermediate, &[LEAF], 2020, 2021));
    assert_eq!(
        chain.reason(&chain.with_crls(CrlPolicy::SoftFail)).await,
        Err("revoked")
    );
}

#[tokio::test]
async fn of_two_lists_of_one_authority_the_newer_counts_whatever_their_names() {
    for (newer, older) in [("a", "b"), ("b", "a")] {
        let chain = Chain::new();
        chain.crl(older, &list(&chain.intermediate, &[], 2024, 2090));
        chain.crl(newer, &list(&chain.intermediate, &[LEAF], 2026, 2090));
        assert_eq!(
            chain.reason(&chain.with_crls(CrlPolicy::SoftFail)).await,
            Err("revoked")
        );
    }
}

#[tokio::test]
async fn a_list_that_its_authority_did_not_sign_is_not_believed() {
    let (chain, forger) = (Chain::new(), Chain::new());
    chain.crls(&[], &[]);
    // The same name, another key.
    chain.crl("intermediate", &list(&forger.intermediate, &[LEAF], 2026, 2090));
    let error = chain
        .judged(&chain.with_crls(CrlPolicy::SoftFail))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "revocation_unknown");
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

#[tokio::test]
async fn a_changed_list_counts_at_once_and_no_remembered_session_outlives_it() {
    for version in [&TLS13, &TLS12] {
        let chain = Chain {
            versions: vec![version],
            ..Chain::new()
        };
        chain.crls(&[], &[]);
        let client = Client::new(&chain.with_crls(CrlPolicy::SoftFail)).unwrap();
        let acceptor = chain.acceptor();
        assert!(!chain.meet(&client, &acceptor).await.unwrap().resumed);
        client.refresh().unwrap();
        assert_eq!(client.generation(), 0, "nothing has changed");
        assert!(
            chain.meet(&client, &acceptor).await.unwrap().resumed,
            "{version:?}"
        );
        chain.crls(&[LEAF], &[]);
        // A clone: all of them follow.
        client.clone().refresh().unwrap();
        assert_eq!(client.generation(), 1);
        let error = chain.meet(&client, &acceptor).await.unwrap_err();
        assert_eq!(error.reason, "revoked", "{version:?}");
        chain.crls(&[], &[]);
        client.refresh().unwrap();
        assert!(chain.meet(&client, &acceptor).await.is_ok());
        assert_eq!(client.trust().crls.unwrap().changes, 2);
    }
}

// --- Pins.

fn pin_of(key: &impl PublicKeyData) -> Pin {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.subject_public_key_info());
    Pin(digest.as_ref().try_into().unwrap())
}

const SPARE: Pin = Pin([7; 32]);

#[tokio::test]
async fn a_pin_may_be_the_servers_an_intermediates_or_the_roots() {
    let chain = Chain::new();
    for key in [
        pin_of(&chain.leaf_key),
        pin_of(chain.intermediate.key()),
        pin_of(chain.root.key()),
    ] {
        let settings = Upstream {
            pins: vec![SPARE, key],
            ..chain.settings()
        };
        let client = Client::new(&settings).unwrap();
        let acceptor = chain.acceptor();
        for resumed in [false, true] {
            let negotiated = chain.meet(&client, &acceptor).await.unwrap();
            assert_eq!(
                (negotiated.pin, negotiated.resumed),
                (Some(key.to_string()), resumed)
            );
        }
        assert_eq!(client.trust().alarms, Vec::<String>::new());
        assert_eq!(client.trust().pins, [SPARE.to_string(), key.to_string()]);
    }
}

#[tokio::test]
async fn without_a_pin_in_its_path_a_good_certificate_is_refused() {
    let chain = Chain::new();
    let settings = Upstream {
        pins: vec![SPARE, Pin([8; 32])],
        ..chain.settings()
    };
    let error = chain.judged(&settings).await.unwrap_err();
    assert_eq!(error.reason, "pin_mismatch");
    assert!(error.to_string().contains("upstream.pins"), "{error}");
}

#[tokio::test]
async fn a_pinned_certificate_that_is_only_appended_is_no_pin() {
    let other = Chain::new();
    let chain = Chain {
        appended: vec![other.intermediate.der().clone(), other.root.der().clone()],
        ..Chain::new()
    };
    let settings = Upstream {
        pins: vec![pin_of(other.intermediate.key()), pin_of(other.root.key())],
        ..chain.settings()
    };
    assert_eq!(chain.reason(&settings).await, Err("pin_mismatch"));
}

#[tokio::test]
async fn a_pin_takes_nothing_away_from_the_verification() {
    let (chain, other) = (Chain::new(), Chain::new());
    let settings = Upstream {
        pins: vec![pin_of(&chain.leaf_key), SPARE],
        ..other.settings()
    };
    // Another authority of the same name signed it.
    assert_eq!(chain.reason(&settings).await, Err("bad_certificate"));
    chain.crls(&[LEAF], &[]);
    let settings = Upstream {
        pins: vec![pin_of(&chain.leaf_key), SPARE],
        ..chain.with_crls(CrlPolicy::SoftFail)
    };
    assert_eq!(chain.reason(&settings).await, Err("revoked"));
}

#[tokio::test]
async fn when_every_pin_is_in_use_the_missing_spare_is_told() {
    let chain = Chain::new();
    let settings = Upstream {
        pins: vec![pin_of(&chain.leaf_key), pin_of(chain.root.key())],
        ..chain.settings()
    };
    let client = Client::new(&settings).unwrap();
    chain.meet(&client, &chain.acceptor()).await.unwrap();
    let alarms = client.trust().alarms;
    assert!(alarms.len() == 1 && alarms[0].contains("spare"), "{alarms:?}");
}

// --- Client certificate.

/// Ours, for a gateway.
struct Us {
    dir: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Us {
    fn new(until: i32) -> Self {
        Self::of("clients", until)
    }

    fn of(name: &str, until: i32) -> Self {
        let authority =
            CertifiedIssuer::self_signed(authority(name, 1), KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("us.pem"), certificate.pem()).unwrap();
        secret(&dir.path().join("us.key"), &key.serialize_pem());
        Self { dir, authority }
    }

    fn settings(&self, base: Upstream) -> Upstream {
        Upstream {
            client_certificate_file: Some(self.dir.path().join("us.pem")),
            client_key_file: Some(self.dir.path().join("us.key")),
            ..base
        }
    }
}

fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn a_gateway_that_asks_gets_our_certificate_and_nobody_else_does() {
    let us = Us::new(2090);
    for version in [&TLS13, &TLS12] {
        let mut chain = Chain {
            versions: vec![version],
            ..Chain::new()
        };
        let settings = us.settings(chain.settings());
        assert!(
            !chain.judged(&settings).await.unwrap().client_certificate,
            "not asked for"
        );
        chain.asks = Some(us.authority.der().clone());
        let client = Client::new(&settings).unwrap();
        let acceptor = chain.acceptor();
        for resumed in [false, true] {
            let negotiated = chain.meet(&client, &acceptor).await.unwrap();
            assert!(negotiated.client_certificate, "{version:?}");
            assert_eq!(negotiated.resumed, resumed, "{version:?}");
        }
        let status = client.trust().client_certificate.unwrap();
        assert_eq!(status.not_after, "2090-01-01T00:00:00Z");
        assert_eq!(client.trust().alarms, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_gateway_that_refuses_us_is_told_by_its_alert_also_when_that_comes_late() {
    let (us, strangers) = (Us::new(2090), Us::of("strangers", 2090));
    for version in [&TLS13, &TLS12] {
        let chain = Chain {
            versions: vec![version],
            asks: Some(us.authority.der().clone()),
            ..Chain::new()
        };
        let none = chain.judged(&chain.settings()).await.unwrap_err();
        let foreign = chain
            .judged(&strangers.settings(chain.settings()))
            .await
            .unwrap_err();
        assert!(
            foreign.to_string().contains("upstream.client_certificate_file"),
            "{foreign}"
        );
        assert_eq!(foreign.reason, "client_certificate", "{foreign}");
        // TLS 1.2 knows no alert of its own for it.
        let expected = if *version == TLS13 {
            "client_certificate"
        } else {
            none.reason
        };
        assert_eq!(none.reason, expected, "{none}");
        assert!(none.to_string().contains("alert"), "{none}");
    }
}

#[test]
fn a_client_certificate_that_is_of_no_use_is_an_error_that_names_it() {
    let (us, other) = (Us::new(2090), Us::new(2090));
    let base = upstream(TlsPolicy::Fips, None);
    let refusal = |settings: &Upstream| Client::new(settings).err().unwrap().to_string();

    let mut settings = us.settings(base.clone());
    settings.client_key_file = Some(other.dir.path().join("us.key"));
    let error = refusal(&settings);
    assert!(
        error.contains("upstream.client_key_file") && error.contains("is not the key of"),
        "{error}"
    );

    let key = us.dir.path().join("us.key");
    let text = std::fs::read_to_string(&key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = refusal(&us.settings(base.clone()));
    assert!(error.contains("mode 0644") && error.contains("0600"), "{error}");

    secret(&key, "words");
    let error = refusal(&us.settings(base.clone()));
    assert!(error.contains("no usable private key"), "{error}");
    secret(&key, &text.replace('A', "B"));
    let error = refusal(&us.settings(base.clone()));
    assert!(!error.contains(&text[40..60]), "{error}");

    std::fs::write(us.dir.path().join("us.pem"), "words").unwrap();
    let error = refusal(&us.settings(base));
    assert!(
        error.contains("upstream.client_certificate_file") && error.contains("no PEM certificate"),
        "{error}"
    );
}

#[test]
fn the_end_of_the_client_certificate_is_told_before_it_comes() {
    let us = Us::new(2020);
    let client = Client::new(&us.settings(upstream(TlsPolicy::Fips, None))).unwrap();
    let alarms = client.trust().alarms;
    assert!(
        alarms.len() == 1 && alarms[0].contains("ended on 2020-01-01T00:00:00Z"),
        "{alarms:?}"
    );
}
