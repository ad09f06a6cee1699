//! The authority's private key: read with a look at who else could have read it, held by the module, never by us.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256,
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData, SigningKey};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use zeroize::{Zeroize, Zeroizing};

use super::error::CaError;
use crate::owner::is_trusted;

/// Bytes of a key file; an RSA key of 4096 bits has some 3300.
const LARGEST: u64 = 64 * 1024;
/// Bytes of the smallest RSA modulus that may sign (SP 800-131A: 2048 bits).
const SMALLEST_RSA: usize = 256;

/// A key that signs certificates. The module owns the secret part and wipes it when it is freed.
pub(super) struct Signer {
    kind: Kind,
    algorithm: &'static rcgen::SignatureAlgorithm,
    public: Vec<u8>,
}

enum Kind {
    Ec(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

impl Signer {
    /// From an open file: whoever opened it need not have read it. The file's own position is not used, so that a
    /// descriptor which several processes share reads the same for each.
    ///
    /// # Errors
    /// A file that others may read or write, or that holds no key of P-256, P-384 or RSA of 2048 bits and more.
    pub(super) fn read(file: &File, path: &Path) -> Result<Self, CaError> {
        private(file, path)?;
        let pem = contents(file, path)?;
        let mut key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| CaError::malformed(path, "it holds no private key (PEM, unencrypted)"))?;
        let signer = Self::of(&key);
        key.zeroize();
        signer.ok_or_else(|| {
            CaError::malformed(
                path,
                "the key is none that may sign here: P-256, P-384, or RSA of 2048 bits and more is needed",
            )
        })
    }

    fn of(key: &PrivateKeyDer<'_>) -> Option<Self> {
        let der = key.secret_der();
        for (curve, algorithm) in [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, &PKCS_ECDSA_P256_SHA256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, &PKCS_ECDSA_P384_SHA384),
        ] {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, der) {
                return Some(Self {
                    public: pair.public_key().as_ref().to_vec(),
                    kind: Kind::Ec(pair),
                    algorithm,
                });
            }
        }
        let pair = rsa::KeyPair::from_pkcs8(der)
            .or_else(|_| rsa::KeyPair::from_der(der))
            .ok()
            .filter(|pair| pair.public_modulus_len() >= SMALLEST_RSA)?;
        Some(Self {
            public: pair.public_key().as_ref().to_vec(),
            kind: Kind::Rsa(pair),
            algorithm: &PKCS_RSA_SHA256,
        })
    }

    /// The public part, as a certificate has it.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = SystemRandom::new();
        match &self.kind {
            Kind::Ec(pair) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| rcgen::Error::RemoteKeyError),
            Kind::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| rcgen::Error::RemoteKeyError)?;
                Ok(signature)
            }
        }
    }
}

/// Nobody but its owner may read or write it, and the owner is root, the master or us.
fn private(file: &File, path: &Path) -> Result<(), CaError> {
    let metadata = file.metadata().map_err(CaError::file("look at", path))?;
    let refuse = |problem: String, cure: String| {
        Err(CaError::Permissions {
            path: path.to_owned(),
            problem,
            cure,
        })
    };
    if !metadata.is_file() {
        return refuse(
            "is not a regular file".to_owned(),
            "the key of the authority must be one".to_owned(),
        );
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return refuse(
            format!("may be read or written by others (mode {mode:04o}), so the key counts as stolen"),
            format!(
                "make another one (`agent-fips-proxy ca init --replace`); if nobody could have read it, `chmod 0600 {}`",
                path.display()
            ),
        );
    }
    if !is_trusted(metadata.uid()) {
        return refuse(
            format!("belongs to the user {}, who can change it", metadata.uid()),
            format!("`chown root {}`", path.display()),
        );
    }
    if metadata.len() > LARGEST {
        return refuse(
            format!("has {} bytes: no key is that large", metadata.len()),
            "name the PEM file of the key".to_owned(),
        );
    }
    Ok(())
}

fn contents(file: &File, path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(LARGEST).unwrap_or(0)]);
    let mut filled = 0;
    loop {
        let room = bytes.get_mut(filled..).unwrap_or_default();
        let read = file
            .read_at(room, filled as u64)
            .map_err(CaError::file("read", path))?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    bytes.truncate(filled);
    Ok(bytes)
}
