//! Reading the Agent's settings: layers, words for true, broken and unreadable files, nothing that could be secret.

use super::*;

const PATHS: &[&str] = &["logs_enabled", "logs_config.use_tcp", "site", "list"];

fn of(yaml: &str) -> Settings {
    Settings::of(yaml, "", PATHS).unwrap_or_else(|problem| panic!("{yaml}: {}", problem.detail))
}

/// A host with these files.
fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn read(folder: &tempfile::TempDir) -> (Settings, Vec<Problem>) {
    Settings::read(&Place::new(folder.path()), PATHS).unwrap()
}

#[test]
fn values_are_what_the_agent_takes_them_for() {
    for yes in ["true", "True", "yes", "on", "1", "\"true\"", "t", "Y"] {
        assert!(of(&format!("logs_enabled: {yes}")).is_on("logs_enabled"), "{yes}");
    }
    for no in [
        "false",
        "no",
        "off",
        "0",
        "\"\"",
        "null",
        "",
        "perhaps",
        "[true]",
        "{a: true}",
    ] {
        assert!(!of(&format!("logs_enabled: {no}")).is_on("logs_enabled"), "{no}");
    }
    for (value, items) in [
        ("[]", 0),
        ("[a, b]", 2),
        ("'[{\"Host\": \"x\"}]'", 1),
        ("'not json'", 0),
        ("{a: b}", 0),
        ("7", 0),
    ] {
        assert_eq!(of(&format!("list: {value}")).items("list"), items, "{value}");
    }
}

#[test]
fn the_file_is_any_yaml_that_the_agent_takes() {
    for empty in ["", "# comments\n\n# only\n", "---\n", "null"] {
        assert!(of(empty).text("site").is_none(), "{empty:?}");
    }
    let settings = of(
        "Logs_Config: &a\n  USE_TCP: true\nother:\n  <<: *a\n  8125: x\nsite: a.example\nsite: b.example\n",
    );
    assert!(settings.is_on("logs_config.use_tcp"), "keys have no case");
    assert_eq!(
        settings.text("site").as_deref(),
        Some("b.example"),
        "the last one counts"
    );
    assert_eq!(of("a: 1").text("a.b.c"), None);
    // The template that comes with the Agent: thousands of lines of comments.
    let template = format!(
        "api_key: x\n{}site: s.example\n",
        "# a comment\n#\n".repeat(20_000)
    );
    assert_eq!(of(&template).text("site").as_deref(), Some("s.example"));
}

#[test]
fn a_broken_file_is_told_by_its_place_alone() {
    let secret = "0123456789abcdef0123456789abcdef";
    for text in [
        format!("site: a\napi_key: [{secret}\n"),
        format!("site: a\napi_key: \"{secret}\n"),
        format!("site: a\n  api_key: {secret}\n"),
        format!("site: a\napi_key: *{secret}\n"),
        format!("site: a\napi_key: !!int {secret}\n"),
        format!("- {secret}\n"),
        secret.to_owned(),
        format!("a: b\n---\nsite: {secret}\n"),
        format!("a: &a [*a, *a]\nb: {secret}\n\t"),
    ] {
        match Settings::of(&text, "", PATHS) {
            Err(problem) => {
                assert!(problem.detail.contains(FILE), "{}", problem.detail);
                assert!(!problem.detail.contains(secret), "{}", problem.detail);
                assert!(!problem.detail.contains('\n'), "{}", problem.detail);
            }
            Ok(_) => panic!("{text} was read"),
        }
    }
    let problem = Settings::of("site: a\napi_key: \"x\n", "", PATHS).err().unwrap();
    assert!(
        problem.detail.contains("not valid YAML in line "),
        "{}",
        problem.detail
    );
}

#[test]
fn layers_are_those_of_the_agent_and_of_systemd() {
    let unit = "[Service]\nEnvironment=DD_SITE=unit.example DD_API_KEY=secret\n";
    let drop_in = "[Service]\nEnvironment=\"DD_SITE=drop.example\" 'DD_LIST=[1, 2]' A=\"b \\\" c\"\n";
    let host = host(&[
        (
            "etc/datadog-agent/datadog.yaml",
            "site: file.example\nlogs_enabled: true\n",
        ),
        ("usr/lib/systemd/system/datadog-agent.service", unit),
        // Hidden by the one below: the same name in a folder that comes before.
        (
            "usr/lib/systemd/system/datadog-agent.service.d/10-a.conf",
            "Environment=DD_LOGS_ENABLED=false\n",
        ),
        ("etc/systemd/system/datadog-agent.service.d/10-a.conf", drop_in),
        (
            "etc/systemd/system/datadog-agent.service.d/20-b.conf.off",
            "Environment=DD_SITE=off.example\n",
        ),
    ]);
    let (settings, problems) = read(&host);
    assert_eq!(problems, []);
    assert_eq!(settings.text("site").as_deref(), Some("drop.example"));
    assert_eq!(settings.origin("site"), "DD_SITE (datadog-agent.service)");
    assert_eq!(settings.items("list"), 2);
    assert!(settings.is_on("logs_enabled"));
    assert_eq!(settings.origin("logs_enabled"), "logs_enabled");
    // What was not asked for is not kept.
    assert_eq!(
        settings.variables.keys().collect::<Vec<_>>(),
        ["DD_LIST", "DD_SITE"]
    );

    fs::write(
        host.path().join("etc/datadog-agent/environment"),
        "# comment\nDD_SITE='environment.example'\nDD_LIST=\nDD_API_KEY=secret\n",
    )
    .unwrap();
    let (settings, _) = read(&host);
    assert_eq!(settings.text("site").as_deref(), Some("environment.example"));
    assert_eq!(
        settings.origin("site"),
        "DD_SITE (/etc/datadog-agent/environment)"
    );
    assert_eq!(settings.items("list"), 2, "an empty variable is none");
}

#[test]
fn what_cannot_be_read_is_said() {
    assert!(Settings::read(&Place::new(host(&[]).path()), PATHS).is_none());

    let host = host(&[
        ("etc/datadog-agent/datadog.yaml/x", ""),
        (
            "etc/datadog-agent/environment",
            "DD_SITE=a.example\n0123456789abcdef\n'\n",
        ),
    ]);
    let (settings, problems) = read(&host);
    let details: Vec<&str> = problems.iter().map(|problem| &*problem.detail).collect();
    assert_eq!(
        details,
        [
            "/etc/datadog-agent/environment: line 2 is not of the form NAME=value",
            "/etc/datadog-agent/datadog.yaml cannot be read: it is no regular file",
        ]
    );
    assert_eq!(settings.text("site").as_deref(), Some("a.example"));

    // A folder without files: an Agent whose settings are all defaults.
    fs::remove_dir_all(host.path().join("etc/datadog-agent/datadog.yaml")).unwrap();
    fs::remove_file(host.path().join("etc/datadog-agent/environment")).unwrap();
    assert_eq!(read(&host).1, []);

    let path = host.path().join("etc/datadog-agent/datadog.yaml");
    fs::write(&path, [0x66, 0xff, 0x6f]).unwrap();
    assert!(read(&host).1[0].detail.contains("UTF-8"));
    let file = fs::File::create(&path).unwrap();
    file.set_len(LARGEST + 1).unwrap();
    assert!(read(&host).1[0].detail.contains("more than 8 MiB"));
    // What the system refuses, root or not.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("datadog.yaml", &path).unwrap();
    assert!(
        read(&host).1[0].detail.contains("symbolic links"),
        "{:?}",
        read(&host).1
    );
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(
        read(&host).1[0].detail.contains("no regular file"),
        "a pipe is not waited for"
    );
}

#[test]
fn words_are_those_of_systemd() {
    let cases: [(&str, &[&str]); 6] = [
        ("", &[]),
        ("a b\tc", &["a", "b", "c"]),
        ("\"a b\" 'c d'", &["a b", "c d"]),
        ("A=\"b c\"", &["A=b c"]),
        ("a\\ b \"c\\\"d\"", &["a b", "c\"d"]),
        ("  x  \\", &["x"]),
    ];
    for (line, expected) in cases {
        assert_eq!(words(line), expected, "{line}");
    }
}
