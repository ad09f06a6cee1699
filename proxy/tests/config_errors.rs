//! Configuration: every mistake is found, all in one go, and each message names place, key, what is wrong and what is
//! accepted.

#![expect(
    clippy::unwrap_used,
    reason = "a test file; its helpers are not seen as tests"
)]

#[path = "config/place.rs"]
mod place;

use std::fs;

use agent_fips_proxy::config::{ConfigErrors, Inputs, load};

const RANGE_16: &str = "a number from 1 to 65535";
const DURATION: &str = "is not a duration: a whole number with its unit, as in 500ms, 5s or 1m; accepted: a duration from 100ms to 1m";

/// The file, `line:column` of the error, and the whole message after that.
const FILES: &[(&str, &str, &str)] = &[
    // Not YAML, or not ours.
    ("a: [1\n", "", "not valid YAML: "),
    ("log:\n\tlevel: info\n", "2:2", "not valid YAML: tabs disallowed"),
    (
        "site: a.com\n---\nsite: b.com\n",
        "",
        "not valid YAML: a second document begins here",
    ),
    ("log: *gone\n", "1:6", "not valid YAML: "),
    ("<<: {site: a.com}\n", "1:1", "not valid YAML: "),
    (
        "- site\n",
        "1:1",
        "a map of settings is expected here (`key: value`)",
    ),
    ("hello\n", "1:1", "a map of settings is expected here"),
    ("log: debug\n", "1:6", "log: a map of settings is expected here"),
    (
        "intercept:\n  agents: [a]\n",
        "2:11",
        "intercept.agents: a map of settings is expected here",
    ),
    // Unknown and repeated keys.
    (
        "sites: a.com\n",
        "1:1",
        "sites: there is no such key; did you mean `site`?",
    ),
    (
        "log:\n  levle: info\n",
        "2:3",
        "log.levle: there is no such key; did you mean `log.level`?",
    ),
    (
        "port_range_start: 1\n",
        "1:1",
        "port_range_start: there is no such key; did you mean `explicit.port_range_start`?",
    ),
    (
        "fips_mode_off: true\n",
        "1:1",
        "fips_mode_off: there is no such key; `agent-fips-proxy config default` shows all of them",
    ),
    (
        "upstream: {skip_ssl_validation: true}\n",
        "1:12",
        "upstream.skip_ssl_validation: there is no such key; ",
    ),
    (
        "site: a.com\nlog: {}\nsite: b.com\n",
        "3:1",
        "site: given twice in this section, first in line 1; keep one",
    ),
    (
        "log:\n  level: info\n  level: info\n",
        "3:3",
        "log.level: given twice in this section, first in line 2; keep one",
    ),
    // Wrong types.
    (
        "site: [a.com]\n",
        "1:7",
        "site: a single value is expected, not a list; accepted: a domain such as",
    ),
    (
        "site: {a: b}\n",
        "1:7",
        "site: a single value is expected, not a map; ",
    ),
    (
        "site:\n",
        "1:5",
        "site: a single value is expected, not nothing; ",
    ),
    ("site: \"\"\n", "1:7", "site: the value is empty; "),
    (
        "log: {access: yes}\n",
        "1:15",
        "log.access: `yes` is neither true nor false; accepted: true, false",
    ),
    (
        "log: {access: 1}\n",
        "1:15",
        "log.access: `1` is neither true nor false; accepted: true, false",
    ),
    (
        "intercept: {ports: 443}\n",
        "1:20",
        "intercept.ports: a list is expected, not a single value; accepted: a list of 1 to 16",
    ),
    (
        "upstream: {endpoints: [a]}\n",
        "1:23",
        "upstream.endpoints: a map is expected, not a list; accepted: a map of product",
    ),
    (
        "explicit: {port_range_start: 9803.5}\n",
        "1:30",
        "explicit.port_range_start: `9803.5` is not a whole number",
    ),
    // Values.
    ("site: com\n", "1:7", "site: `com` is not a site"),
    (
        "site: https://ddog-gov.com\n",
        "1:7",
        "site: `https://ddog-gov.com` is not a site",
    ),
    (
        "log: {level: loud}\n",
        "1:14",
        "log.level: `loud` is neither a level nor a list of directives; accepted: off, error, warn",
    ),
    (
        "log: {level: \"info,x=loud\"}\n",
        "1:14",
        "log.level: `info,x=loud` is neither a level nor a list of directives",
    ),
    (
        "log: {format: xml}\n",
        "1:15",
        "log.format: `xml` is not accepted; accepted: text, json",
    ),
    (
        "explicit: {local_address: agent}\n",
        "1:27",
        "explicit.local_address: `agent` is neither `localhost` nor an IP address",
    ),
    (
        "explicit: {port_range_start: 65521}\n",
        "1:30",
        "explicit.port_range_start: `65521` is not a whole number in the accepted range; \
      accepted: a port from 1 to 65520: the fifteen that follow belong to the products",
    ),
    (
        "explicit: {port_range_start: 0}\n",
        "1:30",
        "explicit.port_range_start: `0` is not a whole number in the accepted range",
    ),
    (
        "explicit: {port_range_start: 09803}\n",
        "1:30",
        "explicit.port_range_start: `09803` is not a whole number",
    ),
    (
        "intercept: {ports: []}\n",
        "1:20",
        "intercept.ports: 0 ports, of which 0 differ; accepted: a list of 1 to 16 ports",
    ),
    (
        "intercept: {ports: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}\n",
        "1:20",
        "intercept.ports: 17 ports, of which 17 differ",
    ),
    (
        "intercept: {ports: [80, 443, 80]}\n",
        "1:20",
        "intercept.ports: 3 ports, of which 2 differ",
    ),
    (
        "intercept:\n  ports:\n    - 80\n    - 0\n",
        "4:7",
        "intercept.ports: `0` is not a whole number in the accepted range",
    ),
    (
        "intercept: {cidrs: [10.0.0.1/8]}\n",
        "1:21",
        "intercept.cidrs: `10.0.0.1/8` has bits beyond its prefix; `10.0.0.0/8` is meant",
    ),
    (
        "intercept: {cidrs: [10.0.0.0/33]}\n",
        "1:21",
        "intercept.cidrs: `10.0.0.0/33` is not a network such as",
    ),
    (
        "intercept: {agents: {cgroups: [system.slice]}}\n",
        "1:32",
        "intercept.agents.cgroups: `system.slice` does not begin with `/`",
    ),
    (
        "intercept: {agents: {cgroups: [/a/../b]}}\n",
        "1:32",
        "intercept.agents.cgroups: `/a/../b` has an empty, `.` or `..` component",
    ),
    (
        "explicit: {allowed_cgroups: [/a/b**]}\n",
        "1:30",
        "explicit.allowed_cgroups: `/a/b**` has `**` inside a component; it must be a whole one",
    ),
    (
        "intercept: {on_failure: bypass}\n",
        "1:25",
        "intercept.on_failure: `bypass` is not accepted; accepted: closed, open",
    ),
    (
        "ca: {dir: relative}\n",
        "1:11",
        "ca.dir: `relative` is not an absolute path",
    ),
    (
        "ca: {validity_days: 366}\n",
        "1:21",
        "ca.validity_days: `366` is not a whole number in the accepted range; accepted: a number from 2 to 365",
    ),
    (
        "ca: {certificate_file: /etc/ca.pem}\n",
        "1:24",
        "ca.certificate_file and ca.key_file: one is set without the other",
    ),
    (
        "upstream: {tls_policy: off}\n",
        "1:24",
        "upstream.tls_policy: `off` is not accepted; accepted: fips, strict",
    ),
    (
        "upstream: {port: 70000}\n",
        "1:18",
        "upstream.port: `70000` is not a whole number in the accepted range; accepted: a port",
    ),
    ("upstream: {connect_timeout: 5}\n", "1:29", DURATION),
    ("upstream: {connect_timeout: 5 s}\n", "1:29", DURATION),
    ("upstream: {connect_timeout: -5s}\n", "1:29", DURATION),
    (
        "upstream: {connect_timeout: 0s}\n",
        "1:29",
        "upstream.connect_timeout: `0s` is out of the accepted range; accepted: a duration from",
    ),
    (
        "upstream: {connect_timeout: 99999999999999999999h}\n",
        "1:29",
        DURATION,
    ),
    (
        "upstream: {allow_private: [0.0.0.0/0]}\n",
        "1:28",
        "upstream.allow_private: `0.0.0.0/0` is too wide: name the networks",
    ),
    (
        "upstream: {allow_private: [\"::/0\"]}\n",
        "1:28",
        "upstream.allow_private: `::/0` is too wide",
    ),
    (
        "upstream: {endpoints: {metric: a.com}}\n",
        "1:24",
        "upstream.endpoints: `metric` is not a product; accepted: metrics, traces",
    ),
    (
        "upstream: {endpoints: {tcp_logs: a.com}}\n",
        "1:24",
        "upstream.endpoints: `tcp_logs` is not HTTP: it is passed through as it is",
    ),
    (
        "upstream: {endpoints: {metrics: \"a b\"}}\n",
        "1:33",
        "upstream.endpoints: `a b` is not host[:port]",
    ),
    (
        "upstream: {endpoints: {metrics: \"a.com:0\"}}\n",
        "1:33",
        "upstream.endpoints: `a.com:0` is not host[:port]",
    ),
    (
        "upstream: {endpoints: {metrics: \"http://a.com\"}}\n",
        "1:33",
        "upstream.endpoints: `http://a.com` is not host[:port]",
    ),
    (
        "upstream: {endpoints: {logs: a.com, logs: b.com}}\n",
        "1:37",
        "upstream.endpoints: `logs` is given twice",
    ),
    (
        "upstream: {ca_file: ca.pem}\n",
        "1:21",
        "upstream.ca_file: `ca.pem` is not an absolute path; accepted: an absolute path of a PEM",
    ),
    (
        "upstream: {ca_file: /does/not/exist.pem}\n",
        "1:21",
        "upstream.ca_file: /does/not/exist.pem: No such file or directory",
    ),
    (
        "upstream: {ca_file: /proc/self/status}\n",
        "1:21",
        "upstream.ca_file: /proc/self/status: it holds no PEM certificate",
    ),
    (
        "limits: {max_header_bytes: 4096}\n",
        "1:28",
        "limits.max_header_bytes: `4096` is not a whole number in the accepted range",
    ),
    (
        "limits: {max_connections: 1e3}\n",
        "1:27",
        "limits.max_connections: `1000.0` is not a whole number",
    ),
    (
        "status: {socket: admin.sock}\n",
        "1:18",
        "status.socket: `admin.sock` is not an absolute path",
    ),
    (
        "worker: {user: root}\n",
        "1:16",
        "worker.user: the worker must not be root; accepted: a user name, not root",
    ),
    (
        "worker: {threads: 0}\n",
        "1:19",
        "worker.threads: `0` is not a whole number in the accepted range; accepted: a number from 1 to 64",
    ),
    (
        "intercept: {datapath: xdp}\n",
        "1:23",
        "intercept.datapath: `xdp` is not accepted; accepted: auto, cgroup, tc",
    ),
    (
        "intercept: {https: decrypt}\n",
        "1:20",
        "intercept.https: `decrypt` is not accepted; accepted: auto, terminate, passthrough, refuse",
    ),
    (
        "intercept: {https_below_policy: allow}\n",
        "1:33",
        "intercept.https_below_policy: `allow` is not accepted; accepted: refuse, record",
    ),
    (
        "intercept: {https_passthrough_names: [node]}\n",
        "1:39",
        "intercept.https_passthrough_names: `node` is neither an intake name such as config.datadoghq.com",
    ),
    (
        "intercept: {https_passthrough_names: [\"process:a-name-too-long-by-far\"]}\n",
        "1:39",
        "names no process: 1 to 15 printable bytes are expected after `process:`",
    ),
    (
        "intercept: {https_passthrough_names: [config.example.org]}\n",
        "1:38",
        "`config.example.org` is no intake name of the site datadoghq.com, so it is never terminated",
    ),
    (
        "intercept: {datapath: cgroup, interfaces: [\"cali*\"]}\n",
        "1:43",
        "intercept.interfaces and intercept.datapath: interfaces are taken by the tc datapath only",
    ),
    (
        "intercept: {interfaces: [a-very-long-interface]}\n",
        "1:26",
        "intercept.interfaces: `a-very-long-interface` is not an interface name",
    ),
    ("intercept: {classifier_priority: 0}\n", "1:34", RANGE_16),
    ("intercept: {classifier_priority: -1}\n", "1:34", RANGE_16),
    ("intercept: {classifier_priority: 70000}\n", "1:34", RANGE_16),
    ("intercept: {classifier_priority: ten}\n", "1:34", RANGE_16),
    (
        "intercept: {classifier_attach: clsact}\n",
        "1:32",
        "intercept.classifier_attach: `clsact` is not accepted; accepted: auto, tcx",
    ),
    (
        "intercept: {mark: {value: 0x01d00000}}\n",
        "1:27",
        "intercept.mark.value and intercept.mark.mask: 0x01d00000/0x00f00000: the value has bits outside",
    ),
    (
        "intercept: {classifier_same_priority: append}\n",
        "1:39",
        "intercept.classifier_same_priority: `append` is not accepted; accepted: keep, prepend",
    ),
    (
        "intercept: {agents: {namespaces: [agent]}}\n",
        "1:35",
        "intercept.agents.namespaces: `agent` is not an absolute path",
    ),
    (
        "intercept: {agents: {pods: {node: no node}}}\n",
        "1:35",
        "intercept.agents.pods.node: `no node` is not a node name",
    ),
    (
        "intercept: {mark: {mask: 0}}\n",
        "1:26",
        "intercept.mark.mask: `0` is not a whole number in the accepted range",
    ),
    (
        "intercept: {agents: {pods: {label_selector: \"no selector\"}}}\n",
        "1:45",
        "`no selector` is not a label selector",
    ),
    // Pairs that cannot be.
    (
        "explicit: {enabled: false}\nintercept: {enabled: false}\n",
        "1:21",
        "explicit.enabled and intercept.enabled: both are false",
    ),
    (
        "intercept: {agents: {cgroups: [], pods: {api: off}}}\n",
        "1:31",
        "intercept.agents.cgroups and intercept.enabled: interception is on, but",
    ),
    (
        "status: {port: 9808}\n",
        "1:16",
        "status.port and explicit.port_range_start: 9808 is the port of the product logs (range from 9803)",
    ),
    (
        "status: {port: 9000, address: 127.0.0.1}\nexplicit: {port_range_start: 8999, local_address: 0.0.0.0}\n",
        "1:16",
        "status.port and explicit.port_range_start: 9000 is the port of the product metrics (range from 8999)",
    ),
    (
        "upstream: {endpoints: {metrics: 10.0.0.7}, allow_private: [10.1.0.0/16]}\n",
        "1:23",
        "upstream.endpoints and upstream.allow_private: metrics leads to 10.0.0.7, which is not public",
    ),
    (
        "upstream: {endpoints: {metrics: \"[::ffff:10.0.0.7]\"}}\n",
        "1:23",
        "upstream.endpoints and upstream.allow_private: metrics leads to ::ffff:10.0.0.7, which is not public",
    ),
    (
        "upstream: {endpoints: {metrics: 169.254.169.254}, allow_private: [10.0.0.0/8]}\n",
        "1:23",
        "metrics leads to 169.254.169.254, which is not public; add its network to upstream.allow_private",
    ),
    (
        "upstream: {allow_private: [\"::ffff:10.0.0.0/104\"]}\n",
        "1:28",
        "upstream.allow_private: `::ffff:10.0.0.0/104` is an IPv4 network in the clothes of IPv6; write it as IPv4",
    ),
    // Whom we trust.
    (
        "upstream: {crl_dir: crls}\n",
        "1:21",
        "upstream.crl_dir: `crls` is not an absolute path; accepted: an absolute path of a folder",
    ),
    (
        "upstream: {crl_dir: /does/not/exist}\n",
        "1:21",
        "upstream.crl_dir: /does/not/exist: No such file or directory",
    ),
    (
        "upstream: {crl_dir: /proc/self/status}\n",
        "1:21",
        "upstream.crl_dir: /proc/self/status: Not a directory",
    ),
    (
        "upstream: {crl_policy: ignore}\n",
        "1:24",
        "upstream.crl_policy: `ignore` is not accepted; accepted: soft_fail, hard_fail",
    ),
    (
        "upstream: {crl_policy: hard_fail}\n",
        "1:24",
        "upstream.crl_policy and upstream.crl_dir: hard_fail without revocation lists would refuse every intake",
    ),
    (
        "upstream: {pins: [abc]}\n",
        "1:19",
        "upstream.pins: `abc` is not the base64 of 32 bytes; accepted: a list of 2 to 32",
    ),
    (
        "upstream: {pins: [47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=]}\n",
        "1:18",
        "upstream.pins: there is only one pin; add one of a spare key",
    ),
    (
        "upstream:\n  pins:\n    - 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n    - sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
        "",
        "upstream.pins: there is only one pin",
    ),
    (
        "upstream: {client_key_file: /proc/self/status}\n",
        "1:29",
        "upstream.client_certificate_file and upstream.client_key_file: one is of no use without the other",
    ),
    (
        "upstream: {client_certificate_file: /proc/self/status}\n",
        "1:37",
        "upstream.client_certificate_file and upstream.client_key_file: one is of no use without the other",
    ),
    // The outbound proxy.
    (
        "upstream: {proxy: \"http://proxy.example.net:3128\"}\n",
        "1:19",
        "upstream.proxy: a map of settings is expected here",
    ),
    (
        "upstream: {proxy: {url: \"proxy.example.net:3128\"}}\n",
        "1:25",
        "upstream.proxy.url: it begins neither with http:// nor with https://; accepted: http://host:port",
    ),
    (
        "upstream: {proxy: {url: \"socks5://proxy.example.net:1080\"}}\n",
        "1:25",
        "upstream.proxy.url: it begins neither with http:// nor with https://",
    ),
    (
        "upstream: {proxy: {url: \"http://proxy.example.net\"}}\n",
        "1:25",
        "upstream.proxy.url: it names no port",
    ),
    (
        "upstream: {proxy: {url: \"http://agent:hunter2@proxy.example.net:3128\"}}\n",
        "1:25",
        "upstream.proxy.url: credentials do not belong here, where `config show` prints them",
    ),
    (
        "upstream: {proxy: {url: \"http://169.254.169.254:80\"}}\n",
        "1:25",
        "upstream.proxy.url and upstream.allow_private: 169.254.169.254 is no address for a proxy",
    ),
    (
        "upstream: {proxy: {url: \"http://p.example:1\", credentials_file: /does/not/exist}}\n",
        "1:65",
        "upstream.proxy.credentials_file: /does/not/exist: No such file or directory",
    ),
    (
        "upstream: {proxy: {url: \"http://p.example:1\", credentials_file: /proc/self/status}}\n",
        "1:65",
        "upstream.proxy.credentials_file: /proc/self/status: others than its owner can read or change it (mode 0444)",
    ),
    (
        "upstream: {proxy: {url: \"https://p.example:1\", ca_file: /proc/self/status}}\n",
        "1:57",
        "upstream.proxy.ca_file: /proc/self/status: it holds no PEM certificate",
    ),
    (
        "upstream: {proxy: {no_proxy: [\"http://x\"]}}\n",
        "1:31",
        "upstream.proxy.no_proxy: `http://x` is neither a name, a .suffix, an address nor a network",
    ),
    (
        "upstream: {proxy: {no_proxy: [10.0.0.1/8]}}\n",
        "1:31",
        "upstream.proxy.no_proxy: `10.0.0.1/8` has bits beyond its prefix; `10.0.0.0/8` is meant",
    ),
    (
        "upstream: {proxy: {products: [metric]}}\n",
        "1:31",
        "upstream.proxy.products: `metric` is not a product; accepted: metrics, traces",
    ),
    (
        "upstream: {proxy: {products: [logs, tcp_logs]}}\n",
        "1:37",
        "upstream.proxy.products: `tcp_logs` is not HTTP: it is passed through as it is",
    ),
];

#[test]
fn every_mistake_in_a_file_is_told_with_its_place() {
    let mut wrong = Vec::new();
    for (text, place, message) in FILES {
        let case = Case::new();
        fs::write(&case.inputs.defaults.file, text).unwrap();
        let errors = load(&case.inputs).expect_err(text);
        let told = errors.to_string();
        // No place: where the parser gives up is its own business, that it names a line is ours.
        let place_end = if place.is_empty() { "" } else { ": " };
        let prefix = format!("{}:{place}{place_end}", case.inputs.defaults.file.display());
        assert!(!told.contains("hunter2"), "{told}");
        if errors.0.len() != 1 || !told.starts_with(&prefix) || !told.contains(message) {
            wrong.push(format!("{text}  expected at {place}: {message}\n  told: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_no_conflict_is_none() {
    for text in [
        "status: {port: 9808}\nexplicit: {enabled: false}\n",
        "status: {port: 9808, address: 127.0.0.2}\nexplicit: {local_address: 127.0.0.1}\n",
        "status: {port: 9819}\n",
        "intercept: {enabled: false, agents: {cgroups: [], pods: {api: off}}}\n",
        "intercept: {enabled: false}\n",
        "upstream: {endpoints: {metrics: 10.0.0.7}, allow_private: [10.0.0.0/16]}\n",
        "upstream: {endpoints: {metrics: 203.0.113.9}}\n",
        "upstream: {endpoints: {metrics: \"[::ffff:10.0.0.7]:443\"}, allow_private: [10.0.0.0/16]}\n",
        "upstream: {crl_dir: /tmp, crl_policy: hard_fail}\n",
        "upstream: {pins: []}\n",
        "upstream: {proxy: {url: \"http://10.0.0.1:3128\", no_proxy: [\"*\", .example.net, 10.0.0.0/8], products: [logs]}}\n",
        "upstream: {proxy: {url: \"https://[fd00::1]:3128\"}}\n",
        "upstream: {allow_private: [10.0.0.0/8, 127.0.0.0/8, \"fc00::/7\"]}\n",
        "intercept: {classifier_priority: 10, classifier_attach: auto, interfaces: [], mark: {value: 13631488}}\n",
        "log: {level: off}\n",
    ] {
        let case = Case::new();
        fs::write(&case.inputs.defaults.file, text).unwrap();
        if let Err(errors) = load(&case.inputs) {
            unreachable!("{text}{errors}");
        }
    }
}

#[test]
fn every_mistake_in_a_variable_or_flag_is_told_with_its_name() {
    let variables = [
        (
            "DD_FIPS_PROXY_INTERCEPT_ENABLE",
            "true",
            "there is no such variable; did you mean DD_FIPS_PROXY_INTERCEPT_ENABLED?",
        ),
        (
            "DD_FIPS_PROXY_BYPASS_EVERYTHING_PLEASE",
            "1",
            "there is no such variable; `agent-fips-proxy config default` shows all",
        ),
        (
            "DD_FIPS_PROXY_INTERCEPT_ENABLED",
            "",
            "intercept.enabled: the value is empty; accepted: true, false",
        ),
        (
            "DD_FIPS_PROXY_INTERCEPT_ENABLED",
            "off",
            "intercept.enabled: `off` is neither true nor false; accepted: true, false",
        ),
        (
            "DD_FIPS_PROXY_UPSTREAM_ENDPOINTS",
            "metrics",
            "upstream.endpoints: `metrics` is not of the form name=value; accepted: ",
        ),
        (
            "DD_FIPS_PROXY_INTERCEPT_PORTS",
            "80;443",
            "intercept.ports: `80;443` is not a whole number",
        ),
        (
            "DD_FIPS_PROXY_UPSTREAM_TLS_POLICY",
            "none",
            "upstream.tls_policy: `none` is not accepted; accepted: fips, strict",
        ),
        ("DD_SITE", "nonsense", "site: `nonsense` is not a site"),
        (
            "DD_FIPS_PORT_RANGE_START",
            "99999",
            "explicit.port_range_start: `99999` is not a whole number in the accepted range",
        ),
        (
            "DD_FIPS_LOCAL_ADDRESS",
            "here",
            "explicit.local_address: `here` is neither `localhost` nor an IP address",
        ),
    ];
    for (name, value, message) in variables {
        let mut case = Case::new();
        case.inputs.environment.insert(name.to_owned(), value.to_owned());
        let told = case.one_error();
        assert!(
            told.starts_with(&format!("environment {name}: ")) && told.contains(message),
            "{told}"
        );

        // The same from the environment file names file and line.
        let case = Case::new();
        fs::write(&case.inputs.defaults.env_file, format!("# one\n{name}={value}\n")).unwrap();
        let told = case.one_error();
        let place = format!("{}:2 {name}: ", case.inputs.defaults.env_file.display());
        assert!(told.starts_with(&place) && told.contains(message), "{told}");
    }
    let flags = [
        ("site", "x", "site: `x` is not a site"),
        ("sit", "a.com", "there is no such key; did you mean `site`?"),
        (
            "intercept.datapath",
            "xdp",
            "intercept.datapath: `xdp` is not accepted",
        ),
        ("intercept.classifier_priority", "0", RANGE_16),
        ("intercept.classifier_priority", "-1", RANGE_16),
        ("intercept.classifier_priority", "70000", RANGE_16),
        ("intercept.classifier_priority", "ten", RANGE_16),
    ];
    for (key, value, message) in flags {
        let mut case = Case::new();
        case.inputs.flags.push((key.to_owned(), value.to_owned()));
        let told = case.one_error();
        assert!(
            told.starts_with(&format!("--set {key}: ")) && told.contains(message),
            "{told}"
        );
    }
    let mut case = Case::new();
    case.inputs.flags = vec![("site".into(), "a.com".into()), ("site".into(), "b.com".into())];
    assert_eq!(case.one_error(), "--set site: given twice; keep one");
}

#[test]
fn a_line_of_the_environment_file_that_cannot_be_read_is_told() {
    for (line, message) in [
        ("just words", "not of the form NAME=value"),
        ("1X=2", "not of the form NAME=value: the name may hold"),
        (
            "DD_FIPS_PROXY_SITE='a.com",
            "DD_FIPS_PROXY_SITE: the quote is not closed",
        ),
        (
            "DD_FIPS_PROXY_SITE=a\\",
            "DD_FIPS_PROXY_SITE: a value that goes on in the next line is not supported",
        ),
    ] {
        let case = Case::new();
        fs::write(&case.inputs.defaults.env_file, format!("\n\n{line}\n")).unwrap();
        let told = case.one_error();
        assert!(
            told.starts_with(&format!("{}:3:1: ", case.inputs.defaults.env_file.display())),
            "{told}"
        );
        assert!(told.contains(message), "{told}");
    }
}

#[test]
fn files_that_were_named_must_exist_and_usual_ones_need_not() {
    let mut case = Case::new();
    load(&case.inputs).unwrap();
    case.inputs.file = Some(case.dir.path().join("named.yaml"));
    let told = case.one_error();
    assert!(
        told.contains("named.yaml:1:1: cannot read the configuration file: No such file"),
        "{told}"
    );
    case.inputs.file = None;
    case.inputs.env_file = Some(case.dir.path().to_owned());
    let told = case.one_error();
    assert!(
        told.contains("cannot read the environment file: Is a directory"),
        "{told}"
    );
}

#[test]
fn all_mistakes_are_told_at_once_also_those_that_a_higher_layer_hides() {
    let mut case = Case::new();
    fs::write(
        &case.inputs.defaults.file,
        "site: x\nlog:\n  level: loud\n  colour: red\nupstream:\n  connect_timeout: 5\n  ca_file: /does/not/exist\n",
    )
    .unwrap();
    fs::write(
        &case.inputs.defaults.env_file,
        "words\nDD_FIPS_PROXY_WORKER_USER=root\n",
    )
    .unwrap();
    case.inputs
        .environment
        .insert("DD_FIPS_PROXY_LOG_FORMAT".into(), "xml".into());
    case.inputs.flags.push(("site".into(), "ddog-gov.com".into()));
    case.inputs.flags.push(("nothing".into(), "1".into()));
    let told = case.errors().to_string();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 9, "{told}");
    for part in [
        "environment:1:1: not of the form",
        "config.yaml:4:3: log.colour: ",
        "config.yaml:1:7: site: `x`",
        "config.yaml:3:10: log.level: `loud`",
        "config.yaml:6:20: upstream.connect_timeout: `5`",
        "environment DD_FIPS_PROXY_LOG_FORMAT: log.format: `xml`",
        "environment:2 DD_FIPS_PROXY_WORKER_USER: worker.user: ",
        "--set nothing: there is no such key",
        "config.yaml:7:12: upstream.ca_file: /does/not/exist: ",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(part)),
            "{part} is missing in\n{told}"
        );
    }
}

#[test]
fn a_key_with_an_error_starts_no_quarrel_with_others() {
    let case = Case::new();
    // The bad start leaves the default 9803, with which 9808 would seem to be a product's port.
    fs::write(
        &case.inputs.defaults.file,
        "explicit: {port_range_start: x}\nstatus: {port: 9808}\n",
    )
    .unwrap();
    assert!(case.one_error().contains("explicit.port_range_start: `x`"));
}

struct Case {
    dir: tempfile::TempDir,
    inputs: Inputs,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inputs = place::inputs(dir.path());
        Self { dir, inputs }
    }

    fn errors(&self) -> ConfigErrors {
        load(&self.inputs).unwrap_err()
    }

    fn one_error(&self) -> String {
        let errors = self.errors();
        assert_eq!(errors.0.len(), 1, "{errors}");
        errors.to_string()
    }
}
