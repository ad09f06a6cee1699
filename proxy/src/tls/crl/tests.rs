//! What is in a folder, and what becomes of it over time.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A list of `year`, good until the beginning of `until`.
    fn list(&self, year: i32, until: i32) -> rcgen::CertificateRevocationList {
        CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(u64::try_from(year).unwrap()),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        }
        .signed_by(&self.0)
        .unwrap()
    }
}

/// 2030-01-01
const IN_2030: u64 = 1_893_456_000;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    // Another inode each time, as whoever replaces a file in one step does.
    let new = dir.join(".new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, dir.join(name)).unwrap();
}

#[test]
fn both_encodings_are_read_and_of_one_issuers_lists_the_newest_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::named("a"), Authority::named("b"));
    // The old one is expired: replaced, it is no reason for an alarm.
    let (old, new) = (authority.list(2024, 2025), authority.list(2026, 2033));
    let other = stranger.list(2025, 2032);
    write(dir.path(), "a.der", old.der());
    write(
        dir.path(),
        "b.pem",
        [other.pem().unwrap(), new.pem().unwrap()].concat(),
    );
    write(dir.path(), ".hidden", "not a list");
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    let mut crls = Crls::load(dir.path(), CrlPolicy::HardFail).unwrap();
    let ders = |crls: &Crls| crls.in_use().iter().map(|der| der.to_vec()).collect::<Vec<_>>();
    assert_eq!(ders(&crls), [new.der().to_vec(), other.der().to_vec()]);
    let status = crls.status(IN_2030);
    assert_eq!(
        (status.count, status.next_update.as_deref()),
        (2, Some("2032-01-01T00:00:00Z"))
    );
    assert_eq!((&status.problems, &status.expired), (&vec![], &vec![]));
    assert_eq!(status.alarms().count(), 0);

    // The new one is taken away: the old one counts again, and is told.
    std::fs::remove_file(dir.path().join("b.pem")).unwrap();
    assert!(crls.refresh());
    assert_eq!(ders(&crls), [old.der().to_vec()]);
    assert_eq!(crls.status(IN_2030).alarms().count(), 1);
}

#[test]
fn expired_and_missing_lists_are_alarms_that_say_what_they_mean() {
    let dir = tempfile::tempdir().unwrap();
    for (policy, none, expired) in [
        (CrlPolicy::SoftFail, "nothing is checked", "soft_fail"),
        (CrlPolicy::HardFail, "every intake is refused", "hard_fail"),
    ] {
        let mut crls = Crls::load(dir.path(), policy).unwrap();
        let alarms: Vec<_> = crls.status(IN_2030).alarms().collect();
        assert!(alarms.len() == 1 && alarms[0].contains(none), "{alarms:?}");
        write(dir.path(), "a.crl", Authority::new().list(2024, 2029).der());
        assert!(crls.refresh());
        let status = crls.status(IN_2030);
        assert_eq!((status.count, status.changes), (1, 1));
        let alarms: Vec<_> = status.alarms().collect();
        assert!(
            alarms.len() == 1
                && alarms[0].contains(expired)
                && alarms[0].contains("a.crl (since 2029-01-01T00:00:00Z)"),
            "{alarms:?}"
        );
        std::fs::remove_file(dir.path().join("a.crl")).unwrap();
        assert!(crls.refresh(), "what is taken away is no longer in use");
        assert_eq!(crls.status(IN_2030).count, 0);
    }
}

#[test]
fn what_is_no_list_is_told_and_what_it_was_before_stays_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let list = authority.list(2026, 2033);
    let key = KeyPair::generate().unwrap().serialize_pem();
    let cut = &list.der()[..list.der().len() / 2];
    write(dir.path(), "good", list.der());
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("words", b"these are words"),
        ("key", key.as_bytes()),
        ("cut", cut),
        ("certificate", authority.0.der()),
        (
            "base64",
            b"-----BEGIN X509 CRL-----\nnot base64!\n-----END X509 CRL-----\n",
        ),
    ] {
        write(dir.path(), name, bytes);
    }
    let mut crls = Crls::load(dir.path(), CrlPolicy::SoftFail).unwrap();
    let status = crls.status(IN_2030);
    assert_eq!(
        (status.count, status.problems.len()),
        (1, 6),
        "{:?}",
        status.problems
    );
    assert!(
        !format!("{status:?}").contains(&key[40..60]),
        "a key that lies there by mistake"
    );

    // Half written.
    write(dir.path(), "good", cut);
    assert!(!crls.refresh());
    let status = crls.status(IN_2030);
    assert_eq!(status.count, 1);
    assert!(
        status
            .problems
            .iter()
            .any(|problem| problem.contains("good") && problem.contains("stays in use")),
        "{:?}",
        status.problems
    );
    // Whole again, and the same: nothing has changed, and nothing is wrong any more.
    write(dir.path(), "good", list.der());
    assert!(!crls.refresh());
    assert_eq!(crls.status(IN_2030).problems.len(), 6);
    // Another one.
    write(dir.path(), "good", authority.list(2027, 2034).der());
    assert!(crls.refresh() && !crls.refresh());
}

#[test]
fn a_folder_that_goes_away_takes_nothing_with_it() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("crls");
    assert!(matches!(
        Crls::load(&dir, CrlPolicy::HardFail),
        Err(ConfigError::CrlDir { .. })
    ));
    std::fs::create_dir(&dir).unwrap();
    write(&dir, "a", Authority::new().list(2026, 2033).der());
    let mut crls = Crls::load(&dir, CrlPolicy::HardFail).unwrap();
    std::fs::rename(&dir, outer.path().join("elsewhere")).unwrap();
    assert!(!crls.refresh());
    let status = crls.status(IN_2030);
    assert_eq!(
        (status.count, status.problems.len()),
        (1, 1),
        "{:?}",
        status.problems
    );
    std::fs::rename(outer.path().join("elsewhere"), &dir).unwrap();
    assert!(!crls.refresh());
    assert_eq!(crls.status(IN_2030).problems.len(), 0);
}

/// A remembered session is not verified again, so it must not outlive the list that it was verified with.
#[test]
fn when_a_list_expires_under_hard_fail_sessions_begin_anew() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("crls");
    std::fs::create_dir(&dir).unwrap();
    let authority = Authority::new();
    std::fs::write(outer.path().join("ca.pem"), authority.0.pem()).unwrap();
    write(&dir, "a", authority.list(2026, 2090).der());
    for (policy, expected) in [
        (CrlPolicy::HardFail, [0, 1, 1, 2]),
        (CrlPolicy::SoftFail, [0, 0, 0, 0]),
    ] {
        let client = crate::tls::Client::new(&crate::config::Upstream {
            ca_file: Some(outer.path().join("ca.pem")),
            crl_dir: Some(dir.clone()),
            crl_policy: policy,
            ..crate::config::Config::default().upstream
        })
        .unwrap();
        // 2090-01-01 is 3786912000.
        let generations = [IN_2030, 3_786_912_000, 3_786_912_005, IN_2030].map(|now| {
            client.refresh_at(now).unwrap();
            client.generation()
        });
        assert_eq!(generations, expected, "{policy:?}");
    }
}
