//! The platform against the tested operational environments of certificate #5314: a fact to print, never a reason to
//! stop. On any other platform the certificate makes no statement, and the operator decides.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// This platform. In a container the operating system is the image's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// Model of the first processor.
    pub cpu: String,
    /// Whether the certificate was tested on this operating system with this processor: Amazon Linux 2023 on Intel
    /// Xeon Platinum 8375C or AWS Graviton4 (security policy of #5314, table of tested operational environments).
    pub tested: bool,
}

impl Environment {
    /// Reads it below `root`; what cannot be read is "unknown", which no certificate was tested on.
    pub fn read(root: &Path) -> Self {
        let release = first_text(root, &["etc/os-release", "usr/lib/os-release"]);
        let cpuinfo = first_text(root, &["proc/cpuinfo"]);
        let vendor = first_text(root, &["sys/class/dmi/id/sys_vendor"]);
        let cpu = cpu(&cpuinfo, vendor.trim());
        let os_tested =
            field(&release, "ID", '=') == Some("amzn") && field(&release, "VERSION_ID", '=') == Some("2023");
        Self {
            os: field(&release, "PRETTY_NAME", '=')
                .unwrap_or("unknown")
                .to_owned(),
            tested: os_tested && (cpu.contains("Xeon(R) Platinum 8375C") || cpu == GRAVITON4),
            cpu,
        }
    }
}

/// Whether the kernel was booted with `fips=1`. A kernel without the file has no such mode.
pub(super) fn kernel_fips_enabled(root: &Path) -> bool {
    first_text(root, &["proc/sys/crypto/fips_enabled"]).trim() == "1"
}

const GRAVITON4: &str = "AWS Graviton4";

/// x86 says its model in words. Arm says numbers: implementer 0x41 (Arm), part 0xd4f (Neoverse V2, Arm's MIDR table)
/// is a Graviton4 when the machine is Amazon's.
fn cpu(cpuinfo: &str, vendor: &str) -> String {
    if let Some(model) = field(cpuinfo, "model name", ':') {
        return model.to_owned();
    }
    match (
        field(cpuinfo, "CPU implementer", ':'),
        field(cpuinfo, "CPU part", ':'),
    ) {
        (Some("0x41"), Some("0xd4f")) if vendor == "Amazon EC2" => GRAVITON4.to_owned(),
        (Some(implementer), Some(part)) => format!("Arm implementer {implementer} part {part}"),
        _ => "unknown".to_owned(),
    }
}

/// The value of the first line `key<separator>value`, without blanks and quotes.
fn field<'a>(text: &'a str, key: &str, separator: char) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(separator)?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

fn first_text(root: &Path, names: &[&str]) -> String {
    names
        .iter()
        .find_map(|name| fs::read_to_string(root.join(name)).ok())
        .unwrap_or_default()
}
