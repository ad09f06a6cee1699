//! The reference page of the products, in Markdown, from the tables that the program uses.

use super::product::{Entry, Protocol};
use super::site::{KNOWN_SITES, KnownSite};
use super::table::TABLE;

/// The first port of the Agent's `fips.port_range_start`, which offsets count from.
const FIRST_PORT: u16 = 9803;

/// Names of Datadog's that the Agent, its installer and its packages ask, and that are no intake's.
pub(super) const LEFT_ALONE: &[(&str, &str)] = &[
    (
        "install.datadoghq.com",
        "the fleet installer's packages, kernel types for the system probe",
    ),
    ("apt.datadoghq.com", "packages"),
    ("yum.datadoghq.com", "packages"),
    ("keys.datadoghq.com", "keys of the packages"),
    ("windows-agent.datadoghq.com", "packages"),
    ("ip-ranges.<site>", "the published addresses of the site"),
];

/// The reference page, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(INTRODUCTION);
    for entry in TABLE {
        page.push_str(&product(entry));
    }
    page.push_str(SITES);
    for known in KNOWN_SITES {
        page.push_str(&site(known));
    }
    page.push_str(&NOT_HTTP.replace("{stream names}", &stream_names()));
    page.push_str(NOT_OURS);
    for (name, what) in LEFT_ALONE {
        page.push_str(&format!("| `{name}` | {what} |\n"));
    }
    page
}

fn product(entry: &Entry) -> String {
    let port = entry
        .offset
        .map_or_else(|| "-".to_owned(), |offset| (FIRST_PORT + offset).to_string());
    format!(
        "| `{}` | {} | {port} | {} | {} |\n",
        entry.name,
        entry.title,
        entry.protocol.name(),
        names(entry)
    )
}

fn names(entry: &Entry) -> String {
    let names: Vec<String> = entry
        .hosts
        .iter()
        .map(|host| format!("`{host}.<site>`"))
        .collect();
    names.join(", ")
}

fn stream_names() -> String {
    let names: Vec<String> = TABLE
        .iter()
        .filter(|entry| entry.protocol == Protocol::Stream)
        .map(names)
        .collect();
    names.join(", ")
}

fn site(known: &KnownSite) -> String {
    let port = known
        .tcp_logs
        .map_or_else(|| "none".to_owned(), |port| port.to_string());
    let private_link = if known.private_link { "yes" } else { "-" };
    format!(
        "| `{}` | {} | {port} | {private_link} |\n",
        known.domain, known.name
    )
}

const INTRODUCTION: &str = "\
# Products

<!-- Generated from the tables in proxy/src/catalog by `cargo xtask docs`. Do not edit. -->

The port is that of the default `explicit.port_range_start` (9803, the status page). `*` stands for any text within one label. \
A name that stands here wins over every `*`, wherever the two stand; of two `*` the first counts. Names are compared whole, \
label by label, without regard to case or to one dot at the end. On the metrics port, `/api/v1/validate` goes to \
`api.<site>` and `/support/flare` to `flare.<site>`.

The product's name is what `upstream.endpoints` and `upstream.proxy.products` take (those that speak HTTP), and what logs, \
metrics and `status` show.

| product | what | port | speaks | intake names |
|---|---|---:|---|---|
";

const SITES: &str = "
One more name belongs to `other_intake` and stands beside the site: the browser's intake, `browser-intake-` and the site \
with dashes for all its dots but the last (`browser-intake-us5-datadoghq.com`).

`multi_region_failover.site` of the Agent is another site. Its names, those with `mrf` above, are known here only when it is \
this proxy's `site`; `doctor` says so when they differ.

## Sites

`site` takes any domain. These are known:

| site | Datadog's name | port of the Agent's logs over TCP | AWS PrivateLink |
|---|---|---:|---|
";

const NOT_HTTP: &str = "
## What is not plain HTTP

Everything on the data path is requests and answers of HTTP/1.1 or HTTP/2. The rest:

| what | how it looks | what is done |
|---|---|---|
| Remote configuration's WebSocket test, at the Agent's start and once a day | `GET /api/v0.2/echo-test` to \
`config.<site>`, HTTP/1.1 with `Upgrade: websocket` | answered with 400, outcome `unsupported`, counted; the connection stays as \
HTTP/1.1 has it. The Agent loses a measurement and nothing else; `remote_configuration.no_websocket_echo: true` in the Agent \
ends it |
| The same by ALPN | a ClientHello with `dd-rc-v1` and no other protocol, for `/api/v0.2/echo-test-alpn` | where TLS is \
terminated: the alert `no_application_protocol`, counted as `no_common_protocol`. No certificate is made for it |
| Remote configuration's gRPC test | `datadog.config.RcEcho/RunEchoTest` to `config.<site>`: an HTTP/2 request with \
trailers | relayed, trailers included, when the intake speaks HTTP/2, too |
| Remote configuration's raw TLS test | port 8042 of `config.<site>` | left alone: 8042 is not in `intercept.ports` |
| Logs over TCP | a TLS session with the Agent's own framing in it, port 10516, in Europe and with `logs_config.use_port_443` \
443; {stream names} | never terminated. Under `intercept.https: terminate` and `passthrough` it is passed through with the \
Agent's own cryptography: observed, and cut below policy. Under `refuse` it is refused. Port 10516 is left alone unless \
`intercept.ports` has it |

**Logs over TCP do not leave through the validated module.** The cure is one setting of the Agent: \
`logs_config.force_use_http: true` (`DD_LOGS_CONFIG_FORCE_USE_HTTP=true`). Without it the Agent goes to TCP by itself when \
its first HTTP request fails at its start, and whenever `logs_config.additional_endpoints` has an entry. `doctor` reads the \
configuration of this host's Agent and says so.
";

const NOT_OURS: &str = "
## What is left alone

These are no intakes: an intercepted connection for them goes on untouched.

| name | what |
|---|---|
";
