//! The binary's command line: what a shell user sees.

use std::process::{Command, Output, Stdio};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-fips-proxy"));
    command.env_clear().stdin(Stdio::null());
    command
}

#[expect(clippy::unwrap_used, reason = "only called by tests")]
fn run(words: &[&str]) -> Output {
    program().args(words).output().unwrap()
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    for words in [
        ["config", "default"].as_slice(),
        &["version", "--json"],
        &["reference", "config"],
    ] {
        let mut child = program()
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && errors.is_empty(),
            "{words:?}: {:?} {errors}",
            output.status
        );
    }
}

#[test]
fn wrong_words_are_a_usage_error() {
    for words in [
        ["no-such-verb"].as_slice(),
        &["run", "--set", "site"],
        &["intercept", "sideways"],
        &["worker"],
    ] {
        let output = run(words);
        assert_eq!(
            output.status.code(),
            Some(64),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn a_bad_setting_is_a_configuration_error_wherever_it_comes_from() {
    let flag = run(&["config", "check", "--set", "intercept.classifier_priority=70000"]);
    assert_eq!(flag.status.code(), Some(78));
    let text = String::from_utf8_lossy(&flag.stderr);
    assert!(
        text.contains("intercept.classifier_priority") && text.contains("65535"),
        "{text}"
    );
    let variable = program()
        .args(["config", "check"])
        .env("DD_FIPS_PROXY_INTERCEPT_ENABLED", "perhaps")
        .output()
        .unwrap();
    assert_eq!(variable.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&variable.stderr).contains("DD_FIPS_PROXY_INTERCEPT_ENABLED"));
}

#[test]
fn nobody_at_the_admin_socket_is_unavailable() {
    let output = run(&["status", "--set", "status.socket=/nonexistent/admin.sock"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/admin.sock"));
}
