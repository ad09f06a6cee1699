//! Whether an authority's certificate may be used for a site: pure, from what the certificate says.

use std::path::Path;

use super::certificate::{Certificate, Constraints};
use super::error::CaError;
use super::moment;

/// Whose authority it is: the cure differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Made by `ca init` or `ca rotate`.
    Own,
    /// `ca.certificate_file`.
    Supplied,
}

impl Origin {
    /// What helps when the certificate itself is not what it should be.
    pub(super) fn cure(self) -> &'static str {
        match self {
            Self::Own => {
                "make another one with `agent-fips-proxy ca init --replace`, then restart the Agents that trust it"
            }
            Self::Supplied => {
                "have your authority issue another certificate for ca.certificate_file (OPERATIONS.md, \"The local \
                 authority\", lists what it must say)"
            }
        }
    }
}

/// Refuses a certificate that is no authority, is wider than `domains`, does not cover them, or is not valid at `now`.
///
/// # Errors
/// [`CaError::Unfit`], with the reason and the command that helps.
pub(super) fn check(
    path: &Path,
    origin: Origin,
    certificate: &Certificate,
    domains: &[String],
    now: i64,
) -> Result<(), CaError> {
    let unfit = |problem: String| CaError::unfit(path, problem, origin.cure());
    authority(certificate).map_err(unfit)?;
    let Some(constraints) = &certificate.constraints else {
        return Err(unfit(
            "it has no name constraints, so its key could impersonate every site".to_owned(),
        ));
    };
    not_wider(constraints, domains).map_err(unfit)?;
    covers(constraints, domains).map_err(unfit)?;
    let facts = &certificate.facts;
    if now < facts.not_before {
        return Err(CaError::unfit(
            path,
            format!(
                "it is not valid before {}, and this host's clock says {}",
                moment(facts.not_before),
                moment(now)
            ),
            "check the clock",
        ));
    }
    if now > facts.not_after {
        return Err(unfit(format!("it expired at {}", facts.ends())));
    }
    Ok(())
}

/// Basic constraints, path length, key usage, extended key usage.
fn authority(certificate: &Certificate) -> Result<(), String> {
    if !certificate.version3 || !certificate.is_ca {
        return Err("it is not the certificate of an authority (basic constraints, CA:TRUE)".to_owned());
    }
    if certificate.path_length != Some(0) {
        return Err(
            "its path length is not 0, so its key could make further authorities (basic constraints, pathlen:0)"
                .to_owned(),
        );
    }
    if !certificate.signs_certificates {
        return Err("its key usage does not allow to sign certificates (keyCertSign)".to_owned());
    }
    // One without any usage is bounded by its names alone; one that names others was made for something else.
    if certificate.server_only == Some(false) {
        return Err("its extended key usage is not server authentication alone".to_owned());
    }
    Ok(())
}

/// Every name that may be signed for is an intake's.
fn not_wider(constraints: &Constraints, domains: &[String]) -> Result<(), String> {
    if !constraints.critical {
        return Err("its name constraints are not critical, so a client may ignore them".to_owned());
    }
    if constraints.permitted_dns.is_empty() {
        return Err("its name constraints permit every DNS name".to_owned());
    }
    if let Some(wide) = constraints
        .permitted_dns
        .iter()
        .find(|name| !domains.iter().any(|domain| is_within(name, domain)))
    {
        return Err(format!(
            "it may sign for `{wide}`, which is wider than the intake's domains ({})",
            domains.join(", ")
        ));
    }
    if let Some(other) = constraints.permitted_others.first() {
        return Err(format!("it may sign for names that no intake has: {other}"));
    }
    if !constraints.excludes_ipv4 || !constraints.excludes_ipv6 {
        return Err(
            "it may sign for IP addresses: its name constraints must exclude 0.0.0.0/0 and ::/0".to_owned(),
        );
    }
    // Verifiers have differed about excluded names beside wildcards (CVE-2025-61727): there is no need for any.
    if let Some(other) = constraints.excluded_others.first() {
        return Err(format!(
            "its name constraints exclude {other}: only IP addresses may be excluded"
        ));
    }
    Ok(())
}

/// Every intake name can be signed for.
fn covers(constraints: &Constraints, domains: &[String]) -> Result<(), String> {
    let missing: Vec<&str> = domains
        .iter()
        .filter(|domain| {
            !constraints
                .permitted_dns
                .iter()
                .any(|name| !name.starts_with('.') && is_within(domain, name))
        })
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "it does not cover the configured site: it may not sign for {}",
        missing.join(", ")
    ))
}

/// `name` is `domain` or below it (RFC 5280 section 4.2.1.10); a leading dot, which some authorities write, means below
/// only.
fn is_within(name: &str, domain: &str) -> bool {
    let name = name.strip_prefix('.').unwrap_or(name).to_ascii_lowercase();
    let domain = domain.to_ascii_lowercase();
    !domain.is_empty()
        && name
            .strip_suffix(&domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_compared_by_label() {
        for (name, domain, expected) in [
            ("ddog-gov.com", "ddog-gov.com", true),
            ("agent.ddog-gov.com", "ddog-gov.com", true),
            (".ddog-gov.com", "ddog-gov.com", true),
            ("DDOG-gov.com", "ddog-GOV.com", true),
            ("evilddog-gov.com", "ddog-gov.com", false),
            ("com", "ddog-gov.com", false),
            ("", "ddog-gov.com", false),
            ("ddog-gov.com", "", false),
            ("ddog-gov.com.", "ddog-gov.com", false),
        ] {
            assert_eq!(is_within(name, domain), expected, "{name:?} {domain:?}");
        }
    }
}
