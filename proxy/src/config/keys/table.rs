//! The rows, in the order of the file.

use std::time::Duration;

mod ca;
mod https;
mod intercept;
mod upstream;

use super::parse::{
    CGROUPS, address, cgroup, duration_text, hours, level, list_text, member, ms, socket, user, word,
    yaml_text,
};
use super::{Key, Shape};
use crate::config::LogFormat;
use crate::config::value::{boolean, choice, duration, integer, list, parsed};

const OPERATOR: &str = "operators";
const NOBODY: &str = "nobody without a measurement";
const SECURITY: &str = "whoever answers for compliance";
/// The last offset of the Agent's range (`setupFipsEndpoints`).
const LAST_OFFSET: u16 = 15;
const CNI: &str = "platform teams whose network plugin has classifiers of its own";

/// What most rows have in common; a row says the rest.
const KEY: Key = Key {
    path: "",
    shape: Shape::Scalar,
    accepted: "",
    default_words: None,
    fallback: None,
    effect: "",
    who: OPERATOR,
    set: |_, _| Ok(()),
    get: |_| String::new(),
};

/// Every setting.
pub static TABLE: &[Key] = &ALL;

/// The parts, in order.
const PARTS: [&[Key]; 7] = [
    GENERAL,
    intercept::BEFORE_HTTPS,
    https::ROWS,
    intercept::AFTER_HTTPS,
    ca::ROWS,
    upstream::ROWS,
    RUNNING,
];

const COUNT: usize = {
    let (mut part, mut count) = (0, 0);
    while part < PARTS.len() {
        count += PARTS[part].len();
        part += 1;
    }
    count
};

/// One after the other: a table of constants can only be put together by hand.
static ALL: [Key; COUNT] = {
    let mut all = [KEY; COUNT];
    let (mut part, mut at) = (0, 0);
    while part < PARTS.len() {
        let mut row = 0;
        while row < PARTS[part].len() {
            all[at] = PARTS[part][row];
            row += 1;
            at += 1;
        }
        part += 1;
    }
    all
};

/// `site`, `log`, `explicit`.
const GENERAL: &[Key] = &[
    Key {
        path: "site",
        accepted: "a domain such as datadoghq.com, us5.datadoghq.com or ddog-gov.com",
        fallback: Some("DD_SITE"),
        effect: "The Datadog site. Every intake name is built from it: it decides what is intercepted and \
                 where everything goes. Must be the Agent's own.",
        who: "everybody whose site is not datadoghq.com",
        set: |draft, raw| parsed(raw).map(|value| draft.config.site = value),
        get: |config| config.site.to_string(),
        ..KEY
    },
    Key {
        path: "log.level",
        accepted: "off, error, warn, info, debug, trace, or directives as in \
                   info,agent_fips_proxy::relay=debug",
        effect: "What is logged. No level logs keys, header values, queries or bodies.",
        set: |draft, raw| level(raw).map(|value| draft.config.log.level = value),
        get: |config| yaml_text(&config.log.level),
        ..KEY
    },
    Key {
        path: "log.format",
        accepted: "text, json",
        effect: "How a line looks: for people, or one JSON object a line.",
        set: |draft, raw| {
            choice(raw, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
                .map(|value| draft.config.log.format = value)
        },
        get: |config| word(&config.log.format),
        ..KEY
    },
    Key {
        path: "log.access",
        accepted: "true, false",
        effect: "One line for each request, target `access`: product, path without query, status, sizes, \
                 time, TLS session.",
        set: |draft, raw| boolean(raw).map(|value| draft.config.log.access = value),
        get: |config| config.log.access.to_string(),
        ..KEY
    },
    Key {
        path: "explicit.enabled",
        accepted: "true, false",
        effect: "Serve the fixed ports of the Agent's `fips.*` settings.",
        set: |draft, raw| boolean(raw).map(|value| draft.config.explicit.enabled = value),
        get: |config| config.explicit.enabled.to_string(),
        ..KEY
    },
    Key {
        path: "explicit.local_address",
        accepted: "localhost (127.0.0.1 and ::1), or an IP address",
        fallback: Some("DD_FIPS_LOCAL_ADDRESS"),
        effect: "Where the product ports are bound. The Agent speaks clear text to them: an address that is \
                 not a loopback puts API keys on the network.",
        who: "nobody, except where the Agent reaches the proxy only over a private bridge",
        set: |draft, raw| address(raw).map(|value| draft.config.explicit.local_address = value),
        get: |config| yaml_text(&config.explicit.local_address.to_string()),
        ..KEY
    },
    Key {
        path: "explicit.port_range_start",
        accepted: "a port from 1 to 65520: the fifteen that follow belong to the products",
        fallback: Some("DD_FIPS_PORT_RANGE_START"),
        effect: "First port of the range. Must be the Agent's `fips.port_range_start`.",
        set: |draft, raw| {
            integer(raw, 1..=u16::MAX - LAST_OFFSET)
                .map(|value| draft.config.explicit.port_range_start = value)
        },
        get: |config| config.explicit.port_range_start.to_string(),
        ..KEY
    },
    Key {
        path: "explicit.allowed_users",
        shape: Shape::List,
        accepted: "a list of user names or numbers",
        effect: "Whose processes may use the product ports; empty: everybody's. Others are answered 503. A \
                 connection costs one question to the kernel more.",
        set: |draft, raw| list(raw, member).map(|value| draft.config.explicit.allowed_users = value),
        get: |config| list_text(&config.explicit.allowed_users),
        ..KEY
    },
    Key {
        path: "explicit.allowed_cgroups",
        shape: Shape::List,
        accepted: CGROUPS,
        effect: "In which cgroups (and below them) processes may use the product ports; empty: in every one. \
                 With explicit.allowed_users both must hold. Linux 5.8.",
        set: |draft, raw| list(raw, cgroup).map(|value| draft.config.explicit.allowed_cgroups = value),
        get: |config| list_text(&config.explicit.allowed_cgroups),
        ..KEY
    },
];

/// `limits`, `status`, `worker`.
const RUNNING: &[Key] = &[
    Key {
        path: "limits.max_connections",
        accepted: "a number from 1 to 1000000",
        effect: "Client connections held at once, all ports together. One more is answered 503 and closed; \
                 the Agent tries again.",
        set: |draft, raw| {
            integer(raw, 1..=1_000_000).map(|value| draft.config.limits.max_connections = value)
        },
        get: |config| config.limits.max_connections.to_string(),
        ..KEY
    },
    Key {
        path: "limits.max_connections_per_agent",
        accepted: "a number from 1 to limits.max_connections",
        default_words: Some("three quarters of limits.max_connections"),
        effect: "The same of one Agent, so that it leaves room for the others: an Agent pod is one, all that is \
                 on the host is one. An HTTP/2 connection counts once for each request that is open on it.",
        set: |draft, raw| {
            integer(raw, 1..=1_000_000).map(|value| draft.max_connections_per_agent = Some(value))
        },
        get: |config| config.limits.max_connections_per_agent.to_string(),
        ..KEY
    },
    Key {
        path: "limits.min_body_rate",
        accepted: "a number of bytes per second from 0 (no limit) to 1048576",
        effect: "What a client must send of its request body, on average over limits.idle_timeout of waiting for it. A \
                 slower one is answered 408 and closed: it would hold a connection for ever, byte by byte.",
        who: NOBODY,
        set: |draft, raw| integer(raw, 0..=1_048_576).map(|value| draft.config.limits.min_body_rate = value),
        get: |config| config.limits.min_body_rate.to_string(),
        ..KEY
    },
    Key {
        path: "limits.idle_timeout",
        accepted: "a duration from 1s to 24h",
        effect: "How long a client connection may wait between two requests.",
        set: |draft, raw| {
            duration(raw, ms(1_000)..=hours(24)).map(|value| draft.config.limits.idle_timeout = value)
        },
        get: |config| duration_text(config.limits.idle_timeout),
        ..KEY
    },
    Key {
        path: "limits.header_timeout",
        accepted: "a duration from 100ms to 5m",
        effect: "From the first byte of a request head to its last.",
        who: NOBODY,
        set: |draft, raw| {
            duration(raw, ms(100)..=ms(300_000)).map(|value| draft.config.limits.header_timeout = value)
        },
        get: |config| duration_text(config.limits.header_timeout),
        ..KEY
    },
    Key {
        path: "limits.max_header_bytes",
        accepted: "a number of bytes from 8192 to 1048576",
        effect: "Largest request or response head. Held for each connection that is reading one.",
        who: NOBODY,
        set: |draft, raw| {
            integer(raw, 8192..=1_048_576).map(|value| draft.config.limits.max_header_bytes = value)
        },
        get: |config| config.limits.max_header_bytes.to_string(),
        ..KEY
    },
    Key {
        path: "limits.drain_timeout",
        accepted: "a duration from 0s to 1h",
        effect: "How long a worker that stops waits for requests in flight. Keep it below the service \
                 manager's own limit.",
        set: |draft, raw| {
            duration(raw, Duration::ZERO..=hours(1)).map(|value| draft.config.limits.drain_timeout = value)
        },
        get: |config| duration_text(config.limits.drain_timeout),
        ..KEY
    },
    Key {
        path: "status.address",
        accepted: "localhost (127.0.0.1 and ::1), or an IP address",
        effect: "Where status page, metrics and health are bound. They are read without a password and in \
                 clear text.",
        who: "operators whose metrics are collected over the network",
        set: |draft, raw| address(raw).map(|value| draft.config.status.address = value),
        get: |config| yaml_text(&config.status.address.to_string()),
        ..KEY
    },
    Key {
        path: "status.port",
        accepted: "a port from 1 to 65535 that is no product's",
        default_words: Some("explicit.port_range_start"),
        effect: "Port of status page, metrics and health. Offset 0 of the Agent's range is kept for it.",
        set: |draft, raw| integer(raw, 1..=u16::MAX).map(|value| draft.status_port = Some(value)),
        get: |config| config.status.port.to_string(),
        ..KEY
    },
    Key {
        path: "status.socket",
        accepted: "an absolute path of at most 107 bytes",
        effect: "The admin socket, for root and the service's user.",
        who: NOBODY,
        set: |draft, raw| socket(raw).map(|value| draft.config.status.socket = value),
        get: |config| yaml_text(&config.status.socket.to_string_lossy()),
        ..KEY
    },
    Key {
        path: "worker.user",
        accepted: "a user name, not root",
        effect: "The user that the worker becomes when the master may change users (root, or the shipped unit's). \
                 Everything from the network is parsed as this user. Not the master's own.",
        who: NOBODY,
        set: |draft, raw| user(raw).map(|value| draft.config.worker.user = value),
        get: |config| yaml_text(&config.worker.user),
        ..KEY
    },
    Key {
        path: "worker.threads",
        accepted: "a number from 1 to 64",
        default_words: Some("2, or 1 on a single core"),
        effect: "Data threads; each has its own listeners and its own connections to the intake. One thread \
                 carries more than an ordinary Agent sends.",
        who: NOBODY,
        set: |draft, raw| integer(raw, 1..=64).map(|value| draft.config.worker.threads = value),
        get: |config| config.worker.threads.to_string(),
        ..KEY
    },
    Key {
        path: "worker.sandbox",
        accepted: "true, false",
        effect: "Restricts the worker by seccomp to the system calls that it makes, and by Landlock (Linux 5.13) to the files \
                 that it reads, once it is set up. `false` is for finding out whether a fault comes from that.",
        who: NOBODY,
        set: |draft, raw| boolean(raw).map(|value| draft.config.worker.sandbox = value),
        get: |config| config.worker.sandbox.to_string(),
        ..KEY
    },
];
