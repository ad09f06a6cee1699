//! Which cryptographic module this program carries, proved at start: approved mode, version, linkage, integrity,
//! known answers.
//!
//! Anything wrong is an error: the program exits and nothing is forwarded. `try_fips_mode` is true for every FIPS
//! build, certified or not, so it is necessary and never sufficient; what decides is the module's version string
//! against the table `CERTIFIED`.
//!
//! Wording: never the bare word "FIPS" for a status. We print module, version, certificate number and whether the
//! platform is one that the certificate was tested on.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::provider::Offer;
use crate::config::TlsPolicy;

pub mod environment;
#[cfg(test)]
mod tests;

pub use environment::Environment;

/// The modules that this program may run with. One row a certificate; a new one is a decision with an ADR, never a
/// side effect of a dependency update. Source: CMVP certificate #5314 and its security policy, section 2 (version)
/// and 11.1 (version string).
const CERTIFIED: &[Certified] = &[Certified {
    version: "AWS-LC FIPS 3.1.0",
    name: "AWS-LC 3 Cryptographic Module (static)",
    certificate: "#5314",
}];

struct Certified {
    version: &'static str,
    name: &'static str,
    certificate: &'static str,
}

/// The crates between us and the module. A test holds them to `Cargo.lock`.
const CRATES: [(&str, &str); 5] = [
    ("aws-lc-fips-sys", "0.13.11"),
    ("aws-lc-rs", "1.17.1"),
    ("rustls", "0.23.43"),
    ("rustls-webpki", "0.103.13"),
    ("tokio-rustls", "0.26.6"),
];

/// What is known about the module in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleStatus {
    /// The module's name on its certificate.
    pub module: String,
    /// What the module says it is.
    pub version: String,
    /// `static`: its code is part of this executable.
    pub linkage: String,
    /// CMVP certificate number; none for a module without one.
    pub certificate: Option<String>,
    /// The tests of this start, or the last ones on demand.
    pub self_test: SelfTest,
    /// Where the module's random numbers start from.
    pub entropy: String,
    /// Whether the kernel runs with `fips=1`, which also governs what `getrandom` gives the module.
    pub kernel_fips_enabled: bool,
    /// The platform against the certificate's tested operational environments.
    pub environment: Environment,
    /// The crates between us and the module, with their versions.
    pub crates: BTreeMap<String, String>,
    /// What is offered to servers, once a policy is chosen.
    pub offer: Option<Offer>,
}

/// A run of the module's own tests. A run that failed is an error, so every one of these passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// HMAC-SHA-256 over the module's code and constants.
    pub integrity: Duration,
    /// Known answers of every approved algorithm.
    pub known_answers: Duration,
}

/// Why the module cannot be used. There is no way around any of these but a proper build.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The library is not a FIPS build.
    #[error(
        "the cryptographic library of this program does not run in the approved mode ({0}): install a \
         released package"
    )]
    NotApprovedMode(&'static str),
    /// Another module than the certified one was linked.
    #[error(
        "the cryptographic module says it is `{found}`, accepted is only `{accepted}`: install a released \
         package"
    )]
    NotCertified {
        /// What it says.
        found: String,
        /// The allow-list.
        accepted: String,
    },
    /// The module comes from a shared library, which is another module with another certificate.
    #[error(
        "the cryptographic module was loaded from `{0}` and not linked into this program: the certificate is \
         for the static module; build without AWS_LC_FIPS_SYS_STATIC=0"
    )]
    NotStatic(String),
    /// `/proc` does not tell where the module is.
    #[error(
        "cannot find out where the cryptographic module is loaded: {}: {problem}; mount /proc",
        path.display()
    )]
    Unlocated {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The module's code is not what was built.
    #[error(
        "the integrity test of the cryptographic module failed: this executable was changed after it was \
         built, reinstall it"
    )]
    Integrity,
    /// The module gives wrong answers.
    #[error(
        "a known-answer test of the cryptographic module failed: the executable or this machine is broken, \
         forward nothing"
    )]
    KnownAnswers,
}

/// Proves the module. Call it first, before any key, and exit when it fails. Reads `/proc` and `/etc/os-release`, so
/// call it before the file system is closed off.
///
/// # Errors
/// See [`ModuleError`].
pub fn start() -> Result<ModuleStatus, ModuleError> {
    aws_lc_rs::try_fips_mode().map_err(ModuleError::NotApprovedMode)?;
    let version = version();
    let certified = certified(&version)?;
    let linked = linked_into(Path::new("/proc/self"))?;
    if let Some(library) = linked {
        return Err(ModuleError::NotStatic(library));
    }
    Ok(ModuleStatus {
        module: certified.name.to_owned(),
        version,
        linkage: "static".to_owned(),
        certificate: Some(certified.certificate.to_owned()),
        self_test: self_test()?,
        entropy: entropy().to_owned(),
        kernel_fips_enabled: environment::kernel_fips_enabled(Path::new("/")),
        environment: Environment::read(Path::new("/")),
        crates: CRATES
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect(),
        offer: None,
    })
}

/// Runs the module's integrity and known-answer tests again. A few milliseconds of one core.
///
/// # Errors
/// A test that failed. The module may also abort the process by itself, which its security policy (10.4) asks for.
pub fn self_test() -> Result<SelfTest, ModuleError> {
    let begin = Instant::now();
    // SAFETY: takes nothing, reads the module's own code and constants. Needed because aws-lc-rs does not expose it.
    if unsafe { aws_lc_fips_sys::BORINGSSL_integrity_test() } != 1 {
        return Err(ModuleError::Integrity);
    }
    let integrity = begin.elapsed();
    let begin = Instant::now();
    // SAFETY: takes nothing and keeps its state on the stack. Needed because aws-lc-rs 1.17 does not expose it.
    if unsafe { aws_lc_fips_sys::BORINGSSL_self_test() } != 1 {
        return Err(ModuleError::KnownAnswers);
    }
    Ok(SelfTest {
        integrity,
        known_answers: begin.elapsed(),
    })
}

impl ModuleStatus {
    /// With what `policy` offers.
    #[must_use]
    pub fn with_policy(mut self, policy: TlsPolicy) -> Self {
        self.offer = Some(Offer::of(policy));
        self
    }
}

impl fmt::Display for ModuleStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificate = self.certificate.as_deref().unwrap_or("none");
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        writeln!(f, "cryptographic module: {}", self.module)?;
        writeln!(f, "module version: {}, {}", self.version, self.linkage)?;
        writeln!(f, "CMVP certificate: {certificate}")?;
        writeln!(f, "integrity test: passed in {:?}", self.self_test.integrity)?;
        writeln!(
            f,
            "known-answer tests: passed in {:?}",
            self.self_test.known_answers
        )?;
        writeln!(f, "entropy: {}", self.entropy)?;
        writeln!(f, "kernel fips_enabled: {}", yes_no(self.kernel_fips_enabled))?;
        writeln!(f, "operating system: {}", self.environment.os)?;
        writeln!(f, "processor: {}", self.environment.cpu)?;
        writeln!(
            f,
            "tested operational environment: {}",
            yes_no(self.environment.tested)
        )?;
        if let Some(offer) = &self.offer {
            let policy = match offer.policy {
                TlsPolicy::Fips => "fips",
                TlsPolicy::Strict => "strict",
            };
            writeln!(f, "TLS policy: {policy}: {}", offer.versions.join(", "))?;
            writeln!(f, "TLS suites: {}", offer.suites.join(", "))?;
            writeln!(f, "TLS groups: {}", offer.groups.join(", "))?;
            writeln!(f, "TLS signature schemes: {}", offer.signature_schemes.join(", "))?;
        }
        let crates: Vec<String> = self
            .crates
            .iter()
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        write!(f, "crates: {}", crates.join(", "))
    }
}

fn version() -> String {
    // SAFETY: returns a pointer to a string constant of the module, which lives as long as the process and ends in
    // NUL. Needed because aws-lc-rs 1.17 does not expose it.
    let text = unsafe { CStr::from_ptr(aws_lc_fips_sys::awslc_version_string()) };
    text.to_string_lossy().into_owned()
}

fn certified(version: &str) -> Result<&'static Certified, ModuleError> {
    CERTIFIED
        .iter()
        .find(|row| row.version == version)
        .ok_or_else(|| ModuleError::NotCertified {
            found: version.to_owned(),
            accepted: CERTIFIED
                .iter()
                .map(|row| row.version)
                .collect::<Vec<_>>()
                .join("`, `"),
        })
}

/// The shared library that holds the module; none when it is part of this executable.
fn linked_into(proc_self: &Path) -> Result<Option<String>, ModuleError> {
    let unlocated = |path: &Path, problem: String| ModuleError::Unlocated {
        path: path.to_owned(),
        problem,
    };
    let maps = proc_self.join("maps");
    let exe = proc_self.join("exe");
    let text = fs::read_to_string(&maps).map_err(|error| unlocated(&maps, error.to_string()))?;
    let program = fs::read_link(&exe).map_err(|error| unlocated(&exe, error.to_string()))?;
    let address = aws_lc_fips_sys::awslc_version_string as *const () as usize;
    match mapped_file(&text, address) {
        None => Err(unlocated(&maps, "the module is in no mapping".to_owned())),
        Some(file) if Path::new(file) == program => Ok(None),
        Some(file) => Ok(Some(file.to_owned())),
    }
}

/// The file that is mapped at `address`, from the text of `/proc/<pid>/maps` (proc(5)).
fn mapped_file(maps: &str, address: usize) -> Option<&str> {
    maps.lines().find_map(|line| {
        // `start-end perms offset dev inode   path`; the path is last and may hold spaces.
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let path = rest.splitn(5, ' ').nth(4)?.trim_start();
        (start..end).contains(&address).then_some(path)
    })
}

fn entropy() -> &'static str {
    if aws_lc_rs::try_fips_cpu_jitter_entropy().is_ok() {
        "CPU jitter, inside the module"
    } else {
        // The caveat on the certificate: no assurance of the minimum strength of generated keys.
        "loaded from the operating system (CPU instruction and getrandom), outside the module's boundary"
    }
}
