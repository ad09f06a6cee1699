//! What goes, what stays, and that a key goes from any text.

use proptest::prelude::*;

use super::*;

const KEY: &str = "c0ffee11c0ffee22c0ffee33c0ffee44";

fn scrub(text: &str) -> String {
    Document::new().scrub(text)
}

#[test]
fn values_behind_telling_names() {
    for (input, expected) in [
        ("api_key: abc", "api_key: [redacted]"),
        ("  - api_key: abc def", "  - api_key: [redacted]"),
        ("DD_API_KEY=ab,c;d e", "DD_API_KEY=[redacted]"),
        ("export DB_PASSWORD='a b'", "export DB_PASSWORD='[redacted]'"),
        ("DD-API-KEY: abc", "DD-API-KEY: [redacted]"),
        (
            "Authorization: Digest username=\"x\", nonce=\"y\"",
            "Authorization: [redacted]",
        ),
        ("Cookie: a=b; c=d", "Cookie: [redacted]"),
        (
            "GET /v?api_key=abc&x=1 failed",
            "GET /v?api_key=[redacted]&x=1 failed",
        ),
        ("u=%2Fv%3Fapi_key%3Dabc%26x", "u=%2Fv%3Fapi_key%3D[redacted]"),
        (
            "said {\"auth_token\":\"a\\\"b\"} ok",
            "said {\"auth_token\":\"[redacted]\"} ok",
        ),
        (
            r#"x="{\"password\":\"abc\",\"n\":1}""#,
            r#"x="{\"password\":\"[redacted]\",\"n\":1}""#,
        ),
        (
            "password: |\n  abc\n  def\nsite: x",
            "password: |\n  [redacted]\n  [redacted]\nsite: x",
        ),
        (
            "tokens:\n- abc\n- def\nsite: x",
            "tokens:\n[redacted]\n[redacted]\nsite: x",
        ),
        (
            "snmp_password:\n\n    abc\nsite: x",
            "snmp_password:\n\n    [redacted]\nsite: x",
        ),
        // What is no secret stays.
        (
            "upstream.proxy.credentials_file  /etc/x  # file",
            "upstream.proxy.credentials_file  /etc/x  # file",
        ),
        ("credentials_file: /etc/x", "credentials_file: /etc/x"),
        ("a::token::b site=ddog-gov.com", "a::token::b site=ddog-gov.com"),
        (
            "mail someone@example.com about it",
            "mail someone@example.com about it",
        ),
        (
            "at 12:30 the site is ddog-gov.com",
            "at 12:30 the site is ddog-gov.com",
        ),
    ] {
        assert_eq!(scrub(input), expected, "{input}");
    }
}

#[test]
fn places() {
    for (input, expected) in [
        (
            "to http://user:pa/ss@proxy:3128/x",
            "to http://[redacted]@proxy:3128/x",
        ),
        ("to http://token@proxy:3128", "to http://[redacted]@proxy:3128"),
        ("https://host:80/x@y stays", "https://host:80/x@y stays"),
        ("https://host/x@y stays", "https://host/x@y stays"),
        ("curl -x user:pass@proxy:1", "curl -x [redacted]@proxy:1"),
        ("sent Bearer abc.def-123 then", "sent Bearer [redacted] then"),
        ("sent \"Basic  dXNlcjpwYXNz\"", "sent \"Basic  [redacted]\""),
        (
            "POST /V1/Input/whatever/x?y 403",
            "POST /V1/Input/[redacted]/x?y 403",
        ),
        (
            "u=%2Fv1%2Finput%2Fwhatever%2Fx",
            "u=%2Fv1%2Finput%2F[redacted]%2Fx",
        ),
        (
            "a\n-----BEGIN EC PRIVATE KEY-----\nabc\ndef\n-----END EC PRIVATE KEY-----\nb",
            "a\n[redacted]\nb",
        ),
        (
            "k=\"-----BEGIN PRIVATE KEY-----\\nabc\\n-----END PRIVATE KEY-----\\n\" b",
            "k=\"[redacted]\\n\" b",
        ),
        // Cut in the middle.
        ("abc\ndef=\n-----END PRIVATE KEY-----\nb", "[redacted]\nb"),
        (
            "10:00 x: abc\n10:00 x: def=\n10:00 x: -----END PRIVATE KEY-----\nb",
            "[redacted]\nb",
        ),
        ("a -----BEGIN PRIVATE KEY-----\nabc\ndef", "a [redacted]"),
        (
            "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
        ),
    ] {
        assert_eq!(scrub(input), expected, "{input}");
    }
}

#[test]
fn of_a_key_that_was_cut_no_more_than_a_key_goes() {
    let before: String = (0..1000).map(|n| format!("line {n}\n")).collect();
    let scrubbed = scrub(&format!("{before}-----END PRIVATE KEY-----\nafter\n"));
    assert!(scrubbed.starts_with("line 0\n") && scrubbed.ends_with("[redacted]\nafter\n"));
    assert!(
        scrubbed.contains("line 700\n") && !scrubbed.contains("line 800\n"),
        "{scrubbed}"
    );
}

#[test]
fn json_stays_json() {
    let text = format!(
        r#"{{"site":"x","upstream":{{"token":{{"deep":["abc",1]}},"proxy":"http://u:p@h"}},"n":5,"{KEY}":"{KEY}","ok":true}}"#
    );
    let read: Value = serde_json::from_str(&scrub(&text)).unwrap();
    assert_eq!(read["upstream"]["token"]["deep"][0], "[redacted]");
    assert_eq!(read["upstream"]["token"]["deep"][1], "[redacted]");
    assert_eq!(read["upstream"]["proxy"], "http://[redacted]@h");
    assert_eq!(read["[redacted]"], "[redacted]");
    assert_eq!(
        (&read["n"], &read["ok"], &read["site"]),
        (&5.into(), &true.into(), &"x".into())
    );
    // A line of a log each.
    let log = scrub(
        "start\n{\"message\":\"Authorization: Bearer abcdefgh\",\"level\":\"info\"}\n{\"broken\": \"api_key=abc\n",
    );
    assert_eq!(
        log,
        "start\n{\"level\":\"info\",\"message\":\"Authorization: [redacted]\"}\n{\"broken\": \"api_key=[redacted]\n"
    );
}

#[test]
fn known_secrets_go_in_every_form_and_known_numbers_stay() {
    let mut document = Document::new();
    document.know("pass word/1+é");
    document.know("ab");
    document.trust("0123456789abcdef0123456789abcdef01234567");
    let text = format!(
        "{} {} pass%20word%2F1%2B%C3%A9 pass%20word%2f1%2b%c3%a9 PASS WORD/1+é ab 0123456789abcdef0123456789abcdef01234567",
        STANDARD.encode("pass word/1+é"),
        URL_SAFE_NO_PAD.encode("pass word/1+é"),
    );
    let scrubbed = document.scrub(&text);
    assert_eq!(
        scrubbed,
        "[redacted] [redacted] [redacted] [redacted] [redacted] ab 0123456789abcdef0123456789abcdef01234567"
    );
    assert!(!format!("{document:?}").contains("word"));
}

proptest! {
    #[test]
    fn property_no_key_survives_in_any_text(
        key in prop_oneof!["[0-9a-f]{32}", "[0-9a-f]{40}", "[0-9A-F]{32}", "[0-9a-fA-F]{40}"],
        before in "(?s).{0,60}",
        after in "(?s).{0,60}",
    ) {
        let scrubbed = scrub(&format!("{before}{key}{after}")).to_ascii_lowercase();
        prop_assert!(!scrubbed.contains(&key.to_ascii_lowercase()), "{scrubbed}");
    }

    #[test]
    fn property_no_named_value_survives(
        name in "(DD_API_KEY|db_password|auth-token|X-Secret|Authorization|Cookie|dd-application-key)",
        sign in "(: |=|:|%3D)",
        value in "[g-z][A-Za-z0-9+/._~-]{7,40}",
        before in "([a-z0-9 .,/?&{\\[-]{0,20}[ ?&{,])?",
        after in "([ &\"'][a-z0-9 =:]{0,20})?",
    ) {
        let text = format!("{before}{name}{sign}{value}{after}");
        prop_assert!(!scrub(&text).contains(&value), "{text} became {}", scrub(&text));
        let quoted = format!("{before}\"{name}\"{sign}\"{value}\"{after}");
        prop_assert!(!scrub(&quoted).contains(&value), "{quoted} became {}", scrub(&quoted));
    }

    #[test]
    fn property_any_text_is_scrubbed_without_a_panic(text in "(?s).{0,200}") {
        let _ = scrub(&text);
    }
}
