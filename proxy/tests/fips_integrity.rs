//! The acceptance test of the module's integrity check: an executable in which one byte of the module was changed does not run.

#![expect(
    clippy::unwrap_used,
    reason = "a test file; its helpers are not seen as tests"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use agent_fips_proxy::tls::module;

/// What `abort()` ends a process with.
const SIGABRT: i32 = 6;

#[test]
fn one_changed_byte_of_the_module_and_the_program_does_not_run() {
    // Keeps the module in this executable, and shows that it is sound as it is.
    assert_eq!(module::start().unwrap().version, "AWS-LC FIPS 3.1.0");

    // A function of the module that nothing calls in the copy: only the integrity test can notice.
    let offset = file_offset(aws_lc_fips_sys::FIPS_service_indicator_before_call as *const () as usize);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let mut program = fs::read(std::env::current_exe().unwrap()).unwrap();

    let sound = run(&copy, &program);
    assert!(sound.status.success(), "an unchanged copy must run: {sound:?}");

    program[offset] ^= 1;
    let changed = run(&copy, &program);
    assert_eq!(changed.status.signal(), Some(SIGABRT), "{changed:?}");
    assert!(
        changed.stdout.is_empty(),
        "it stopped before it did anything: {changed:?}"
    );
}

/// Runs `program`, which only lists its tests, from a file at `path`.
fn run(path: &Path, program: &[u8]) -> Output {
    let _ = fs::remove_file(path);
    fs::write(path, program).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    // In its own directory: where core dumps are on, they go there and away with it.
    Command::new(path)
        .arg("--list")
        .current_dir(path.parent().unwrap())
        .output()
        .unwrap()
}

/// Where in this executable's file the code at `address` stands, from `/proc/self/maps` (proc(5)).
fn file_offset(address: usize) -> usize {
    let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = fields.nth(1)?;
        let (start, end) = (number(start), number(end));
        (start..end)
            .contains(&address)
            .then(|| address - start + number(offset))
    });
    found.unwrap()
}
