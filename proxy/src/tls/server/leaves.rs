//! Leaf certificates: minted when a name is first asked for, kept while they are young, one key for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize;

use crate::catalog::normalise;
use crate::tls::ca::{Authorities, CaError, now};

/// Names that are remembered; the catalogue has some seventy, and patterns such as `<version>-app.agent` that local
/// processes could fill it with. The oldest goes first.
pub(super) const MOST: usize = 256;

/// Says whether a name (lower case, no trailing dot) is one that we answer for.
pub type Accepts = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Why there is no leaf for a name.
#[derive(Debug)]
pub(super) enum NoLeaf {
    /// It is no name of ours.
    NotOurs,
    /// Every authority has ended.
    Ended,
    /// The module or the library failed.
    Failed(CaError),
}

/// Mints and remembers.
pub(super) struct Leaves {
    authorities: Authorities,
    accepts: Accepts,
    key: Arc<dyn SigningKey>,
    public: Point,
    remembered: Mutex<HashMap<String, Minted>>,
}

#[derive(Clone)]
struct Minted {
    key: Arc<CertifiedKey>,
    /// When it may be used, in seconds since 1970: until its half life.
    from: i64,
    until: i64,
}

/// The public half of the leaves' key.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Leaves {
    /// With a new key, which this process alone has and which ends with it.
    pub(super) fn new(authorities: Authorities, accepts: Accepts) -> Result<Self, CaError> {
        let failed = |problem: String| CaError::Crypto {
            what: "make the key of leaf certificates",
            problem,
        };
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|error| failed(error.to_string()))?;
        let document = pair.to_pkcs8v1().map_err(|error| failed(error.to_string()))?;
        let mut der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(document.as_ref().to_vec()));
        let key = any_ecdsa_type(&der);
        der.zeroize();
        Ok(Self {
            authorities,
            accepts,
            key: key.map_err(|error| failed(error.to_string()))?,
            public: Point(pair.public_key().as_ref().to_vec()),
            remembered: Mutex::default(),
        })
    }

    pub(super) fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// The certificate for `name`, minted when there is no young one. Nothing is minted for a name that is not ours.
    pub(super) fn of(&self, name: &str, now: i64) -> Result<Arc<CertifiedKey>, NoLeaf> {
        let name = normalise(name);
        if !(self.accepts)(&name) {
            return Err(NoLeaf::NotOurs);
        }
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes a leaf one of the future: it is minted again, too.
        if let Some(minted) = remembered.get(&name)
            && (minted.from..minted.until).contains(&now)
        {
            return Ok(Arc::clone(&minted.key));
        }
        let authority = self.authorities.signing(now).ok_or(NoLeaf::Ended)?;
        let leaf = authority.mint(&name, &self.public, now).map_err(NoLeaf::Failed)?;
        if remembered.len() >= MOST && !remembered.contains_key(&name) {
            let oldest = remembered
                .iter()
                .min_by_key(|(_, minted)| minted.until)
                .map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                remembered.remove(&oldest);
            }
        }
        let key = Arc::new(CertifiedKey::new(leaf.chain, Arc::clone(&self.key)));
        let minted = Minted {
            key: Arc::clone(&key),
            from: leaf.not_before,
            until: now + (leaf.not_after - now) / 2,
        };
        remembered.insert(name, minted);
        Ok(key)
    }

    /// How many names are remembered.
    pub(super) fn len(&self) -> usize {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl std::fmt::Debug for Leaves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaves")
            .field("authorities", &self.authorities)
            .field("remembered", &self.len())
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(hello.server_name()?, now()).ok()
    }
}

#[cfg(test)]
mod tests;
