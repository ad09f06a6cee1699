//! A local authority in a folder of its own, the server under it, and the roots of who trusts it.

use std::sync::Arc;

use agent_fips_proxy::catalog::Catalog;
use agent_fips_proxy::config::TlsPolicy;
use agent_fips_proxy::tls::Server;
use agent_fips_proxy::tls::ca::store::Wanted;
use agent_fips_proxy::tls::ca::{self, Authorities, Store};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;

/// A new one, as `ca init` makes it.
pub struct Local {
    pub store: Store,
    pub server: Server,
    /// Goes with it.
    pub _folder: TempDir,
}

/// What the Agents here talk to.
pub fn catalog() -> Catalog {
    Catalog::new(&"ddog-gov.com".parse().unwrap())
}

impl Local {
    pub fn new(policy: TlsPolicy) -> Self {
        let domains = catalog().domains();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let wanted = Wanted {
            host: "test",
            domains: &domains,
            days: 365,
            now: ca::now(),
        };
        store.init(&wanted, false).unwrap();
        let (authorities, problem) = Authorities::load(&store.open().unwrap(), &domains, ca::now()).unwrap();
        assert!(problem.is_none());
        Self {
            server: server(policy, authorities),
            store,
            _folder: folder,
        }
    }

    /// Trusts it, and nobody else.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for one in self.store.published().unwrap() {
            roots
                .add(CertificateDer::from_pem_slice(one.pem.as_bytes()).unwrap())
                .unwrap();
        }
        roots
    }
}

/// The server under `authorities`, for names of the catalogue.
pub fn server(policy: TlsPolicy, authorities: Authorities) -> Server {
    let catalog = catalog();
    let accepts = Arc::new(move |name: &str| catalog.lookup(name).is_some());
    Server::new(policy, authorities, accepts).unwrap()
}
