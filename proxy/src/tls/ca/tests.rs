//! The folder, the checks, rotation: with real files and real certificates. What other verifiers say is in the suite `ca`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyPair, KeyUsagePurpose, NameConstraints,
};
use tempfile::TempDir;

use super::authority::warning;
use super::store::Wanted;
use super::*;
use crate::catalog::{Catalog, Site};

fn domains() -> Vec<String> {
    Catalog::new(&"ddog-gov.com".parse::<Site>().unwrap()).domains()
}

fn wanted(domains: &[String], days: u16) -> Wanted<'_> {
    Wanted {
        host: "node-1.example.net",
        domains,
        days,
        now: now(),
    }
}

struct Folder {
    _temporary: TempDir,
    store: Store,
}

fn folder() -> Folder {
    let temporary = tempfile::tempdir().unwrap();
    let store = Store::new(&temporary.path().join("state/ca"));
    Folder {
        _temporary: temporary,
        store,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn load(store: &Store, at: i64) -> Result<Authorities, CaError> {
    Authorities::load(&store.open()?, &domains(), at).map(|(authorities, _)| authorities)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_authority_is_what_it_should_be() {
    let folder = folder();
    let facts = folder.store.init(&wanted(&domains(), 365), false).unwrap();
    assert_eq!(facts.permitted, ["ddog-gov.com", "browser-intake-ddog-gov.com"]);
    assert!(facts.excludes_every_ip && facts.valid_at(now()));
    assert!(facts.not_after - facts.not_before <= 365 * DAY);
    assert!((363..=365).contains(&facts.days_left(now())), "{facts:?}");
    assert!(facts.subject.contains("node-1.example.net"), "{facts:?}");
    assert_eq!(facts.serial.len(), 32);
    let dir = folder.store.dir();
    let id = facts.id();
    assert_eq!(mode(dir), 0o755);
    assert_eq!(mode(&folder.store.trust_dir()), 0o755);
    assert_eq!(mode(&dir.join(format!("{id}.key"))), 0o600);
    assert_eq!(mode(&dir.join(format!("{id}.pem"))), 0o644);
    let trusted = names(&folder.store.trust_dir());
    assert_eq!(trusted.len(), 2, "{trusted:?}");
    assert!(trusted.contains(&format!("agent-fips-proxy-{id}.pem")));
    assert!(load(&folder.store, now()).is_ok());
    // The key stands in one file and nowhere else.
    let key = fs::read_to_string(dir.join(format!("{id}.key"))).unwrap();
    let line = key.lines().nth(1).unwrap();
    for name in names(dir).iter().filter(|name| name.ends_with(".pem")) {
        assert!(!fs::read_to_string(dir.join(name)).unwrap().contains(line));
    }
}

#[test]
fn serial_numbers_do_not_repeat() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let serial = make::serial().unwrap();
        assert!((0x40..0x80).contains(&serial[0]));
        assert!(seen.insert(serial));
    }
}

#[test]
fn the_first_authority_is_made_once() {
    let folder = folder();
    assert!(matches!(folder.store.open(), Err(CaError::None(_))));
    let first = folder.store.init(&wanted(&domains(), 365), false).unwrap();
    let again = folder.store.init(&wanted(&domains(), 365), false).unwrap_err();
    assert!(matches!(again, CaError::Exists(_)), "{again}");
    let other = folder.store.init(&wanted(&domains(), 365), true).unwrap();
    assert_ne!(first.fingerprint, other.fingerprint);
    assert_ne!(first.subject, other.subject);
    // Nothing of the first is left, its key least of all.
    let everything = [names(folder.store.dir()), names(&folder.store.trust_dir())].concat();
    assert!(
        !everything.iter().any(|name| name.contains(first.id())),
        "{everything:?}"
    );
}

#[test]
fn a_key_that_others_may_read_or_write_is_refused() {
    for bad in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666] {
        let folder = folder();
        let facts = folder.store.init(&wanted(&domains(), 365), false).unwrap();
        let key = folder.store.dir().join(format!("{}.key", facts.id()));
        fs::set_permissions(&key, Permissions::from_mode(bad)).unwrap();
        let error = load(&folder.store, now()).unwrap_err().to_string();
        assert!(
            error.contains(&key.display().to_string()) && error.contains(&format!("{bad:04o}")),
            "{error}"
        );
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        assert!(load(&folder.store, now()).is_ok());
    }
}

#[test]
fn a_folder_that_others_may_write_is_refused() {
    let folder = folder();
    folder.store.init(&wanted(&domains(), 365), false).unwrap();
    fs::set_permissions(folder.store.dir(), Permissions::from_mode(0o775)).unwrap();
    let error = load(&folder.store, now()).unwrap_err().to_string();
    assert!(error.contains("may be written by others"), "{error}");
    assert!(folder.store.rotate(&wanted(&domains(), 365)).is_err());
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (one, other) = (folder(), folder());
    let a = one.store.init(&wanted(&domains(), 365), false).unwrap();
    let b = other.store.init(&wanted(&domains(), 365), false).unwrap();
    fs::copy(
        other.store.dir().join(format!("{}.key", b.id())),
        one.store.dir().join(format!("{}.key", a.id())),
    )
    .unwrap();
    let error = load(&one.store, now()).unwrap_err().to_string();
    assert!(
        error.contains("is not its key") && error.contains("ca init --replace"),
        "{error}"
    );
}

#[test]
fn time_is_judged() {
    let folder = folder();
    let facts = folder.store.init(&wanted(&domains(), 30), false).unwrap();
    for (at, word) in [
        (facts.not_after + 1, "expired"),
        (facts.not_before - 1, "not valid before"),
    ] {
        let error = load(&folder.store, at).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(load(&folder.store, facts.not_after).is_ok());
}

#[test]
fn another_site_is_not_covered() {
    let folder = folder();
    folder.store.init(&wanted(&domains(), 365), false).unwrap();
    let open = folder.store.open().unwrap();
    let others = Catalog::new(&"datadoghq.eu".parse::<Site>().unwrap()).domains();
    let error = Authorities::load(&open, &others, now()).unwrap_err().to_string();
    assert!(
        error.contains("ddog-gov.com") && error.contains("ca init --replace"),
        "{error}"
    );
    // Narrower than the configured site: an Agent's data would find no certificate.
    let error = Authorities::load(
        &open,
        &[domains(), vec!["third.example".to_owned()]].concat(),
        now(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("does not cover") && error.contains("third.example"),
        "{error}"
    );
}

/// A certificate that an operator might supply, changed by `change`.
fn supplied(folder: &Path, change: impl FnOnce(&mut CertificateParams)) -> Result<Authority, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "operator");
    params.not_before = make::date(now() - DAY).unwrap();
    params.not_after = make::date(now() + 100 * DAY).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: domains().into_iter().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: no_ips(),
    });
    change(&mut params);
    let pair = KeyPair::generate().unwrap();
    let certificate = folder.join("operator.pem");
    let key = folder.join("operator.key");
    fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let open = OpenAuthority::supplied(&certificate, &key)?;
    Authority::load(&open, &domains(), now())
}

fn no_ips() -> Vec<GeneralSubtree> {
    vec![
        GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
        GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
    ]
}

fn constrain(params: &mut CertificateParams, permitted: &[&str], excluded: Vec<GeneralSubtree>) {
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted
            .iter()
            .map(|name| GeneralSubtree::DnsName((*name).to_owned()))
            .collect(),
        excluded_subtrees: excluded,
    });
}

type Change = fn(&mut CertificateParams);

#[test]
fn a_supplied_authority_goes_through_the_same_checks() {
    let temporary = tempfile::tempdir().unwrap();
    let good = supplied(temporary.path(), |_| {}).unwrap();
    assert_eq!(good.role(), Role::Supplied);
    let table: [(Change, &str); 13] = [
        (|p| p.name_constraints = None, "no name constraints"),
        (
            |p| {
                constrain(
                    p,
                    &["ddog-gov.com", "browser-intake-ddog-gov.com", "example.net"],
                    no_ips(),
                );
            },
            "`example.net`, which is wider",
        ),
        (|p| constrain(p, &["com"], no_ips()), "`com`, which is wider"),
        (|p| constrain(p, &[""], no_ips()), "``, which is wider"),
        (|p| constrain(p, &[], no_ips()), "permit every DNS name"),
        (
            |p| constrain(p, &["ddog-gov.com"], no_ips()),
            "may not sign for browser-intake-ddog-gov.com",
        ),
        (
            |p| constrain(p, &["ddog-gov.com", "browser-intake-ddog-gov.com"], vec![]),
            "may sign for IP addresses",
        ),
        (
            |p| {
                constrain(
                    p,
                    &["ddog-gov.com", "browser-intake-ddog-gov.com"],
                    no_ips().into_iter().take(1).collect(),
                );
            },
            "may sign for IP addresses",
        ),
        (
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "path length is not 0",
        ),
        (
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
            "path length is not 0",
        ),
        (
            |p| p.is_ca = IsCa::ExplicitNoCa,
            "not the certificate of an authority",
        ),
        (
            |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
            "keyCertSign",
        ),
        (
            |p| {
                p.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
            },
            "not server authentication alone",
        ),
    ];
    for (change, word) in table {
        let error = supplied(temporary.path(), change).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
        assert!(error.contains("operator.pem"), "{error}");
    }
}

#[test]
fn files_that_are_no_authority_are_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let (certificate, key) = (temporary.path().join("c"), temporary.path().join("k"));
    fs::write(
        &key,
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    for text in [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        fs::write(&certificate, text).unwrap();
        let open = OpenAuthority::supplied(&certificate, &key).unwrap();
        let error = Authority::load(&open, &domains(), now()).unwrap_err().to_string();
        assert!(error.contains(&certificate.display().to_string()), "{error}");
    }
    let error = OpenAuthority::supplied(&temporary.path().join("none"), &key)
        .unwrap_err()
        .to_string();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn rotation_overlaps() {
    let folder = folder();
    let store = &folder.store;
    let first = store.init(&wanted(&domains(), 365), false).unwrap();
    assert!(matches!(store.finish(), Err(CaError::Rotation(_))));
    let second = store.rotate(&wanted(&domains(), 365)).unwrap();
    let trusted = names(&store.trust_dir()).join(" ");
    assert!(
        trusted.contains(first.id()) && trusted.contains(second.id()),
        "{trusted}"
    );
    assert!(matches!(
        store.rotate(&wanted(&domains(), 365)),
        Err(CaError::Rotation(_))
    ));
    // The first one signs until its last hour: Agents that did not restart trust nothing else.
    let authorities = load(store, now()).unwrap();
    let signing = |at| authorities.signing(at).map(|a| a.facts().fingerprint.clone());
    assert_eq!(signing(now()), Some(first.fingerprint.clone()));
    assert_eq!(signing(first.not_after - 3601), Some(first.fingerprint.clone()));
    assert_eq!(signing(first.not_after - 3599), Some(second.fingerprint.clone()));
    assert_eq!(signing(second.not_after + 1), None);
    let current = store.finish().unwrap();
    assert_eq!(current, second);
    let everything = [names(store.dir()), names(&store.trust_dir())].concat().join(" ");
    assert!(!everything.contains(first.id()), "{everything}");
    assert!(load(store, now()).is_ok());
}

#[test]
fn a_next_authority_that_is_unfit_does_not_stop_the_current_one() {
    let folder = folder();
    let store = &folder.store;
    store.init(&wanted(&domains(), 365), false).unwrap();
    let next = store.rotate(&wanted(&domains(), 365)).unwrap();
    let key = store.dir().join(format!("{}.key", next.id()));
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let (authorities, problem) = Authorities::load(&store.open().unwrap(), &domains(), now()).unwrap();
    assert!(problem.unwrap().to_string().contains(next.id()));
    assert!(authorities.status(now()).next.is_none());
}

#[test]
fn a_current_authority_that_ended_gives_way_to_the_next() {
    let folder = folder();
    let store = &folder.store;
    let first = store.init(&wanted(&domains(), 10), false).unwrap();
    let second = store.rotate(&wanted(&domains(), 365)).unwrap();
    let (authorities, problem) =
        Authorities::load(&store.open().unwrap(), &domains(), first.not_after + DAY).unwrap();
    assert!(problem.unwrap().to_string().contains("expired"));
    assert_eq!(authorities.status(first.not_after + DAY).current, second);
}

#[test]
fn the_last_thirty_days_are_announced() {
    let folder = folder();
    let facts = folder.store.init(&wanted(&domains(), 365), false).unwrap();
    let said = |days: i64, next| warning(Role::Current, &facts, next, facts.not_after - days * DAY);
    assert_eq!(said(31, None), None);
    assert_eq!(said(30, None), None);
    assert!(said(29, None).unwrap().contains("ca rotate`"));
    assert!(said(1, Some(&facts)).unwrap().contains("--finish"));
    assert!(said(-2, None).unwrap().contains("ended at"));
}

#[test]
fn a_command_that_died_in_the_middle_leaves_nothing_behind() {
    let folder = folder();
    let store = &folder.store;
    store.init(&wanted(&domains(), 365), false).unwrap();
    // A key and a certificate that no state names, and a file that was being written.
    for name in ["0123456789abcdef.key", "0123456789abcdef.pem"] {
        fs::write(store.dir().join(name), "x").unwrap();
    }
    fs::write(store.dir().join(".state.json.new"), "half").unwrap();
    fs::write(store.dir().join("notes.txt"), "the operator's").unwrap();
    fs::write(store.trust_dir().join("company.pem"), "the operator's").unwrap();
    store.rotate(&wanted(&domains(), 365)).unwrap();
    let left = names(store.dir()).join(" ");
    assert!(
        !left.contains("0123456789abcdef") && !left.contains(".new"),
        "{left}"
    );
    assert!(left.contains("notes.txt"), "{left}");
    assert!(store.trust_dir().join("company.pem").exists());
}

#[test]
fn two_commands_do_not_write_at_once() {
    let folder = folder();
    folder.store.init(&wanted(&domains(), 365), false).unwrap();
    let results: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| folder.store.rotate(&wanted(&domains(), 365)).is_ok()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|good| **good).count(), 1, "{results:?}");
    assert!(load(&folder.store, now()).unwrap().status(now()).next.is_some());
}

#[test]
fn a_damaged_state_is_told_and_not_guessed() {
    let folder = folder();
    folder.store.init(&wanted(&domains(), 365), false).unwrap();
    for text in [
        "",
        "{}",
        r#"{"version":2,"current":{"id":"0123456789abcdef","published":1},"next":null}"#,
        r#"{"version":1,"current":{"id":"../../etc/passwd","published":1},"next":null}"#,
    ] {
        fs::write(folder.store.dir().join("state.json"), text).unwrap();
        let error = load(&folder.store, now()).unwrap_err().to_string();
        assert!(
            error.contains("state.json") && error.contains("ca init --replace"),
            "{error}"
        );
    }
    assert!(folder.store.init(&wanted(&domains(), 365), false).is_err());
    assert!(folder.store.init(&wanted(&domains(), 365), true).is_ok());
}
