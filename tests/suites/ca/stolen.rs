//! Somebody has the key: what OpenSSL and Go make of what it can sign. The third verifier, webpki, is asked in process
//! (`proxy/tests/local_authority.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use harness::agent::go_client;
use harness::{capture, check, succeed};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use super::{LocalAuthority, text};

/// A leaf: which names it has, whom it is shown for, whether that must be accepted.
struct Case {
    names: &'static [&'static str],
    common_name: Option<&'static str>,
    shown_for: &'static str,
    accepted: bool,
}

const fn names(names: &'static [&'static str], shown_for: &'static str, accepted: bool) -> Case {
    Case {
        names,
        common_name: None,
        shown_for,
        accepted,
    }
}

const CASES: &[Case] = &[
    names(&["trace.agent.ddog-gov.com"], "trace.agent.ddog-gov.com", true),
    names(
        &["browser-intake-ddog-gov.com"],
        "browser-intake-ddog-gov.com",
        true,
    ),
    names(&["www.example.net"], "www.example.net", false),
    names(&["evilddog-gov.com"], "evilddog-gov.com", false),
    names(&["ddog-gov.com.example.net"], "ddog-gov.com.example.net", false),
    names(&["*.example.net"], "www.example.net", false),
    names(&["192.0.2.1"], "192.0.2.1", false),
    names(&["2001:db8::1"], "2001:db8::1", false),
    names(&["trace.agent.ddog-gov.com", "192.0.2.1"], "192.0.2.1", false),
    names(
        &["trace.agent.ddog-gov.com", "www.example.net"],
        "www.example.net",
        false,
    ),
    // The old place of a name, which OpenSSL still looks at where there is no other.
    Case {
        names: &[],
        common_name: Some("www.example.net"),
        shown_for: "www.example.net",
        accepted: false,
    },
];

/// Signs with the key file, as a thief would.
fn sign(authority: &LocalAuthority, case: &Case, folder: &Path) -> Result<PathBuf> {
    let key = KeyPair::from_pem(&text(&authority.key()?)?)?;
    let issuer = Issuer::from_ca_cert_pem(&text(&authority.certificate()?)?, key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "somebody");
    if let Some(name) = case.common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    for name in case.names {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName((*name).try_into()?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&KeyPair::generate()?, &issuer)?;
    let path = folder.join("leaf.pem");
    std::fs::write(&path, leaf.pem())?;
    Ok(path)
}

/// A leaf for an intake name.
pub(super) fn intake_leaf(authority: &LocalAuthority, folder: &Path) -> Result<PathBuf> {
    sign(authority, &CASES[0], folder)
}

fn each(judge: impl Fn(&Path, &Path, &str) -> Result<(bool, String)>) -> Result<()> {
    let authority = LocalAuthority::new()?;
    let folder = tempfile::tempdir()?;
    for case in CASES {
        let leaf = sign(&authority, case, folder.path())?;
        let (accepted, said) = judge(&authority.certificate()?, &leaf, case.shown_for)?;
        check!(
            accepted == case.accepted,
            "{:?} {:?} for {}: accepted {accepted}, expected {}: {said}",
            case.names,
            case.common_name,
            case.shown_for,
            case.accepted
        );
    }
    Ok(())
}

pub(super) fn openssl_refuses_what_is_not_an_intake() -> Result<()> {
    each(|authority, leaf, name| {
        let option = if name.parse::<std::net::IpAddr>().is_ok() {
            "-verify_ip"
        } else {
            "-verify_hostname"
        };
        let output = capture(
            Command::new("openssl")
                .args([
                    "verify",
                    "-no-CApath",
                    "-no-CAstore",
                    "-x509_strict",
                    "-purpose",
                    "sslserver",
                    option,
                    name,
                ])
                .arg("-CAfile")
                .arg(authority)
                .arg(leaf),
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), said))
    })
}

pub(super) fn go_refuses_what_is_not_an_intake() -> Result<()> {
    let program = go_client()?;
    each(|authority, leaf, name| {
        let output = capture(
            Command::new(&program)
                .arg("verify")
                .arg(authority)
                .arg(leaf)
                .arg(name),
        )?;
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    })
}

/// The links in the trust folder are what OpenSSL computes, and lead it to the authority, also to the second of two.
pub(super) fn openssl_finds_it_by_its_hash() -> Result<()> {
    let authority = LocalAuthority::new()?;
    authority.good(&["rotate"])?;
    let trust = authority.dir().join("trust");
    let folder = tempfile::tempdir()?;
    let leaf = intake_leaf(&authority, folder.path())?;
    succeed(
        Command::new("openssl")
            .args(["verify", "-no-CAfile", "-no-CAstore", "-CApath"])
            .arg(&trust)
            .arg(leaf),
    )?;
    let mut links = 0;
    for entry in std::fs::read_dir(&trust)? {
        let path = entry?.path();
        let Ok(target) = std::fs::read_link(&path) else {
            continue;
        };
        links += 1;
        let hash = succeed(
            Command::new("openssl")
                .args(["x509", "-noout", "-subject_hash", "-in"])
                .arg(trust.join(target)),
        )?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        check!(name == format!("{}.0", hash.trim()), "{name} is not {hash}");
    }
    check!(links == 2, "{links} links for two authorities");
    Ok(())
}
