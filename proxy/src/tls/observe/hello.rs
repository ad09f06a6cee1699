//! The ClientHello: what a client asks for, before anybody decides who answers.

use rustls_pki_types::DnsName;
use tls_parser::nom::combinator::{all_consuming, map_parser, verify};
use tls_parser::nom::multi::{length_data, many1};
use tls_parser::nom::number::complete::{be_u8, be_u16};
use tls_parser::{
    SNIType, TlsExtensionType, TlsHandshakeType, TlsRecordType, parse_tls_extension_sni_hostname,
    parse_tls_handshake_client_hello,
};

use super::names;
use super::records::{Messages, Problem, Records, extensions, whole};

/// Bytes in which a ClientHello must end, its records included. Post-quantum key shares make it a few kilobytes long; rustls takes
/// no message above 64 KiB either.
pub const LONGEST_HELLO: usize = 64 * 1024;

/// Collects bytes until they are a ClientHello. It may come in any number of segments and TLS records; what it needs of them is
/// kept, at most [`LONGEST_HELLO`] bytes.
#[derive(Debug, Default)]
pub struct HelloReader {
    records: Records,
    messages: Messages,
    fed: usize,
    over: Option<Result<(), Malformed>>,
}

/// What a client asks for. Names are IANA's. Numbers that mean nothing (GREASE, RFC 8701) are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The name in SNI, as the client wrote it. Absent: no SNI, or no DNS name in it (an IP address, which RFC 6066 section 3 does
    /// not allow, or bytes that are no name).
    pub server_name: Option<String>,
    /// The protocols that it offers by ALPN (RFC 7301), such as `h2`, in its order. Bytes that are not printable ASCII are escaped.
    pub protocols: Vec<String>,
    /// The versions that it offers. One that has no such extension offers its newest only, and all before it.
    pub versions: Vec<String>,
    /// The suites that it offers, in its order, with signals such as `TLS_FALLBACK_SCSV`.
    pub suites: Vec<String>,
    /// The groups that it offers, in its order; empty when it does not say.
    pub groups: Vec<String>,
    /// True when it offers the extended master secret (RFC 7627).
    pub ems: bool,
    /// True when it means to send data before the server has answered (RFC 8446 section 4.2.10).
    pub early_data: bool,
}

/// Bytes that are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's first message is not a usable ClientHello: {reason}")]
pub struct Malformed {
    /// What is wrong, in a few fixed words.
    pub reason: &'static str,
}

impl HelloReader {
    /// Takes the next bytes; `None` when more are needed. What comes after the ClientHello is not looked at. Once it answered it
    /// wants no more: further bytes give `None` after a ClientHello, the same error after an error.
    ///
    /// # Errors
    /// Malformed, or longer than [`LONGEST_HELLO`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, Malformed> {
        if let Some(over) = self.over {
            return over.map(|()| None);
        }
        let answer = self.read(bytes).map_err(|reason| Malformed { reason });
        match &answer {
            Ok(None) => {}
            Ok(Some(_)) => self.over = Some(Ok(())),
            Err(malformed) => self.over = Some(Err(*malformed)),
        }
        answer
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, Problem> {
        // Cut here, so that the answer does not depend on how the bytes come.
        let (mut now, beyond) = bytes.split_at(bytes.len().min(LONGEST_HELLO - self.fed));
        self.fed += now.len();
        while let Some(fragment) = self.records.next(&mut now)? {
            if fragment.kind != TlsRecordType::Handshake {
                return Err("a record that is no handshake");
            }
            let mut bytes = fragment.bytes;
            let Some((_, body)) = self.messages.next(&mut bytes, wanted)? else {
                continue;
            };
            // A client has nothing more to say before it is answered.
            if !bytes.is_empty() || fragment.left > 0 {
                return Err("something after the ClientHello in its record");
            }
            return ClientHello::parse(&body).map(Some);
        }
        if beyond.is_empty() {
            Ok(None)
        } else {
            Err(TOO_LONG)
        }
    }
}

const TOO_LONG: Problem = "longer than 64 KiB";

fn wanted(kind: TlsHandshakeType, length: usize) -> Result<bool, Problem> {
    if kind != TlsHandshakeType::ClientHello {
        return Err("the first message is another");
    }
    if length > LONGEST_HELLO {
        return Err(TOO_LONG);
    }
    Ok(true)
}

impl ClientHello {
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        let (rest, hello) =
            parse_tls_handshake_client_hello(body).map_err(|_| "wrong length of one of its fields")?;
        if !rest.is_empty() {
            return Err("bytes that belong to no field");
        }
        if hello.ciphers.is_empty() || hello.comp.is_empty() {
            return Err("no suites or no compression methods");
        }
        let extensions = extensions(hello.ext.unwrap_or_default())?;
        let extension = |kind: TlsExtensionType| extensions.get(&kind.0).copied();

        let versions = match extension(TlsExtensionType::SupportedVersions) {
            None => vec![hello.version.0],
            Some(bytes) => whole(
                map_parser(length_data(be_u8), all_consuming(many1(be_u16))),
                bytes,
                "wrong length in supported_versions",
            )?,
        };
        let groups = extension(TlsExtensionType::SupportedGroups)
            .map(|bytes| {
                let list = map_parser(length_data(be_u16), all_consuming(many1(be_u16)));
                whole(list, bytes, "wrong length in supported_groups")
            })
            .transpose()?;
        let ems = extension(TlsExtensionType::ExtendedMasterSecret);
        if ems.is_some_and(|bytes| !bytes.is_empty()) {
            return Err("wrong length in extended_master_secret");
        }
        Ok(Self {
            server_name: extension(TlsExtensionType::ServerName)
                .map(server_name)
                .transpose()?
                .flatten(),
            protocols: extension(TlsExtensionType::ApplicationLayerProtocolNegotiation)
                .map(protocols)
                .transpose()?
                .unwrap_or_default(),
            versions: named(versions, names::version),
            suites: named(hello.ciphers.iter().map(|suite| suite.0), names::suite),
            groups: named(groups.unwrap_or_default(), names::group),
            ems: ems.is_some(),
            early_data: extension(TlsExtensionType::EarlyData).is_some(),
        })
    }
}

fn named(numbers: impl IntoIterator<Item = u16>, name: fn(u16) -> String) -> Vec<String> {
    numbers
        .into_iter()
        .filter(|number| !names::is_grease(*number))
        .map(name)
        .collect()
}

/// RFC 6066 section 3: a list of names of different types, of which one is in use.
fn server_name(bytes: &[u8]) -> Result<Option<String>, Problem> {
    const LENGTH: Problem = "wrong length in server_name";
    let mut list = whole(length_data(be_u16), bytes, LENGTH)?;
    let mut only = None;
    while !list.is_empty() {
        let (rest, (kind, name)) = parse_tls_extension_sni_hostname(list).map_err(|_| LENGTH)?;
        if name.is_empty() {
            return Err("an empty name in server_name");
        }
        if only.replace((kind, name)).is_some() {
            return Err("more than one name in server_name");
        }
        list = rest;
    }
    let (kind, name) = only.ok_or("no name in server_name")?;
    // The last label of a DNS name is never all digits: that is an IPv4 address.
    Ok(DnsName::try_from(name)
        .ok()
        .filter(|_| kind == SNIType::HostName)
        .map(|name| name.as_ref().to_owned()))
}

fn protocols(bytes: &[u8]) -> Result<Vec<String>, Problem> {
    let name = verify(length_data(be_u8), |name: &[u8]| !name.is_empty());
    let list = map_parser(length_data(be_u16), all_consuming(many1(name)));
    let names: Vec<&[u8]> = whole(list, bytes, "wrong length in the list of protocols")?;
    Ok(names
        .into_iter()
        .filter(|name| !is_grease(name))
        .map(|name| name.escape_ascii().to_string())
        .collect())
}

/// A protocol of two bytes can be one of GREASE's numbers too.
fn is_grease(protocol: &[u8]) -> bool {
    matches!(protocol, [high, low] if names::is_grease(u16::from_be_bytes([*high, *low])))
}
