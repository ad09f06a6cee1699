//! An authority that was read, checked and may sign; which of two signs; and what it signs.

use std::fs::File;
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use super::certificate::{Certificate, Facts};
use super::check;
use super::error::CaError;
use super::key::Signer;
use super::make::{BACKDATE, ORGANISATION, date, serial};
use super::open::{OpenAuthority, Role};
use super::{WARN_DAYS, moment};

/// From its making to its end, in seconds: with the back-dated hour a leaf lives for 48 h, the most that is asked for.
const LEAF_LIFE: i64 = 47 * 3600;
/// Two authorities are there and the older one ends so soon: the newer one signs, whoever trusts it. In seconds; clocks of
/// one host do not differ, those of a virtual machine that was asleep may for a moment.
const LAST_HOUR: i64 = 3600;

/// A leaf.
pub(crate) struct Leaf {
    /// The leaf, and the authorities between it and the root that is trusted.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// First second, since 1970.
    pub(crate) not_before: i64,
    /// Last second, since 1970.
    pub(crate) not_after: i64,
}

/// A checked authority and its key.
pub struct Authority {
    role: Role,
    facts: Facts,
    path: PathBuf,
    issuer: Issuer<'static, Signer>,
    /// What a client must be sent besides the leaf: nothing for an authority that signed itself.
    chain: Vec<CertificateDer<'static>>,
    der: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("path", &self.path)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads both files and refuses what must not sign: a key that others may read or write, a certificate without
    /// constraints, with wider ones, or without some of `domains`, one that is not valid at `now`, a key of another
    /// certificate. Then a leaf is signed and judged as a client would: accepted for an intake name, refused for another
    /// and for an address.
    ///
    /// # Errors
    /// [`CaError`], each with the file, the reason and the command that helps.
    pub fn load(open: &OpenAuthority, domains: &[String], now: i64) -> Result<Self, CaError> {
        let path = &open.certificate_path;
        let origin = open.role.origin();
        let pem = read(&open.certificate, path)?;
        let mut found = Certificate::read_pem(&pem)
            .map_err(|problem| CaError::malformed(path, problem))?
            .into_iter();
        let Some(own) = found.next() else {
            return Err(CaError::malformed(path, "it holds no certificate"));
        };
        check::check(path, origin, &own, domains, now)?;
        let signer = Signer::read(&open.key, &open.key_path)?;
        if signer.public() != own.public_key {
            return Err(CaError::unfit(
                path,
                format!("the key of {} is not its key", open.key_path.display()),
                origin.cure(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&own.der, signer)
            .map_err(CaError::crypto("read the certificate of an authority"))?;
        // What stands above an issuing authority goes along, except the root: a client has that or does not trust us.
        let above = found.filter(|other| !other.self_signed).map(|other| other.der);
        let chain = if own.self_signed {
            Vec::new()
        } else {
            std::iter::once(own.der.clone()).chain(above).collect()
        };
        let authority = Self {
            role: open.role,
            facts: own.facts,
            path: path.clone(),
            issuer,
            chain,
            der: own.der,
        };
        authority.prove(domains, now)?;
        Ok(authority)
    }

    /// Which one it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// What its certificate says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Signs a leaf for one name with this public key, at `now`. It ends with the authority at the latest.
    pub(crate) fn mint(&self, name: &str, key: &impl PublicKeyData, now: i64) -> Result<Leaf, CaError> {
        let name = rcgen::string::Ia5String::try_from(name).map_err(CaError::crypto("write a DNS name"))?;
        self.sign(SanType::DnsName(name), key, now)
    }

    fn sign(&self, name: SanType, key: &impl PublicKeyData, now: i64) -> Result<Leaf, CaError> {
        let not_before = (now - BACKDATE).max(self.facts.not_before);
        let not_after = (now + LEAF_LIFE).min(self.facts.not_after);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, ORGANISATION);
        params.subject_alt_names = vec![name];
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        params.not_before = date(not_before)?;
        params.not_after = date(not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(key, &self.issuer)
            .map_err(CaError::crypto("sign a leaf certificate"))?;
        Ok(Leaf {
            chain: std::iter::once(leaf.der().clone())
                .chain(self.chain.iter().cloned())
                .collect(),
            not_before,
            not_after,
        })
    }

    /// The constraints at work, and not only on paper: our own verifier judges leaves of this authority.
    fn prove(&self, domains: &[String], now: i64) -> Result<(), CaError> {
        let key = super::make::throwaway_key()?;
        let refused = |problem: String| CaError::unfit(&self.path, problem, self.role.origin().cure());
        for domain in domains {
            let leaf = self.mint(domain, &key, now)?;
            self.judge(&leaf, domain, now).map_err(|error| {
                refused(format!(
                    "a certificate that it signed for {domain} does not verify: {error}"
                ))
            })?;
        }
        // RFC 2606 names and RFC 5737 addresses: nobody's.
        let foreign = self.mint("www.example.net", &key, now)?;
        let address = self.sign(
            SanType::IpAddress(std::net::Ipv4Addr::new(192, 0, 2, 1).into()),
            &key,
            now,
        )?;
        for (leaf, name) in [(foreign, "www.example.net"), (address, "192.0.2.1")] {
            if self.judge(&leaf, name, now).is_ok() {
                return Err(refused(format!(
                    "a certificate that it signed for {name} is accepted: its name constraints do not hold"
                )));
            }
        }
        Ok(())
    }

    /// As a client that trusts this authority.
    fn judge(&self, leaf: &Leaf, name: &str, now: i64) -> Result<(), String> {
        let text = |error: webpki::Error| error.to_string();
        let anchor = webpki::anchor_from_trusted_cert(&self.der).map_err(text)?;
        let first = leaf.chain.first().ok_or("no certificate")?;
        let end_entity = webpki::EndEntityCert::try_from(first).map_err(text)?;
        let seconds = u64::try_from(now).map_err(|error| error.to_string())?;
        end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                &[],
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(text)?;
        let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
        end_entity.verify_is_valid_for_subject_name(&name).map_err(text)
    }
}

/// The authority that Agents trust, and the next one while it is being rolled out.
#[derive(Debug)]
pub struct Authorities {
    current: Authority,
    next: Option<Authority>,
}

/// What `status`, the metrics and the log say about the authorities of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthoritiesStatus {
    /// The one that Agents trust.
    pub current: Facts,
    /// The one that is being rolled out.
    pub next: Option<Facts>,
    /// Which one signs now; `None`: both have ended.
    pub signing: Option<Role>,
    /// What to do about it soon, in words.
    pub warning: Option<String>,
}

impl Authorities {
    /// From what the master (or a command) opened. The next one may be unfit for a moment without stopping the current
    /// one: the reason is returned beside it.
    ///
    /// # Errors
    /// The current one is unfit, or there is none.
    pub fn load(
        open: &[OpenAuthority],
        domains: &[String],
        now: i64,
    ) -> Result<(Self, Option<CaError>), CaError> {
        let mut current = None;
        let mut next = None;
        let mut problem = None;
        for one in open {
            match (one.role, Authority::load(one, domains, now)) {
                (Role::Next, Ok(authority)) => next = Some(authority),
                (Role::Next, Err(error)) => problem = Some(error),
                (Role::Current | Role::Supplied, result) => current = Some(result),
            }
        }
        match (current, next) {
            (Some(Ok(current)), next) => Ok((Self { current, next }, problem)),
            // It ended before its successor took over: better late than no intake at all.
            (Some(Err(error)), Some(next)) => Ok((
                Self {
                    current: next,
                    next: None,
                },
                Some(error),
            )),
            (Some(Err(error)), None) => Err(error),
            (None, _) => Err(problem.unwrap_or_else(|| CaError::None(PathBuf::new()))),
        }
    }

    /// The one that signs at `now`. Agents read their roots once, when they start: time alone does not tell when all of
    /// them know the next one. So the current one signs until `ca rotate --finish` makes the next one current, and only in
    /// its last hour, when it has nothing to lose any more, the next one takes over by itself. `None`: both have ended.
    pub(crate) fn signing(&self, now: i64) -> Option<&Authority> {
        let current = &self.current;
        match &self.next {
            Some(next) if now + LAST_HOUR > current.facts.not_after && next.facts.valid_at(now) => Some(next),
            _ => current.facts.valid_at(now).then_some(current),
        }
    }

    /// For people and machines, at `now`.
    pub fn status(&self, now: i64) -> AuthoritiesStatus {
        AuthoritiesStatus {
            current: self.current.facts.clone(),
            next: self.next.as_ref().map(|next| next.facts.clone()),
            signing: self.signing(now).map(Authority::role),
            warning: warning(
                self.current.role,
                &self.current.facts,
                self.next.as_ref().map(|next| &next.facts),
                now,
            ),
        }
    }
}

/// What to do about an authority that ends soon; nothing for one that does not.
pub fn warning(role: Role, current: &Facts, next: Option<&Facts>, now: i64) -> Option<String> {
    let left = current.days_left(now);
    if left >= WARN_DAYS {
        return None;
    }
    let ends = if left < 0 {
        format!("the local authority ended at {}", moment(current.not_after))
    } else {
        format!(
            "the local authority ends in {left} days, at {}",
            moment(current.not_after)
        )
    };
    let cure = match (role, next) {
        (Role::Supplied, _) => {
            "put another certificate and key into ca.certificate_file and ca.key_file, and reload"
        }
        (_, None) => {
            "run `agent-fips-proxy ca rotate`, restart the Agents within that time, then `ca rotate --finish`"
        }
        (_, Some(_)) => {
            "the next one is published: restart the Agents that have not been since (`agent-fips-proxy ca show` names \
             them), then `agent-fips-proxy ca rotate --finish`"
        }
    };
    Some(format!("{ends}: {cure}"))
}

/// The text of a certificate file; public, so without the precautions for a key.
fn read(mut file: &File, path: &Path) -> Result<Vec<u8>, CaError> {
    use std::io::{Read, Seek};
    /// Bytes: a chain of three has some 6 KiB.
    const LARGEST: u64 = 256 * 1024;
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(LARGEST).read_to_end(&mut bytes))
        .map_err(CaError::file("read", path))?;
    Ok(bytes)
}
