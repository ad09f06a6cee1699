//! Exemptions, proxies and pins, as they are written and what they mean.

use super::*;

#[test]
fn exemptions_mean_what_the_agent_means_by_them() {
    let intake = "trace.agent.ddog-gov.com";
    for (entry, host, port, original, expected) in [
        ("*", intake, 443, None, true),
        (intake, intake, 443, None, true),
        ("Trace.Agent.ddog-gov.com.", intake, 443, None, true),
        // The Agent's default: a name is itself and nothing below it.
        ("ddog-gov.com", intake, 443, None, false),
        ("agent.ddog-gov.com", intake, 443, None, false),
        (".ddog-gov.com", intake, 443, None, true),
        ("*.ddog-gov.com", intake, 443, None, true),
        (".ddog-gov.com", "ddog-gov.com", 443, None, false),
        (".ddog-gov.com", "evilddog-gov.com", 443, None, false),
        (".gov.com", intake, 443, None, false),
        ("trace.agent.ddog-gov.com:443", intake, 443, None, true),
        ("trace.agent.ddog-gov.com:8443", intake, 443, None, false),
        (".ddog-gov.com:8443", intake, 8443, None, true),
        ("10.0.0.0/8", "10.1.2.3", 443, None, true),
        ("10.0.0.0/8", "::ffff:10.1.2.3", 443, None, true),
        ("10.0.0.0/8", "11.1.2.3", 443, None, false),
        ("10.1.2.3", "10.1.2.3", 443, None, true),
        ("::ffff:10.1.2.3", "10.1.2.3", 443, None, true),
        ("10.1.2.3:8443", "10.1.2.3", 443, None, false),
        ("[2001:db8::1]:443", "2001:db8::1", 443, None, true),
        ("2001:db8::/32", "2001:db8::1", 443, None, true),
        // An intercepted client has already resolved the name.
        ("10.0.0.0/8", intake, 443, Some("10.9.9.9"), true),
        ("10.0.0.0/8", intake, 443, Some("::ffff:10.9.9.9"), true),
        ("10.0.0.0/8", intake, 443, Some("192.0.2.1"), false),
        ("10.0.0.0/8", intake, 443, None, false),
    ] {
        let parsed: NoProxy = entry.parse().unwrap();
        let original = original.map(|ip| ip.parse().unwrap());
        assert_eq!(
            parsed.matches(host, port, original),
            expected,
            "{entry} {host}:{port}"
        );
        let again: NoProxy = parsed.to_string().parse().unwrap();
        assert_eq!(again, parsed, "{entry}");
    }
    for wrong in [
        "",
        ".",
        "*.",
        "a b",
        "http://x",
        "x:0",
        "x:99999",
        ".10.0.0.1",
        "10.0.0.1/8",
        "[::1",
    ] {
        assert!(wrong.parse::<NoProxy>().is_err(), "{wrong}");
    }
}

#[test]
fn a_proxy_is_scheme_host_and_port_and_its_credentials_are_never_repeated() {
    for (text, tls, host, port) in [
        ("http://proxy.example.net:3128", false, "proxy.example.net", 3128),
        ("https://Proxy.Example.net:3129/", true, "proxy.example.net", 3129),
        ("http://10.0.0.1:8080", false, "10.0.0.1", 8080),
        ("http://[2001:db8::1]:8080", false, "2001:db8::1", 8080),
    ] {
        let url: ProxyUrl = text.parse().unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.port), (tls, host, port));
        assert_eq!(url.to_string().parse::<ProxyUrl>().unwrap(), url);
    }
    for wrong in [
        "proxy.example.net:3128",
        "socks5://proxy.example.net:1080",
        "http://proxy.example.net",
        "http://proxy.example.net:0",
        "http://:3128",
        "http://proxy.example.net:3128/path",
        "http://u:hunter2@proxy.example.net:3128",
        "HTTP://u:hunter2@proxy.example.net:3128",
        "http://u:hunter2",
    ] {
        let error = wrong.parse::<ProxyUrl>().unwrap_err();
        assert!(
            !error.contains("hunter2") && !error.contains("example"),
            "{error}"
        );
    }
}

#[test]
fn a_pin_is_the_base64_of_a_digest() {
    let text = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let pin: Pin = text.parse().unwrap();
    assert_eq!(pin.to_string(), text);
    assert_eq!(format!("sha256//{text}").parse(), Ok(pin));
    for wrong in [
        "",
        "AAAA",
        "not base64 at all",
        "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=",
    ] {
        assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
    }
}
