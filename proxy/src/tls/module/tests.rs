//! The module's proof, and each way in which it must fail.

use std::fs;

use super::*;

#[test]
fn this_build_carries_the_certified_module() {
    let status = start().unwrap();
    assert_eq!(status.version, "AWS-LC FIPS 3.1.0");
    assert_eq!(status.certificate.as_deref(), Some("#5314"));
    assert_eq!(status.linkage, "static");
    assert!(status.self_test.integrity > Duration::ZERO && status.self_test.known_answers > Duration::ZERO);
}

#[test]
fn another_module_is_refused_by_its_version_string() {
    for other in [
        "AWS-LC FIPS 3.0.0",
        "AWS-LC FIPS 4.2.0",
        "AWS-LC FIPS 3.1.0-dev",
        "AWS-LC 1.50.0",
        "",
    ] {
        let error = certified(other).err().unwrap().to_string();
        assert!(
            error.contains(&format!("`{other}`")) && error.contains("`AWS-LC FIPS 3.1.0`"),
            "{error}"
        );
    }
}

#[test]
fn a_shared_library_is_told_from_the_executable() {
    let maps = "55d0-55e0 r-xp 00001000 fd:00 42    /usr/bin/agent fips (deleted)\n\
                7f00-7f10 r-xp 00000000 fd:00 43 /usr/lib/libaws_lc_fips_crypto.so\n\
                7f10-7f20 rw-p 00000000 00:00 0 \n";
    assert_eq!(mapped_file(maps, 0x55d1), Some("/usr/bin/agent fips (deleted)"));
    assert_eq!(
        mapped_file(maps, 0x7f00),
        Some("/usr/lib/libaws_lc_fips_crypto.so")
    );
    assert_eq!(mapped_file(maps, 0x55e0), None);

    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        linked_into(dir.path()),
        Err(ModuleError::Unlocated { .. })
    ));
    std::os::unix::fs::symlink("/usr/bin/other", dir.path().join("exe")).unwrap();
    fs::copy("/proc/self/maps", dir.path().join("maps")).unwrap();
    assert!(
        linked_into(dir.path()).unwrap().is_some(),
        "a module outside the program was not noticed"
    );
}

#[test]
fn the_status_is_told_without_the_bare_word() {
    let status = start().unwrap().with_policy(TlsPolicy::Fips);
    let text = status.to_string();
    for line in [
        "module version: AWS-LC FIPS 3.1.0, static",
        "CMVP certificate: #5314",
        "integrity test: passed",
        "tested operational environment: ",
        "TLS groups: SecP256r1MLKEM768, X25519MLKEM768, secp256r1, secp384r1",
        "crates: aws-lc-fips-sys 0.13.11",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    for bare in [
        "FIPS: ",
        "FIPS mode",
        "FIPS compliant",
        "FIPS enabled",
        "validated",
    ] {
        assert!(!text.contains(bare), "{bare} in\n{text}");
    }
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<ModuleStatus>(&json).unwrap(), status);
}

#[test]
fn crate_versions_are_those_of_the_lock_file() {
    let lock = include_str!("../../../../Cargo.lock");
    for (name, version) in CRATES {
        assert!(
            lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")),
            "{name} {version}"
        );
    }
}

#[test]
fn tested_environments_are_those_of_the_certificate_and_no_others() {
    let al2023 = "ID=\"amzn\"\nVERSION_ID=\"2023\"\nPRETTY_NAME=\"Amazon Linux 2023.6\"\n";
    let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n";
    let xeon = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz\n";
    let other = "model name\t: Intel(R) Xeon(R) Platinum 8488C\n";
    let neoverse = "CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n";
    let cases = [
        (al2023, xeon, "Amazon EC2", true),
        (al2023, neoverse, "Amazon EC2", true),
        (al2023, neoverse, "NVIDIA", false),
        (al2023, other, "Amazon EC2", false),
        (debian, xeon, "Amazon EC2", false),
        ("ID=amzn\nVERSION_ID=2\n", xeon, "Amazon EC2", false),
        ("", "", "", false),
    ];
    for (release, cpuinfo, vendor, tested) in cases {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("etc/os-release", release),
            ("proc/cpuinfo", cpuinfo),
            ("sys/class/dmi/id/sys_vendor", vendor),
            ("proc/sys/crypto/fips_enabled", "1\n"),
        ] {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let environment = Environment::read(root.path());
        assert_eq!(environment.tested, tested, "{environment:?}");
        assert!(environment::kernel_fips_enabled(root.path()));
    }
    let nothing = tempfile::tempdir().unwrap();
    assert_eq!(Environment::read(nothing.path()).os, "unknown");
    assert!(!environment::kernel_fips_enabled(nothing.path()));
}
