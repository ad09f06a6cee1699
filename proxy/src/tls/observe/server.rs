//! The server's side: which session comes of a ClientHello, told as early as the bytes tell it.

use tls_parser::nom::multi::length_data;
use tls_parser::nom::number::complete::be_u16;
use tls_parser::nom::sequence::pair;
use tls_parser::{
    ECParametersContent, TlsCipherAu, TlsCipherKx, TlsCipherSuiteID, TlsExtensionType, TlsHandshakeType,
    TlsRecordType, parse_ecdh_params, parse_tls_handshake_server_hello,
};

use super::records::{Fragment, Messages, Problem, Records, extensions, whole};
use super::{AgentSession, names};

/// Bytes of the server in which the session must be known, its records included. Before TLS 1.3 the server's certificates come
/// first; intakes send 3 to 6 KiB of them.
pub const LONGEST_FLIGHT: usize = 64 * 1024;

/// The random of a HelloRetryRequest: SHA-256 of that word (RFC 8446 section 4.1.3).
const HELLO_RETRY_REQUEST: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
const TLS13: u16 = 0x0304;

/// Reads what a server answers to a ClientHello that was passed on to it: one for each connection. It keeps a message at most,
/// never more than [`LONGEST_FLIGHT`] bytes.
#[derive(Debug, Default)]
pub struct Observer {
    records: Records,
    messages: Messages,
    fed: usize,
    /// An alert of which one byte is there.
    alert: Option<u8>,
    retried: bool,
    /// Before TLS 1.3 a ServerHello does not tell everything.
    begun: Option<Begun>,
    over: Option<Progress>,
}

/// What is known so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not enough yet.
    More,
    /// The session that the two will have. What comes after it is not looked at.
    Known(AgentSession),
    /// The server ends it before there is a session; its alert is the client's to read.
    Alerted,
    /// No handshake that can be followed; why, in a few fixed words.
    Unreadable(&'static str),
}

/// After a ServerHello of TLS 1.2 or older.
#[derive(Debug)]
struct Begun {
    /// As if nothing more came.
    session: AgentSession,
    /// True when a ServerKeyExchange of this suite begins with a curve.
    by_curve: bool,
    /// True when something came that a resumption does not have: a resumed session has a ticket at most.
    full: bool,
}

impl Observer {
    /// Takes the next bytes of the server, in any split. Any answer but [`Progress::More`] is the last one, and is repeated.
    pub fn server(&mut self, bytes: &[u8]) -> Progress {
        if let Some(over) = &self.over {
            return over.clone();
        }
        let progress = self.read(bytes).unwrap_or_else(Progress::Unreadable);
        if progress != Progress::More {
            self.over = Some(progress.clone());
        }
        progress
    }

    /// True when the server has asked for another ClientHello and nothing of it is half there: it waits for the client.
    pub fn awaits_client(&self) -> bool {
        self.retried
            && self.begun.is_none()
            && self.over.is_none()
            && self.alert.is_none()
            && self.records.is_between()
            && self.messages.is_between()
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Progress, Problem> {
        // Cut here, so that the answer does not depend on how the bytes come.
        let (mut now, beyond) = bytes.split_at(bytes.len().min(LONGEST_FLIGHT - self.fed));
        self.fed += now.len();
        while let Some(fragment) = self.records.next(&mut now)? {
            let progress = match fragment.kind {
                TlsRecordType::Handshake => self.handshake(fragment.bytes)?,
                TlsRecordType::ChangeCipherSpec => self.change_cipher_spec(&fragment)?,
                TlsRecordType::Alert => self.alert(&fragment)?,
                _ => return Err("a record that is no part of a handshake"),
            };
            if progress != Progress::More {
                return Ok(progress);
            }
        }
        if beyond.is_empty() {
            Ok(Progress::More)
        } else {
            Err("no session within 64 KiB")
        }
    }

    fn handshake(&mut self, mut bytes: &[u8]) -> Result<Progress, Problem> {
        loop {
            let first = self.begun.is_none();
            let next = self.messages.next(&mut bytes, |kind, _| match kind {
                TlsHandshakeType::ServerHello if first => Ok(true),
                TlsHandshakeType::ServerHello => Err("a second ServerHello"),
                // May come at any time and means nothing during a handshake (RFC 5246 section 7.4.1.1).
                TlsHandshakeType::HelloRequest => Ok(false),
                _ if first => Err("the first message is no ServerHello"),
                kind => Ok(kind == TlsHandshakeType::ServerKeyExchange),
            })?;
            let Some((kind, body)) = next else {
                return Ok(Progress::More);
            };
            let progress = match (&mut self.begun, kind) {
                (None, TlsHandshakeType::ServerHello) => self.server_hello(&body)?,
                (Some(begun), TlsHandshakeType::ServerKeyExchange) => begun.key_exchange(&body)?,
                (Some(begun), TlsHandshakeType::ServerDone) => Progress::Known(begun.session.clone()),
                (Some(begun), kind) => {
                    begun.full |=
                        kind != TlsHandshakeType::NewSessionTicket && kind != TlsHandshakeType::HelloRequest;
                    Progress::More
                }
                (None, _) => Progress::More,
            };
            if progress != Progress::More {
                return Ok(progress);
            }
        }
    }

    fn server_hello(&mut self, body: &[u8]) -> Result<Progress, Problem> {
        let (rest, hello) = parse_tls_handshake_server_hello(body)
            .map_err(|_| "a ServerHello of the wrong length or version")?;
        if !rest.is_empty() {
            return Err("bytes in the ServerHello that belong to no field");
        }
        let extensions = extensions(hello.ext.unwrap_or_default())?;
        let extension = |kind: TlsExtensionType| extensions.get(&kind.0).copied();
        let retry = hello.random == HELLO_RETRY_REQUEST;

        let Some(version) = extension(TlsExtensionType::SupportedVersions) else {
            if retry || self.retried {
                return Err("a HelloRetryRequest without TLS 1.3");
            }
            let ems = extension(TlsExtensionType::ExtendedMasterSecret);
            if ems.is_some_and(|bytes| !bytes.is_empty()) {
                return Err("wrong length in extended_master_secret");
            }
            self.begun = Some(Begun {
                session: AgentSession {
                    version: names::version(hello.version.0),
                    suite: names::suite(hello.cipher.0),
                    group: None,
                    ems: Some(ems.is_some()),
                    resumed: false,
                    retried: false,
                },
                by_curve: is_by_curve(hello.cipher),
                full: false,
            });
            return Ok(Progress::More);
        };
        let version = whole(be_u16, version, "wrong length in supported_versions")?;
        // RFC 8446 section 4.2.1: older versions are not agreed on by this extension.
        if version < TLS13 {
            return Err("supported_versions with a version before TLS 1.3");
        }
        if retry {
            if self.retried {
                return Err("a second HelloRetryRequest");
            }
            self.retried = true;
            return Ok(Progress::More);
        }
        let group = extension(TlsExtensionType::KeyShare)
            .map(|bytes| {
                whole(
                    pair(be_u16, length_data(be_u16)),
                    bytes,
                    "wrong length in key_share",
                )
            })
            .transpose()?
            .map(|(group, _): (u16, &[u8])| names::group(group));
        let resumed = extension(TlsExtensionType::PreSharedKey).is_some();
        if group.is_none() && !resumed {
            return Err("neither key_share nor pre_shared_key");
        }
        Ok(Progress::Known(AgentSession {
            version: names::version(version),
            suite: names::suite(hello.cipher.0),
            group,
            ems: None,
            resumed,
            retried: self.retried,
        }))
    }

    fn change_cipher_spec(&mut self, fragment: &Fragment<'_>) -> Result<Progress, Problem> {
        if fragment.bytes != [1] || fragment.left > 0 {
            return Err("a ChangeCipherSpec that is not one byte");
        }
        if !self.messages.is_between() {
            return Err("a ChangeCipherSpec inside a message");
        }
        match &self.begun {
            Some(begun) if !begun.full => Ok(Progress::Known(AgentSession {
                resumed: true,
                ..begun.session.clone()
            })),
            Some(_) => Err("a ChangeCipherSpec before the server has finished"),
            // For middleboxes, means nothing (RFC 8446 appendix D.4).
            None if self.retried => Ok(Progress::More),
            None => Err("a ChangeCipherSpec before the ServerHello"),
        }
    }

    fn alert(&mut self, fragment: &Fragment<'_>) -> Result<Progress, Problem> {
        const LENGTH: Problem = "an alert that is not two bytes";
        let (level, description) = match (self.alert.take(), fragment.bytes, fragment.left) {
            (None, [level], 1) => {
                self.alert = Some(*level);
                return Ok(Progress::More);
            }
            (None, [level, description], 0) => (*level, *description),
            (Some(level), [description], 0) => (level, *description),
            _ => return Err(LENGTH),
        };
        match (level, description) {
            // close_notify ends it at any level; a fatal one does so by its level.
            (2, _) | (_, 0) => Ok(Progress::Alerted),
            // Such as unrecognized_name (RFC 6066 section 3): the handshake goes on.
            (1, _) => Ok(Progress::More),
            _ => Err("an alert of an unknown level"),
        }
    }
}

impl Begun {
    fn key_exchange(&mut self, body: &[u8]) -> Result<Progress, Problem> {
        if self.by_curve {
            let group = match body {
                [1, ..] => names::EXPLICIT_PRIME,
                [2, ..] => names::EXPLICIT_CHAR2,
                _ => match parse_ecdh_params(body).map(|(_, params)| params.curve_params.params_content) {
                    Ok(ECParametersContent::NamedGroup(group)) => group.0,
                    _ => return Err("a ServerKeyExchange without a curve"),
                },
            };
            self.session.group = Some(names::group(group));
        }
        Ok(Progress::Known(self.session.clone()))
    }
}

/// With a pre-shared key a hint stands before the curve; such a suite needs no group to be judged.
fn is_by_curve(suite: TlsCipherSuiteID) -> bool {
    suite.get_ciphersuite().is_some_and(|suite| match suite.kx {
        TlsCipherKx::Ecdhe => suite.au != TlsCipherAu::Psk,
        // The registry has anonymous curves as ECDH without authentication.
        TlsCipherKx::Ecdh | TlsCipherKx::Aecdh => suite.au == TlsCipherAu::Null,
        _ => false,
    })
}
