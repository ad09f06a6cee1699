//! The rows of `upstream`, in the order of the file.

use super::{KEY, NOBODY, SECURITY};
use crate::config::keys::parse::{
    duration_text, endpoint, hours, list_text, ms, path, path_text, pins, private_network, product, word,
    yaml_text,
};
use crate::config::keys::{Key, Shape};
use crate::config::upstream::authority;
use crate::config::value::{choice, duration, integer, list, map, optional, parsed, text};
use crate::config::{CrlPolicy, TlsPolicy, UpstreamNetwork};

pub(super) const ROWS: &[Key] = &[
    Key {
        path: "upstream.port",
        accepted: "a port from 1 to 65535",
        effect: "The intake's port.",
        who: "nobody, except behind a gateway",
        set: |draft, raw| integer(raw, 1..=u16::MAX).map(|value| draft.config.upstream.port = value),
        get: |config| config.upstream.port.to_string(),
        ..KEY
    },
    Key {
        path: "upstream.network",
        accepted: "pod, host",
        effect: "From which network namespace an intercepted pod's connections to the intake are made. `pod`: \
                 from its own, so that its address, network policies and security groups go on to apply. \
                 `host`: from the host's.",
        who: "platform teams whose pods may not reach the intake themselves",
        set: |draft, raw| {
            choice(
                raw,
                &[("pod", UpstreamNetwork::Pod), ("host", UpstreamNetwork::Host)],
            )
            .map(|value| draft.config.upstream.network = value)
        },
        get: |config| word(&config.upstream.network),
        ..KEY
    },
    Key {
        path: "upstream.ca_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file with at least one certificate, or null",
        effect: "Trust only these roots instead of the system's. The worker must be able to read it; it is read again \
                 at a reload.",
        who: "operators behind a gateway with its own authority; whoever pins trust",
        set: |draft, raw| optional(raw, path).map(|value| draft.config.upstream.ca_file = value),
        get: |config| path_text(config.upstream.ca_file.as_deref()),
        ..KEY
    },
    Key {
        path: "upstream.tls_policy",
        accepted: "fips, strict",
        effect: "Which TLS is approved towards the intake. `fips`: 1.2 with extended master secret, and 1.3. \
                 `strict`: 1.3 only, both halves of a hybrid group approved. There is no off.",
        who: SECURITY,
        set: |draft, raw| {
            choice(raw, &[("fips", TlsPolicy::Fips), ("strict", TlsPolicy::Strict)])
                .map(|value| draft.config.upstream.tls_policy = value)
        },
        get: |config| word(&config.upstream.tls_policy),
        ..KEY
    },
    Key {
        path: "upstream.crl_dir",
        shape: Shape::Optional,
        accepted: "an absolute path of a folder, or null",
        effect: "Certificate revocation lists (files in PEM or DER, hidden ones left out). A revoked certificate is \
                 refused. Changes are noticed within seconds, without a reload; connections made before one are \
                 replaced. The worker must be able to read it.",
        who: SECURITY,
        set: |draft, raw| optional(raw, path).map(|value| draft.config.upstream.crl_dir = value),
        get: |config| path_text(config.upstream.crl_dir.as_deref()),
        ..KEY
    },
    Key {
        path: "upstream.crl_policy",
        accepted: "soft_fail, hard_fail",
        effect: "What it means that no list covers a certificate, or an expired one does. `soft_fail`: it is \
                 accepted, an expired list goes on to count, and log, metrics and status say so. `hard_fail`: it is \
                 refused; every certificate of the path but the root needs a list that is not expired. A \
                 revoked certificate is refused under both.",
        who: SECURITY,
        set: |draft, raw| {
            let words = [
                ("soft_fail", CrlPolicy::SoftFail),
                ("hard_fail", CrlPolicy::HardFail),
            ];
            choice(raw, &words).map(|value| draft.config.upstream.crl_policy = value)
        },
        get: |config| word(&config.upstream.crl_policy),
        ..KEY
    },
    Key {
        path: "upstream.pins",
        shape: Shape::List,
        accepted: "a list of 2 to 32 different base64 SHA-256 digests of a SubjectPublicKeyInfo (RFC 7469), or an empty one",
        effect: "On top of the verification: the path that was verified must hold one of these keys, be it the \
                 server's own, an intermediate's or the root's. One of them should be a spare key that is not in \
                 use yet; when all of them are, status and log say that the spare is missing.",
        who: SECURITY,
        set: |draft, raw| pins(raw).map(|value| draft.config.upstream.pins = value),
        get: |config| list_text(&config.upstream.pins),
        ..KEY
    },
    Key {
        path: "upstream.client_certificate_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file with a certificate chain, or null",
        effect: "Shown to a gateway that asks for a client certificate. Needs upstream.client_key_file. Read \
                 again at a reload.",
        who: "operators behind a gateway that asks for one",
        set: |draft, raw| {
            optional(raw, path).map(|value| draft.config.upstream.client_certificate_file = value)
        },
        get: |config| path_text(config.upstream.client_certificate_file.as_deref()),
        ..KEY
    },
    Key {
        path: "upstream.client_key_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file with the certificate's key, or null",
        effect: "The key of upstream.client_certificate_file: RSA of 2048 bits or more, P-256, P-384, P-521 or \
                 Ed25519. Nobody else may read it: mode 0600, or 0640 when it belongs to root. Root's own is \
                 opened before the worker gives up its rights.",
        who: "operators behind a gateway that asks for one",
        set: |draft, raw| optional(raw, path).map(|value| draft.config.upstream.client_key_file = value),
        get: |config| path_text(config.upstream.client_key_file.as_deref()),
        ..KEY
    },
    Key {
        path: "upstream.allow_private",
        shape: Shape::List,
        accepted: "a list of networks, IPv4 of /8 or narrower, IPv6 of /7 or narrower",
        effect: "Networks that may be dialled although they are not public: PrivateLink, a gateway on this \
                 host (127.0.0.0/8). Without it a name that resolves to such an address is refused: a forged \
                 answer leads nowhere. An intercepted connection that was meant for a private address is refused \
                 without it, and never leaves for a public one.",
        who: "operators with PrivateLink or a local gateway",
        set: |draft, raw| list(raw, private_network).map(|value| draft.config.upstream.allow_private = value),
        get: |config| list_text(&config.upstream.allow_private),
        ..KEY
    },
    Key {
        path: "upstream.endpoints",
        shape: Shape::Map,
        accepted: "a map of product name (such as metrics, traces or logs) to host[:port]",
        effect: "What is dialled for a product in place of the intake's own address, also for intercepted \
                 connections, for example a PrivateLink name. TLS and Host keep the intake's name, and the \
                 certificate is verified for it. A private address needs upstream.allow_private.",
        who: "operators with PrivateLink",
        set: |draft, raw| map(raw, product, endpoint).map(|value| draft.config.upstream.endpoints = value),
        get: |config| {
            let entries: Vec<String> = config
                .upstream
                .endpoints
                .iter()
                .map(|(product, endpoint)| {
                    let host = &endpoint.host;
                    let text = endpoint
                        .port
                        .map_or_else(|| host.clone(), |port| authority(host, port));
                    format!("{product}: {}", yaml_text(&text))
                })
                .collect();
            format!("{{{}}}", entries.join(", "))
        },
        ..KEY
    },
    Key {
        path: "upstream.proxy.url",
        shape: Shape::Optional,
        accepted: "http://host:port or https://host:port without credentials, or null",
        effect: "The site's outbound proxy, by HTTP CONNECT to the intake's name: it resolves that name, and an \
                 intercepted connection's original address is not dialled. The TLS session with the intake goes \
                 through it untouched. `https` adds a session of the same policy with the proxy itself. Its own \
                 address may be private.",
        who: "operators whose hosts reach the intake only through a proxy",
        set: |draft, raw| optional(raw, parsed).map(|value| draft.config.upstream.proxy.url = value),
        get: |config| {
            let url = config.upstream.proxy.url.as_ref();
            url.map_or("null".to_owned(), |url| yaml_text(&url.to_string()))
        },
        ..KEY
    },
    Key {
        path: "upstream.proxy.credentials_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a file with one line user:password, or null",
        effect: "What the proxy is told in Proxy-Authorization (Basic). Nobody else may read it: mode 0600, or \
                 0640 when it belongs to root. Read again at a reload.",
        who: "operators whose proxy asks for them",
        set: |draft, raw| {
            optional(raw, path).map(|value| draft.config.upstream.proxy.credentials_file = value)
        },
        get: |config| path_text(config.upstream.proxy.credentials_file.as_deref()),
        ..KEY
    },
    Key {
        path: "upstream.proxy.ca_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file with at least one certificate, or null",
        effect: "The roots of an https proxy's own certificate, instead of the system's.",
        who: "operators whose proxy has its own authority",
        set: |draft, raw| optional(raw, path).map(|value| draft.config.upstream.proxy.ca_file = value),
        get: |config| path_text(config.upstream.proxy.ca_file.as_deref()),
        ..KEY
    },
    Key {
        path: "upstream.proxy.no_proxy",
        shape: Shape::List,
        accepted: "a list of names, suffixes (.example.net or *.example.net), addresses and networks, each but a \
                   network with or without a port, or *",
        effect: "What goes out without the proxy. A name is exactly that name, as in the Agent's `no_proxy`; a \
                 suffix is every name below it, as in the Agent with `no_proxy_nonexact_match`. Both are compared \
                 with the intake's name and with the host in upstream.endpoints; addresses with the latter, and with \
                 the original address of an intercepted connection. Nothing is resolved for it.",
        who: "operators with a proxy and a private endpoint",
        set: |draft, raw| list(raw, parsed).map(|value| draft.config.upstream.proxy.no_proxy = value),
        get: |config| list_text(&config.upstream.proxy.no_proxy),
        ..KEY
    },
    Key {
        path: "upstream.proxy.products",
        shape: Shape::List,
        accepted: "a list of product names (such as metrics, traces or logs); empty for all",
        effect: "Products that go through the proxy; the others go out without it.",
        who: "operators with a proxy for some of their data",
        set: |draft, raw| {
            list(raw, |item| product(text(item)?)).map(|value| draft.config.upstream.proxy.products = value)
        },
        get: |config| list_text(&config.upstream.proxy.products),
        ..KEY
    },
    Key {
        path: "upstream.connect_timeout",
        accepted: "a duration from 100ms to 1m",
        effect: "TCP and TLS set-up of one address; with an outbound proxy also the making of the tunnel.",
        set: |draft, raw| {
            duration(raw, ms(100)..=ms(60_000)).map(|value| draft.config.upstream.connect_timeout = value)
        },
        get: |config| duration_text(config.upstream.connect_timeout),
        ..KEY
    },
    Key {
        path: "upstream.response_timeout",
        accepted: "a duration from 1s to 1h",
        effect: "From the last byte of the request, or the last progress of its body, to the response head.",
        set: |draft, raw| {
            duration(raw, ms(1_000)..=hours(1)).map(|value| draft.config.upstream.response_timeout = value)
        },
        get: |config| duration_text(config.upstream.response_timeout),
        ..KEY
    },
    Key {
        path: "upstream.pool_idle_timeout",
        accepted: "a duration from 1s to 1h",
        effect: "How long an unused connection to the intake is kept. Shorter than what the intake's load \
                 balancer and any firewall on the way allow, or requests fail on connections that are \
                 already gone.",
        who: NOBODY,
        set: |draft, raw| {
            duration(raw, ms(1_000)..=hours(1)).map(|value| draft.config.upstream.pool_idle_timeout = value)
        },
        get: |config| duration_text(config.upstream.pool_idle_timeout),
        ..KEY
    },
];
