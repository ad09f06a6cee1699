//! Globs against examples, against a slow reference matcher, and the scan against a plain directory tree.

use proptest::prelude::*;

use super::*;

fn glob(text: &str) -> CgroupGlob {
    CgroupGlob::parse(text).unwrap()
}

#[test]
fn examples() {
    let unit = glob("/system.slice/datadog-agent*.service");
    for path in [
        "/system.slice/datadog-agent.service",
        "system.slice/datadog-agent-trace.service",
        "/system.slice/datadog-agent-exp.service",
    ] {
        assert!(unit.matches(path), "{path}");
    }
    for path in [
        "/system.slice/datadog-agent.service/child",
        "/user.slice/datadog-agent.service",
        "/system.slice/datadog-agent.socket",
        "/system.slice",
        "/",
        "/system.slice/x/datadog-agent.service",
    ] {
        assert!(!unit.matches(path), "{path}");
    }
    let deep = glob("/kubepods.slice/**/cri-*.scope");
    assert!(deep.matches("/kubepods.slice/cri-1.scope"), "`**` may be nothing");
    assert!(deep.matches("/kubepods.slice/a/b/c/cri-1.scope"));
    assert!(!deep.matches("/other/a/cri-1.scope"));
    assert!(glob("/a/**").matches("/a/b/c"));
    assert!(glob("/a/**").matches("/a"));
    assert!(glob("/a*b*c").matches("/aXbbYc"));
    assert!(!glob("/a*b*c").matches("/aXc"));
}

#[test]
fn refused() {
    for (text, part) in [
        ("system.slice/x", "begin with `/`"),
        ("/", "empty"),
        ("", "begin with `/`"),
        ("/a//b", "empty"),
        ("/a/../b", "`..`"),
        ("/a/b**", "whole"),
    ] {
        let error = CgroupGlob::parse(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

/// The textbook definition, exponential but obviously right.
fn reference(parts: &[Part], names: &[&str]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((Part::Any, rest)), None) => reference(rest, &[]),
        (Some((Part::Any, rest)), Some((_, tail))) => reference(rest, names) || reference(parts, tail),
        (Some((Part::Name(pattern), rest)), Some((name, tail))) => {
            reference_component(pattern.as_bytes(), name.as_bytes()) && reference(rest, tail)
        }
        _ => false,
    }
}

fn reference_component(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if reference_component(rest, name) => true,
        (Some((b'*', _)), Some((_, tail))) => reference_component(pattern, tail),
        (Some((p, rest)), Some((n, tail))) => p == n && reference_component(rest, tail),
        _ => false,
    }
}

proptest! {
    #[test]
    fn agrees_with_the_definition(pattern in "(/([ab*]{1,4}|\\*\\*)){1,4}", path in "(/[ab]{1,4}){1,5}") {
        let Ok(glob) = CgroupGlob::parse(&pattern) else {
            // `**` inside a component.
            return Ok(());
        };
        let names: Vec<&str> = path.split('/').skip(1).collect();
        prop_assert_eq!(glob.matches(&path), reference(&glob.parts, &names), "{} on {}", pattern, path);
    }

    /// Whatever the text: an error or a glob, never a panic.
    #[test]
    fn any_text_is_read(text in ".{0,40}", path in ".{0,40}") {
        if let Ok(glob) = CgroupGlob::parse(&text) {
            let _ = glob.matches(&path);
        }
    }
}
