//! The rows of plain HTTP/1 that was intercepted.

use agent_fips_proxy::catalog::Product;
use agent_fips_proxy::relay::outcome::Outcome;

use crate::world::Want;

use Want::{Answered, Refused, Served, Tunnelled};

const APP: Want = Served("app.ddog-gov.com", Product::Metrics);
pub const MALFORMED: Want = Refused("malformed Host");
const USER_INFO: Want = Refused("Host carries user-info");
const TWO: Want = Refused("the request target and Host name different hosts");
const PORT: Want = Answered(400, Outcome::BadRequest, "Host names a foreign port");

/// 64 letters: one more than a label may have.
const LONG_LABEL: &str =
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-app.agent.ddog-gov.com";

/// By Host, in a head that is well-formed otherwise. `{port}` is that of the original destination.
pub const HOSTS: &[(&str, &str, Want)] = &[
    ("clear-intake", "app.ddog-gov.com", APP),
    ("clear-intake", "APP.Ddog-Gov.COM", APP),
    ("clear-intake", "app.ddog-gov.com.", APP),
    ("clear-intake", "app.ddog-gov.com:80", APP),
    ("clear-intake", "app.ddog-gov.com.:0080", APP),
    ("clear-intake", "app.ddog-gov.com:{port}", APP),
    ("clear-intake", "\t app.ddog-gov.com \t", APP),
    (
        "clear-intake",
        "7-81-0-app.agent.ddog-gov.com",
        Served("7-81-0-app.agent.ddog-gov.com", Product::Metrics),
    ),
    (
        "clear-intake",
        "under_score-app.agent.ddog-gov.com",
        Served("under_score-app.agent.ddog-gov.com", Product::Metrics),
    ),
    (
        "clear-intake",
        "browser-intake-ddog-gov.com",
        Served("browser-intake-ddog-gov.com", Product::OtherIntake),
    ),
    ("clear-other", "example.org", Tunnelled),
    ("clear-other", "evilddog-gov.com", Tunnelled),
    ("clear-other", "app.evilddog-gov.com", Tunnelled),
    ("clear-other", "app-ddog-gov.com", Tunnelled),
    ("clear-other", "app.ddog-gov.com.evil.org", Tunnelled),
    ("clear-other", "app.ddog-gov.co", Tunnelled),
    ("clear-other", "app.ddog-gov.comm", Tunnelled),
    ("clear-other", "app.datadoghq.com", Tunnelled),
    ("clear-other", "browser-intake-datadoghq.com", Tunnelled),
    ("clear-other", "x.browser-intake-ddog-gov.com", Tunnelled),
    ("clear-other", "ddog-gov.com", Tunnelled),
    ("clear-other", "x.app.ddog-gov.com", Tunnelled),
    ("clear-other", "trace.agent.x.ddog-gov.com", Tunnelled),
    ("clear-other", "xn--pp-7ka.ddog-gov.com", Tunnelled),
    ("clear-other", "app.xn--ddo-gov-7fb.com", Tunnelled),
    ("clear-other", "app_.ddog-gov.com", Tunnelled),
    ("clear-other", "localhost", Tunnelled),
    ("clear-other", "metadata.google.internal:80", Tunnelled),
    ("clear-address", "203.0.113.1", Tunnelled),
    ("clear-address", "127.0.0.1:9804", Tunnelled),
    ("clear-address", "169.254.169.254", Tunnelled),
    ("clear-address", "[2001:db8::1]:80", Tunnelled),
    ("clear-address", "[::ffff:127.0.0.1]", Tunnelled),
    ("clear-malformed", "app.ddog-gov.com..", MALFORMED),
    ("clear-malformed", "app..ddog-gov.com", MALFORMED),
    ("clear-malformed", ".app.ddog-gov.com", MALFORMED),
    ("clear-malformed", "", MALFORMED),
    ("clear-malformed", ".", MALFORMED),
    ("clear-malformed", ":80", MALFORMED),
    ("clear-malformed", LONG_LABEL, MALFORMED),
    ("clear-malformed", "*.agent.ddog-gov.com", MALFORMED),
    ("clear-malformed", "-app.agent.ddog-gov.com", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com-", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com evil.org", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com\tevil.org", MALFORMED),
    ("clear-malformed", "app%2eddog-gov.com", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com%00.evil.org", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com, evil.org", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com/", MALFORMED),
    ("clear-malformed", "http://app.ddog-gov.com", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com\\.evil.org", MALFORMED),
    ("clear-malformed", "\"app.ddog-gov.com\"", MALFORMED),
    // A Cyrillic and a full-width letter, and a dot that IDNA takes for one.
    ("clear-malformed", "аpp.ddog-gov.com", MALFORMED),
    ("clear-malformed", "ａpp.ddog-gov.com", MALFORMED),
    ("clear-malformed", "app。ddog-gov.com", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com:65536", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com:", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com:+80", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com:-80", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com:80:80", MALFORMED),
    ("clear-malformed", "app.ddog-gov.com:http", MALFORMED),
    ("clear-malformed", "2130706433", MALFORMED),
    ("clear-malformed", "0x7f000001", MALFORMED),
    ("clear-malformed", "0x7f.0x0.0x0.0x1", MALFORMED),
    ("clear-malformed", "0177.0.0.1", MALFORMED),
    ("clear-malformed", "127.1", MALFORMED),
    ("clear-malformed", "127.0.0.1.", MALFORMED),
    ("clear-malformed", "::1", MALFORMED),
    ("clear-malformed", "[::1", MALFORMED),
    ("clear-malformed", "[::1]x", MALFORMED),
    ("clear-malformed", "[127.0.0.1]", MALFORMED),
    ("clear-malformed", "[fe80::1%25eth0]", MALFORMED),
    ("clear-malformed", "[app.ddog-gov.com]", MALFORMED),
    ("clear-user-info", "key@app.ddog-gov.com", USER_INFO),
    ("clear-user-info", "app.ddog-gov.com@evil.org", USER_INFO),
    ("clear-user-info", "app.ddog-gov.com:80@evil.org", USER_INFO),
    ("clear-port", "app.ddog-gov.com:8080", PORT),
    ("clear-port", "app.ddog-gov.com:443", PORT),
    ("clear-port", "app.ddog-gov.com:0", PORT),
];

/// Whole first lines and headers: what the page calls it, what is sent.
pub const HEADS: &[(&str, &str, &str, Want)] = &[
    (
        "clear-intake",
        "GET http://app.ddog-gov.com/",
        "GET http://app.ddog-gov.com/x HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        APP,
    ),
    (
        "clear-intake",
        "HTTP/1.0 with Host",
        "GET /x HTTP/1.0\r\nHost: app.ddog-gov.com\r\n\r\n",
        APP,
    ),
    (
        "clear-intake",
        "HTTP/1.0, absolute, no Host",
        "GET HTTP://APP.ddog-gov.com HTTP/1.0\r\n\r\n",
        APP,
    ),
    (
        "clear-other",
        "GET http://example.org/",
        "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        Tunnelled,
    ),
    (
        "clear-other",
        "GET http://example.org/ and Host: example.net",
        "GET http://example.org/ HTTP/1.1\r\nHost: example.net\r\n\r\n",
        Tunnelled,
    ),
    (
        "clear-no-name",
        "HTTP/1.0 without Host",
        "GET / HTTP/1.0\r\n\r\n",
        Tunnelled,
    ),
    (
        "clear-two-names",
        "GET http://app.ddog-gov.com/ and Host: evil.org",
        "GET http://app.ddog-gov.com/ HTTP/1.1\r\nHost: evil.org\r\n\r\n",
        TWO,
    ),
    (
        "clear-two-names",
        "GET http://evil.org/ and Host: app.ddog-gov.com",
        "GET http://evil.org/ HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        TWO,
    ),
    (
        "clear-two-names",
        "GET http://app.ddog-gov.com/ and Host: trace.agent.ddog-gov.com",
        "GET http://app.ddog-gov.com/ HTTP/1.1\r\nHost: trace.agent.ddog-gov.com\r\n\r\n",
        TWO,
    ),
    (
        "clear-two-names",
        "GET http://app.ddog-gov.com/ and Host: app.ddog-gov.com:80",
        "GET http://app.ddog-gov.com/ HTTP/1.1\r\nHost: app.ddog-gov.com:80\r\n\r\n",
        TWO,
    ),
    (
        "clear-user-info",
        "GET http://app.ddog-gov.com@evil.org/",
        "GET http://app.ddog-gov.com@evil.org/ HTTP/1.1\r\nHost: app.ddog-gov.com@evil.org\r\n\r\n",
        USER_INFO,
    ),
    (
        "clear-malformed",
        "GET http:///x",
        "GET http:///x HTTP/1.1\r\nHost: \r\n\r\n",
        MALFORMED,
    ),
    (
        "clear-head",
        "two Hosts",
        "GET / HTTP/1.1\r\nHost: app.ddog-gov.com\r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("more than one Host"),
    ),
    (
        "clear-head",
        "an intake's Host and another",
        "GET / HTTP/1.1\r\nHost: example.org\r\nhost: app.ddog-gov.com\r\n\r\n",
        Refused("more than one Host"),
    ),
    (
        "clear-head",
        "no Host",
        "GET / HTTP/1.1\r\n\r\n",
        Refused("no Host"),
    ),
    (
        "clear-head",
        "NUL in Host",
        "GET / HTTP/1.1\r\nHost: app.ddog-gov.com\0.evil.org\r\n\r\n",
        Refused("a control byte in the request head"),
    ),
    (
        "clear-head",
        "Host over two lines",
        "GET / HTTP/1.1\r\nHost: app.ddog-gov.com\r\n .evil.org\r\n\r\n",
        Refused("obsolete line folding"),
    ),
    (
        "clear-head",
        "Host :",
        "GET / HTTP/1.1\r\nHost : app.ddog-gov.com\r\n\r\n",
        Refused("white space before the colon of a header"),
    ),
    (
        "clear-head",
        "GET https://app.ddog-gov.com/",
        "GET https://app.ddog-gov.com/ HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("invalid request target"),
    ),
    (
        "clear-head",
        "GET ftp://app.ddog-gov.com/",
        "GET ftp://app.ddog-gov.com/ HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("invalid request target"),
    ),
    (
        "clear-head",
        "CONNECT app.ddog-gov.com:443",
        "CONNECT app.ddog-gov.com:443 HTTP/1.1\r\nHost: app.ddog-gov.com:443\r\n\r\n",
        Refused("CONNECT is not served"),
    ),
    (
        "clear-head",
        "an empty line before the request",
        "\r\nGET / HTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("invalid method"),
    ),
    (
        "clear-head",
        "a blank after the version",
        "GET / HTTP/1.1 \r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("malformed request line"),
    ),
    (
        "clear-head",
        "tabs in the first line",
        "GET\t/\tHTTP/1.1\r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("malformed request line"),
    ),
    (
        "clear-head",
        "HTTP/2.0 without its preface",
        "GET / HTTP/2.0\r\nHost: app.ddog-gov.com\r\n\r\n",
        Refused("only HTTP/1.0 and HTTP/1.1 are served"),
    ),
];

/// Of requests after the first one of a connection that is terminated.
pub const LATER: &[(&str, &str, Want)] = &[
    (
        "clear-later-intake",
        "trace.agent.ddog-gov.com",
        Served("trace.agent.ddog-gov.com", Product::Traces),
    ),
    ("clear-later-other", "example.org", MISDIRECTED),
    ("clear-later-other", "app.datadoghq.com", MISDIRECTED),
    ("clear-later-other", "localhost", MISDIRECTED),
    (
        "clear-later-malformed",
        "203.0.113.1",
        Answered(400, Outcome::BadRequest, "Host is an IP address"),
    ),
    ("clear-later-malformed", "app.ddog-gov.com:8080", PORT),
    (
        "clear-later-malformed",
        "аpp.ddog-gov.com",
        Answered(400, Outcome::BadRequest, "malformed Host"),
    ),
];

const MISDIRECTED: Want = Answered(
    421,
    Outcome::Misdirected,
    "Host is not an intake name that this connection serves",
);
