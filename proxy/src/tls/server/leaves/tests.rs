//! When a leaf is minted again, and by which authority.

use rustls_pki_types::CertificateDer;
use tempfile::TempDir;

use super::*;
use crate::catalog::{Catalog, Site};
use crate::tls::ca::store::Wanted;
use crate::tls::ca::{DAY, Store};

const NAME: &str = "trace.agent.ddog-gov.com";

struct World {
    _folder: TempDir,
    store: Store,
    domains: Vec<String>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let domains = Catalog::new(&"ddog-gov.com".parse::<Site>().unwrap()).domains();
        let world = Self {
            _folder: folder,
            store,
            domains,
        };
        world.store.init(&world.wanted(100), false).unwrap();
        world
    }

    fn wanted(&self, days: u16) -> Wanted<'_> {
        Wanted {
            host: "test",
            domains: &self.domains,
            days,
            now: now(),
        }
    }

    fn leaves(&self) -> Leaves {
        let (authorities, problem) =
            Authorities::load(&self.store.open().unwrap(), &self.domains, now()).unwrap();
        assert!(problem.is_none());
        Leaves::new(
            authorities,
            Arc::new(|name: &str| name.ends_with(".ddog-gov.com")),
        )
        .unwrap()
    }
}

fn issuer(key: &CertifiedKey) -> String {
    let leaf: &CertificateDer<'_> = &key.cert[0];
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
    leaf.issuer().to_string()
}

fn end(key: &CertifiedKey) -> i64 {
    let (_, leaf) = x509_parser::parse_x509_certificate(&key.cert[0]).unwrap();
    leaf.validity().not_after.timestamp()
}

#[test]
fn a_leaf_is_used_until_its_half_life_and_never_before_its_time() {
    let world = World::new();
    let leaves = world.leaves();
    let start = now();
    let first = leaves.of(NAME, start).unwrap();
    let half = (end(&first) - start) / 2;
    assert!((23 * 3600..24 * 3600).contains(&half), "{half}");
    assert!(Arc::ptr_eq(&first, &leaves.of(NAME, start + half - 1).unwrap()));
    // Upper case and a trailing dot are the same name.
    assert!(Arc::ptr_eq(
        &first,
        &leaves.of("Trace.Agent.ddog-gov.com.", start).unwrap()
    ));
    let second = leaves.of(NAME, start + half + 1).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    // The clock was set back to before the second one's beginning.
    let third = leaves.of(NAME, start + half + 1 - 3 * 3600).unwrap();
    assert!(!Arc::ptr_eq(&second, &third));
    assert_eq!(leaves.len(), 1);
}

#[test]
fn no_leaf_outlives_its_authority() {
    let world = World::new();
    let leaves = world.leaves();
    let ends = world.store.published().unwrap()[0].facts.not_after;
    let last = leaves.of(NAME, ends - 7200).unwrap();
    assert_eq!(end(&last), ends);
    assert!(matches!(leaves.of(NAME, ends + 1), Err(NoLeaf::Ended)));
    assert!(matches!(
        leaves.of("www.example.net", now()),
        Err(NoLeaf::NotOurs)
    ));
}

#[test]
fn the_next_authority_signs_when_the_first_one_is_at_its_end() {
    let world = World::new();
    world.store.rotate(&world.wanted(300)).unwrap();
    let published = world.store.published().unwrap();
    let (first, second) = (&published[0].facts, &published[1].facts);
    let leaves = world.leaves();
    assert_eq!(issuer(&leaves.of(NAME, now()).unwrap()), first.subject);
    let late = first.not_after - 60;
    assert_eq!(issuer(&leaves.of(NAME, late).unwrap()), second.subject);
    assert_eq!(issuer(&leaves.of(NAME, late + 30 * DAY).unwrap()), second.subject);
}
