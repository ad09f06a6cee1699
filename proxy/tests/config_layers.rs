//! Configuration: what each layer does to the others, what a reload follows, and how it is told to people.

#![expect(
    clippy::unwrap_used,
    reason = "a test file; its helpers are not seen as tests"
)]

#[path = "config/place.rs"]
mod place;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::config::keys::{self, TABLE};
use agent_fips_proxy::config::{
    Datapath, Inputs, Loaded, OnFailure, Reloader, Source, TlsPolicy, default_file, load, reference, show,
};
use proptest::prelude::*;

// --- What is told.

#[test]
fn the_default_file_is_this() {
    insta::assert_snapshot!(default_file());
}

#[test]
fn the_reference_is_this() {
    insta::assert_snapshot!(reference());
}

#[test]
fn show_tells_every_value_with_its_source() {
    let mut place = Place::new();
    place.file("site: ddog-gov.com\nlog: {level: debug}\nstatus:\n  address: 0.0.0.0\n");
    place.env_file("# from the package\nDD_FIPS_PROXY_INTERCEPT_ENABLED=false\n");
    place.variable("DD_FIPS_PROXY_LOG_FORMAT", "json");
    place.flag("worker.threads", "2");
    let text = show(&place.load()).replace(&*place.dir.path().to_string_lossy(), "/dir");
    insta::assert_snapshot!(text);
}

#[test]
fn the_default_file_sets_nothing_and_says_the_defaults() {
    let mut place = Place::new();
    place.file(&default_file());
    let as_written = place.load();
    assert_eq!(as_written.config, Place::new().load().config);
    assert!(
        as_written
            .settings
            .iter()
            .all(|setting| setting.source == Source::Default)
    );

    // With every key taken out of its comment, every key is set, and to the same.
    place.file(
        &default_file()
            .replace("#", "")
            .lines()
            .filter(|line| is_setting(line))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    let mut uncommented = place.load();
    assert!(
        uncommented
            .settings
            .iter()
            .all(|setting| matches!(setting.source, Source::File { .. }))
    );
    assert!(uncommented.config.intercept.requested);
    uncommented.config.intercept.requested = false;
    uncommented.config.worker.threads = as_written.config.worker.threads;
    assert_eq!(uncommented.config, as_written.config);
}

/// A heading or a key, and not a sentence.
fn is_setting(line: &str) -> bool {
    line.trim_start().split_once(':').is_some_and(|(name, rest)| {
        name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            && (rest.is_empty() || !rest.contains(", else") && !rest.ends_with('.'))
    })
}

#[test]
fn every_key_says_what_it_is() {
    for key in TABLE {
        for text in [key.accepted, key.effect, key.who] {
            assert!(!text.is_empty() && !text.contains('|'), "{}: {text:?}", key.path);
        }
        assert!(key.effect.ends_with('.'), "{}", key.path);
    }
}

// --- The layers.

#[test]
fn without_any_layer_the_defaults_hold() {
    let loaded = Place::new().load();
    let config = &loaded.config;
    assert_eq!(config.site.as_str(), "datadoghq.com");
    assert_eq!(
        (
            config.explicit.port_range_start,
            config.status.port,
            config.upstream.port
        ),
        (9803, 9803, 443)
    );
    assert_eq!(config.upstream.tls_policy, TlsPolicy::Fips);
    assert_eq!(config.intercept.on_failure, OnFailure::Closed);
    assert_eq!(config.intercept.datapath, Datapath::Auto);
    assert!(config.intercept.enabled && !config.intercept.requested && config.explicit.enabled);
    assert_eq!(config.upstream.pool_idle_timeout, Duration::from_secs(50));
    assert_eq!(config.limits.drain_timeout, Duration::from_secs(20));
    assert!((1..=2).contains(&config.worker.threads));
    assert_eq!(loaded.settings.len(), TABLE.len());
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn a_whole_file_is_read() {
    let mut place = Place::new();
    place.file(
        r#"
site: US5.datadoghq.com.
log: {level: "info,agent_fips_proxy::relay=debug", format: json, access: true}
explicit: {enabled: true, local_address: "::1", port_range_start: 10000}
intercept:
  enabled: true
  datapath: cgroup
  agents: {cgroups: [/system.slice/agent.service, "/kubepods*/*"], pods: {label_selector: "agent.datadoghq.com/component=agent"}}
  ports: [80, 443, 8080]
  cidrs: [10.20.0.0/16, 2001:db8::/32, 203.0.113.9]
  on_failure: open
  mark: {value: 0x00d00000, mask: 0x00f00000}
upstream:
  ca_file: ~
  tls_policy: strict
  allow_private: [10.0.0.0/8]
  endpoints: {metrics: "vpce-1.example.com:8443", logs: "10.1.2.3", traces: "[2001:db8::1]:444"}
  connect_timeout: 1500ms
  response_timeout: 2m
status: {port: 9000}
"#,
    );
    let config = place.load().config;
    assert_eq!(config.site.as_str(), "us5.datadoghq.com");
    assert_eq!(config.intercept.ports, [80, 443, 8080]);
    assert_eq!(config.intercept.cidrs.len(), 3);
    assert_eq!(config.intercept.datapath, Datapath::Cgroup);
    assert_eq!(config.upstream.endpoints[&Product::Metrics].port, Some(8443));
    assert_eq!(config.upstream.endpoints[&Product::Logs].host, "10.1.2.3");
    assert_eq!(config.upstream.endpoints[&Product::Traces].host, "2001:db8::1");
    assert_eq!(config.upstream.connect_timeout, Duration::from_millis(1500));
    assert_eq!(config.upstream.response_timeout, Duration::from_secs(120));
    assert_eq!(
        (config.explicit.port_range_start, config.status.port),
        (10000, 9000)
    );
    // The master sends it to the worker as JSON.
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(
        serde_json::from_str::<agent_fips_proxy::config::Config>(&json).unwrap(),
        config
    );
}

#[test]
fn an_empty_file_and_empty_sections_set_nothing() {
    for text in [
        "",
        "# nothing\n",
        "---\n",
        "log:\nintercept:\n  agents:\n    pods:\n",
    ] {
        let mut place = Place::new();
        place.file(text);
        assert_eq!(place.load().config, Place::new().load().config, "{text:?}");
    }
}

#[test]
fn lists_and_maps_are_written_with_commas_in_variables_and_flags() {
    let mut place = Place::new();
    place.variable("DD_FIPS_PROXY_INTERCEPT_PORTS", "80, 8080");
    place.variable("DD_FIPS_PROXY_INTERCEPT_CIDRS", "");
    place.variable("DD_FIPS_PROXY_UPSTREAM_CA_FILE", "");
    place.flag(
        "upstream.endpoints",
        "metrics=a.example.com,logs=[2001:db8::2]:443",
    );
    let config = place.load().config;
    assert_eq!(config.intercept.ports, [80, 8080]);
    assert!(config.intercept.cidrs.is_empty() && config.upstream.ca_file.is_none());
    assert_eq!(config.upstream.endpoints.len(), 2);
}

#[test]
fn the_status_port_follows_the_range_unless_it_is_set() {
    let mut place = Place::new();
    place.flag("explicit.port_range_start", "10000");
    let loaded = place.load();
    assert_eq!(loaded.config.status.port, 10000);
    assert!(matches!(source(&loaded, "status.port"), Source::Flag { .. }));
    place.file("status: {port: 9000}\n");
    let loaded = place.load();
    assert_eq!(loaded.config.status.port, 9000);
    assert!(matches!(source(&loaded, "status.port"), Source::File { .. }));
}

#[test]
fn interception_is_requested_by_whoever_sets_it() {
    assert!(!Place::new().load().config.intercept.requested);
    for value in ["true", "false"] {
        let mut place = Place::new();
        place.variable("DD_FIPS_PROXY_INTERCEPT_ENABLED", value);
        assert!(place.load().config.intercept.requested);
    }
    let mut place = Place::new();
    place.file("intercept: {enabled: true}");
    assert!(place.load().config.intercept.requested);
}

#[test]
fn the_agents_own_variables_stand_in_and_empty_ones_do_not_count() {
    let mut place = Place::new();
    place.variable("DD_SITE", "datadoghq.eu");
    place.variable("DD_FIPS_PORT_RANGE_START", "");
    place.variable("DD_API_KEY", "0123456789abcdef");
    let loaded = place.load();
    assert_eq!(loaded.config.site.as_str(), "datadoghq.eu");
    assert_eq!(
        source(&loaded, "site"),
        Source::Environment {
            variable: "DD_SITE".to_owned()
        }
    );
    assert_eq!(loaded.config.explicit.port_range_start, 9803);
    // Replaced, it is none of our business.
    place.variable("DD_SITE", "nonsense");
    place.file("site: datad0g.com\n");
    assert_eq!(place.load().config.site.as_str(), "datad0g.com");
}

#[test]
fn service_links_of_kubernetes_are_nobodys_mistake() {
    let mut place = Place::new();
    for (name, value) in [
        ("PORT", "tcp://10.0.0.1:9803"),
        ("PORT_9803_TCP_ADDR", "10.0.0.1"),
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "9803"),
        ("SERVICE_PORT_STATUS", "9803"),
    ] {
        place.variable(&format!("DD_FIPS_PROXY_{name}"), value);
    }
    assert_eq!(place.load().config, Place::new().load().config);
    place.variable("DD_FIPS_PROXY_PORT_RANGE", "1");
    assert!(load(&place.inputs).is_err());
}

#[test]
fn clear_text_on_the_network_is_warned_about() {
    let mut place = Place::new();
    place.file("explicit: {local_address: 0.0.0.0}\nstatus: {address: 203.0.113.5, port: 9000}\n");
    let warnings = place.load().warnings;
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings[0].contains("explicit.local_address") && warnings[0].contains("clear text"),
        "{}",
        warnings[0]
    );
    assert!(
        warnings[1].contains("status.address") && warnings[1].contains(":2:"),
        "{}",
        warnings[1]
    );
    place.file("explicit: {local_address: 127.0.0.9}\nstatus: {address: \"::1\"}\n");
    assert!(place.load().warnings.is_empty());
}

// --- Reload.

#[test]
fn the_way_out_and_whom_we_trust_is_read_and_told_without_secrets() {
    let mut place = Place::new();
    let folder = place.dir.path().to_owned();
    let secret = |name: &str| {
        let path = folder.join(name);
        fs::write(&path, "agent:hunter2").unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let (key, credentials) = (secret("us.key"), secret("credentials"));
    let certificate = folder.join("us.pem");
    let ours = rcgen::generate_simple_self_signed(vec!["us.example".to_owned()]).unwrap();
    fs::write(&certificate, ours.cert.pem()).unwrap();
    place.file(&format!(
        r#"
upstream:
  crl_dir: {dir}
  crl_policy: hard_fail
  pins: [47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=, "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
  client_certificate_file: {certificate}
  client_key_file: {key}
  proxy:
    url: http://Proxy.Example.net:3128/
    credentials_file: {credentials}
    ca_file: {certificate}
    no_proxy: [.example.net, 10.0.0.0/8]
    products: [logs, traces]
"#,
        dir = folder.display(),
        certificate = certificate.display(),
        key = key.display(),
        credentials = credentials.display(),
    ));
    let loaded = place.load();
    let upstream = &loaded.config.upstream;
    assert_eq!(upstream.pins.len(), 2);
    assert_eq!(upstream.proxy.products, [Product::Logs, Product::Traces]);
    let text = show(&loaded);
    assert!(!text.contains("hunter2"), "{text}");
    for part in [
        "upstream.proxy.url",
        r#""http://proxy.example.net:3128""#,
        r#"[".example.net", 10.0.0.0/8]"#,
        "[logs, traces]",
        "hard_fail",
        "us.key",
        "upstream.proxy.credentials_file",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let warnings = loaded.warnings.join("\n");
    assert!(
        warnings.contains("the credentials go to the proxy in clear text")
            && warnings.contains("upstream.proxy.ca_file")
            && warnings.contains("is http"),
        "{warnings}"
    );
    // The master hands it to the worker so.
    let json = serde_json::to_string(&loaded.config).unwrap();
    assert_eq!(
        serde_json::from_str::<agent_fips_proxy::config::Config>(&json).unwrap(),
        loaded.config
    );

    // Switched off for a while: what belongs to it may stay, and is told.
    place.flag("upstream.proxy.url", "");
    let loaded = place.load();
    assert_eq!(loaded.config.upstream.proxy.url, None);
    assert!(
        loaded.warnings.len() == 4
            && loaded
                .warnings
                .iter()
                .all(|w| w.contains("no effect without upstream.proxy.url")),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn a_variable_from_the_environment_file_follows_it() {
    const VARIABLE: &str = "DD_FIPS_PROXY_INTERCEPT_ENABLED";
    let mut place = Place::new();
    place.env_file("DD_FIPS_PROXY_INTERCEPT_ENABLED=true\n");
    // As systemd does it: the process was started with the file's value.
    place.variable(VARIABLE, "true");
    let mut reloader = Reloader::new(place.inputs.clone());
    let first = reloader.load().unwrap();
    assert!(first.config.intercept.enabled);
    assert!(matches!(
        source(&first, "intercept.enabled"),
        Source::EnvironmentFile { line: 1, .. }
    ));

    place.env_file("# off for tonight\nDD_FIPS_PROXY_INTERCEPT_ENABLED=false\n");
    let changed = reloader.reload().unwrap();
    assert!(!changed.config.intercept.enabled);
    assert!(matches!(
        source(&changed, "intercept.enabled"),
        Source::EnvironmentFile { line: 2, .. }
    ));

    place.env_file("");
    let removed = reloader.reload().unwrap();
    assert!(removed.config.intercept.enabled && !removed.config.intercept.requested);
    assert_eq!(source(&removed, "intercept.enabled"), Source::Default);

    place.env_file("DD_FIPS_PROXY_LOG_LEVEL=debug\n");
    assert_eq!(
        reloader.reload().unwrap().config.log.level,
        "debug",
        "a variable that is new in the file"
    );

    fs::remove_file(&place.inputs.defaults.env_file).unwrap();
    assert_eq!(reloader.reload().unwrap().config.log.level, "info");
}

#[test]
fn a_variable_from_elsewhere_stays() {
    let mut place = Place::new();
    place.env_file("DD_FIPS_PROXY_LOG_LEVEL=warn\n");
    place.variable("DD_FIPS_PROXY_LOG_LEVEL", "error");
    let mut reloader = Reloader::new(place.inputs.clone());
    assert_eq!(reloader.load().unwrap().config.log.level, "error");
    place.env_file("DD_FIPS_PROXY_LOG_LEVEL=error\n");
    assert_eq!(reloader.reload().unwrap().config.log.level, "error");
    place.env_file("DD_FIPS_PROXY_LOG_LEVEL=trace\n");
    let loaded = reloader.reload().unwrap();
    assert_eq!(loaded.config.log.level, "error");
    assert!(matches!(source(&loaded, "log.level"), Source::Environment { .. }));
}

#[test]
fn a_reload_that_fails_names_the_trouble_and_the_next_one_works() {
    let mut place = Place::new();
    place.file("log: {level: info}\n");
    let mut reloader = Reloader::new(place.inputs.clone());
    reloader.load().unwrap();
    place.file("log: {level: loud}\n");
    assert!(reloader.reload().unwrap_err().to_string().contains("log.level"));
    place.file("log: {level: debug}\n");
    assert_eq!(reloader.reload().unwrap().config.log.level, "debug");
}

#[test]
fn the_environment_file_is_read_as_systemd_reads_it() {
    let mut place = Place::new();
    place.env_file(
        "# comment\n; comment\n\n  export DD_FIPS_PROXY_SITE='ddog-gov.com'\nDD_FIPS_PROXY_LOG_LEVEL=\"de\\bug\"\n\
         DD_FIPS_PROXY_LOG_FORMAT = json \nOTHER=\"a b # c\"\nDD_FIPS_PROXY_LOG_FORMAT=text\n",
    );
    let loaded = place.load();
    assert_eq!(loaded.config.site.as_str(), "ddog-gov.com");
    assert_eq!(loaded.config.log.level, "debug");
    assert!(
        matches!(
            source(&loaded, "log.format"),
            Source::EnvironmentFile { line: 8, .. }
        ),
        "the last one counts"
    );
}

// --- Properties.

/// For some keys, values as they are written on one line and as `show` tells them, one for each layer.
const SAMPLES: &[(&str, [(&str, &str); 5])] = &[
    (
        "site",
        [
            ("a.com", "a.com"),
            ("b.com", "b.com"),
            ("c.com", "c.com"),
            ("d.com", "d.com"),
            ("e.com", "e.com"),
        ],
    ),
    (
        "explicit.port_range_start",
        [
            ("1000", "1000"),
            ("2000", "2000"),
            ("3000", "3000"),
            ("4000", "4000"),
            ("0x1388", "5000"),
        ],
    ),
    (
        "explicit.local_address",
        [
            ("127.0.0.2", "127.0.0.2"),
            ("127.0.0.3", "127.0.0.3"),
            ("::1", "\"::1\""),
            ("[::1]", "\"::1\""),
            ("LOCALHOST", "localhost"),
        ],
    ),
    (
        "upstream.connect_timeout",
        [
            ("1s", "1s"),
            ("200ms", "200ms"),
            ("1m", "60s"),
            ("1000ms", "1s"),
            ("59s", "59s"),
        ],
    ),
    (
        "intercept.ports",
        [
            ("1", "[1]"),
            ("2,3", "[2, 3]"),
            ("4", "[4]"),
            ("5", "[5]"),
            ("6,7", "[6, 7]"),
        ],
    ),
    (
        "intercept.classifier_priority",
        [
            ("1", "1"),
            ("4", "4"),
            ("65535", "65535"),
            ("11", "11"),
            ("9", "9"),
        ],
    ),
    (
        "log.level",
        [
            ("off", "off"),
            ("warn", "warn"),
            ("debug", "debug"),
            ("trace", "trace"),
            ("error", "error"),
        ],
    ),
];

proptest! {
    #[test]
    fn property_the_highest_layer_wins_and_is_named(sample in 0..SAMPLES.len(), layers in 0u8..32) {
        let (path, values) = SAMPLES[sample];
        let key = keys::find(path).unwrap();
        let on = |layer: u8| layers & (1 << layer) != 0;
        let mut place = Place::new();
        let mut expected = None;
        if on(0) && let Some(fallback) = key.fallback {
            place.variable(fallback, values[0].0);
            expected = Some((values[0].1, Source::Environment { variable: fallback.to_owned() }));
        }
        if on(1) {
            let written = if path == "intercept.ports" { format!("[{}]", values[1].0) } else { values[1].0.to_owned() };
            place.file(&match key.split() {
                ("", name) => format!("\n{name}: {written}\n"),
                (section, name) => format!("{section}:\n  {name}: {written}\n"),
            });
            let (section, name) = key.split();
            let indent = if section.is_empty() { 0 } else { 2 };
            let column = (indent + name.len() + 3) as u64;
            expected = Some((values[1].1, Source::File { path: place.inputs.defaults.file.clone(), line: 2, column }));
        }
        if on(2) {
            place.env_file(&format!("{}={}\n", key.variable(), values[2].0));
            let path = place.inputs.defaults.env_file.clone();
            expected = Some((values[2].1, Source::EnvironmentFile { variable: key.variable(), path, line: 1 }));
        }
        if on(3) {
            place.variable(&key.variable(), values[3].0);
            expected = Some((values[3].1, Source::Environment { variable: key.variable() }));
        }
        if on(4) {
            place.flag(path, values[4].0);
            expected = Some((values[4].1, Source::Flag { key: path.to_owned() }));
        }
        let loaded = place.load();
        let setting = loaded.settings.iter().find(|setting| setting.key == path).unwrap();
        match expected {
            Some((value, source)) => prop_assert_eq!((setting.value.as_str(), &setting.source), (value, &source)),
            None => prop_assert_eq!(&setting.source, &Source::Default),
        }
        // The status port follows the range.
        let follows = path == "explicit.port_range_start";
        let others = loaded.settings.iter().filter(|other| other.key != path && !(follows && other.key == "status.port"));
        prop_assert!(others.into_iter().all(|other| other.source == Source::Default));
    }

    #[test]
    fn property_any_text_is_a_configuration_or_an_error_with_a_place(text in "[a-z:_ \\[\\]{},.&*!<\n#'\"0-9-]{0,120}") {
        let mut place = Place::new();
        place.file(&text);
        if let Err(errors) = load(&place.inputs) {
            for error in errors.0 {
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
                let placed = matches!(&error.source, Source::File { line, .. } if *line > 0);
                prop_assert!(placed, "{}", error);
            }
        }
    }

    #[test]
    fn property_any_value_of_any_variable_is_taken_or_refused(index in 0..TABLE.len(), value in "\\PC{0,40}") {
        let mut place = Place::new();
        place.variable(&TABLE[index].variable(), &value);
        if let Err(errors) = load(&place.inputs) {
            prop_assert!(!errors.0.is_empty());
            prop_assert!(errors.0.iter().any(|error| error.key.contains(TABLE[index].path)), "{}", errors);
        }
    }
}

// --- A place of its own for every test.

struct Place {
    dir: tempfile::TempDir,
    inputs: Inputs,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inputs = place::inputs(dir.path());
        Self { dir, inputs }
    }

    fn file(&mut self, text: &str) -> PathBuf {
        fs::write(&self.inputs.defaults.file, text).unwrap();
        self.inputs.defaults.file.clone()
    }

    fn env_file(&mut self, text: &str) {
        fs::write(&self.inputs.defaults.env_file, text).unwrap();
    }

    fn variable(&mut self, name: &str, value: &str) {
        self.inputs.environment.insert(name.to_owned(), value.to_owned());
    }

    fn flag(&mut self, key: &str, value: &str) {
        self.inputs.flags.push((key.to_owned(), value.to_owned()));
    }

    fn load(&self) -> Loaded {
        load(&self.inputs).unwrap()
    }
}

fn source(loaded: &Loaded, key: &str) -> Source {
    loaded
        .settings
        .iter()
        .find(|setting| setting.key == key)
        .unwrap()
        .source
        .clone()
}
