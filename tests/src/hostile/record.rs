//! Records that no library sends: sealed with the keys of a real session (RFC 8446 section 5.2, RFC 5288 section 3).

use anyhow::{Context, Result, bail};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, ServerConnection};

/// The content type of what is no alert and no handshake.
pub(super) const APPLICATION_DATA: u8 = 23;

/// Seals what a server writes.
pub(super) struct Sealer {
    key: LessSafeKey,
    iv: [u8; 12],
    number: u64,
    tls13: bool,
}

impl Sealer {
    /// Takes a session over: from now on its records are made here.
    pub(super) fn new(session: ServerConnection) -> Result<Self> {
        let tls13 = session.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let (number, secrets) = session.dangerous_extract_secrets()?.tx;
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => bail!("a suite that is no AES-GCM"),
        };
        Ok(Self {
            key: LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref())?),
            iv: iv.as_ref().try_into().context("the length of the IV")?,
            number,
            tls13,
        })
    }

    /// A record of this content type.
    pub(super) fn seal(&mut self, kind: u8, payload: &[u8]) -> Result<Vec<u8>> {
        const TAG: usize = 16;
        let number = self.number.to_be_bytes();
        self.number += 1;
        let mut nonce = self.iv;
        for (byte, more) in nonce[4..].iter_mut().zip(number) {
            *byte ^= more;
        }
        let sealed_by = Nonce::assume_unique_for_key(nonce);
        let mut sealed = payload.to_vec();
        let mut record;
        if self.tls13 {
            sealed.push(kind);
            record = vec![APPLICATION_DATA, 3, 3];
            record.extend(u16::try_from(sealed.len() + TAG)?.to_be_bytes());
            self.key
                .seal_in_place_append_tag(sealed_by, Aad::from(&record), &mut sealed)?;
        } else {
            let mut about = number.to_vec();
            about.extend([kind, 3, 3]);
            about.extend(u16::try_from(payload.len())?.to_be_bytes());
            self.key
                .seal_in_place_append_tag(sealed_by, Aad::from(&about), &mut sealed)?;
            record = vec![kind, 3, 3];
            record.extend(u16::try_from(sealed.len() + 8)?.to_be_bytes());
            record.extend(&nonce[4..]);
        }
        record.extend(sealed);
        Ok(record)
    }
}
