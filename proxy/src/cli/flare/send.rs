//! Sends a bundle to `flare.<site>` as the Agent sends its own: `POST /support/flare[/CASE]?api_key=KEY`, a form, and JSON with the case's
//! number as the answer. Datadog documents the command and what it asks for; the wire is only in the Agent's source
//! (`comp/core/flare/helpers/send_flare.go`, `readAndPostFlareFile`, `analyzeResponse`). Unlike it, redirects are not followed.

use std::fs::File;
use std::path::Path;

use http::{Method, Request, StatusCode};

use super::{Exit, Failure, form};
use crate::catalog::Product;
use crate::config::Config;
use crate::observe::redact::Document;
use crate::relay::upstream::errand::{self, Answer, ErrandError};
use crate::tls;

/// Of what an intake says, so many characters are repeated; as many as the Agent does.
const SAMPLE: usize = 150;

/// What is sent.
pub(super) struct Parcel<'a> {
    pub(super) path: &'a Path,
    pub(super) case_id: Option<&'a str>,
    pub(super) email: Option<&'a str>,
    pub(super) host: &'a str,
    pub(super) key: &'a str,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) case_id: String,
    /// What TLS agreed on, for people.
    pub(super) tls: String,
}

/// Sends it.
pub(super) fn send(config: &Config, parcel: &Parcel<'_>) -> Result<Sent, Failure> {
    tls::module::start().map_err(|error| {
        (
            Exit::Internal,
            format!("the crypto module is not usable: {error}"),
        )
    })?;
    let unreadable = |error: std::io::Error| (Exit::Internal, format!("cannot read it again: {error}"));
    let file = File::open(parcel.path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let name = parcel.path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name
        .chars()
        .filter(|c| !c.is_control() && !matches!(c, '"' | '\\'))
        .collect();
    let before: Vec<(&str, &str)> = [("case_id", parcel.case_id), ("email", parcel.email)]
        .into_iter()
        .filter_map(|(field, value)| Some((field, value?)))
        .collect();
    let after = [
        ("agent_version", env!("CARGO_PKG_VERSION")),
        ("hostname", parcel.host),
    ];
    let form = form::form(&before, (&name, file, length), &after).map_err(unreadable)?;
    let case = parcel.case_id.map_or_else(String::new, |case| format!("/{case}"));
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/support/flare{case}?api_key={}", parcel.key))
        .header("content-type", form.content_type)
        .header(
            "user-agent",
            concat!("agent-fips-proxy/", env!("CARGO_PKG_VERSION")),
        )
        .body(())
        // Its words could hold the key.
        .map_err(|_| (Exit::Internal, "the request cannot be made".to_owned()))?;
    let answer = errand::send(config, Product::Flare, request, form.body, form.length).map_err(|error| {
        let exit = match &error {
            ErrandError::Tls(_) | ErrandError::Outbound(_) => Exit::Config,
            ErrandError::Runtime(_) => Exit::Internal,
            ErrandError::Failed(_) => Exit::Unavailable,
        };
        (exit, error.to_string())
    })?;
    judge(&answer, parcel.key)
}

fn judge(answer: &Answer, key: &str) -> Result<Sent, Failure> {
    let said = said(answer, key);
    let status = answer.status;
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err((
                Exit::NoPermission,
                format!("it refuses the API key ({status}): is it a key of this site (`site`)?{said}"),
            ));
        }
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
            return Err((
                Exit::Usage,
                format!(
                    "it refuses this bundle ({status}): see that the case is there and the e-mail address is the case's{said}"
                ),
            ));
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            return Err((
                Exit::Unavailable,
                format!("it is too large for it ({status}): send the file to support yourself{said}"),
            ));
        }
        status if status.is_redirection() => {
            let host = answer
                .location
                .as_deref()
                .and_then(|location| location.parse::<http::Uri>().ok());
            let host = host.as_ref().and_then(http::Uri::host).unwrap_or("elsewhere");
            return Err((
                Exit::Unavailable,
                format!("it answered {status} and points to {host}, which is not followed: is `site` right?"),
            ));
        }
        status => {
            return Err((
                Exit::Unavailable,
                format!("it answered {status}: try again later{said}"),
            ));
        }
    }
    let json = answer
        .content_type
        .as_deref()
        .is_some_and(|kind| kind.starts_with("application/json"));
    let body = json
        .then(|| serde_json::from_slice::<serde_json::Value>(&answer.body).ok())
        .flatten();
    let Some(body) = body else {
        return Err((
            Exit::Unavailable,
            format!(
                "it answered 200, and not with JSON: whether it has the bundle is not known, ask support{said}"
            ),
        ));
    };
    if body
        .get("error")
        .and_then(serde_json::Value::as_str)
        .is_some_and(|error| !error.is_empty())
    {
        return Err((Exit::Unavailable, format!("it answered with an error{said}")));
    }
    let case_id = match body.get("case_id") {
        Some(serde_json::Value::Number(number)) => number.to_string(),
        Some(serde_json::Value::String(text)) => sample(text, key),
        _ => "none was told".to_owned(),
    };
    let tls = &answer.tls;
    let group = tls.group.as_deref().unwrap_or("-");
    Ok(Sent {
        case_id,
        tls: format!(
            "{} {} {group}, by this program's validated module",
            tls.version, tls.suite
        ),
    })
}

/// The beginning of what it said, fit to be shown.
fn said(answer: &Answer, key: &str) -> String {
    let text = sample(&String::from_utf8_lossy(&answer.body), key);
    if text.is_empty() {
        String::new()
    } else {
        format!("; it says: {text}")
    }
}

fn sample(text: &str, key: &str) -> String {
    let mut document = Document::new();
    document.know(key);
    let text = document.scrub(text);
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(SAMPLE)
        .collect()
}

/// For the command line: what can be a part of a path as it stands.
pub(super) fn case_id(text: &str) -> Result<String, String> {
    let sound =
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    sound
        .then(|| text.to_owned())
        .ok_or_else(|| "a case id has letters, digits and hyphens only, for example 123456".to_owned())
}

/// For the command line: what can be a field of a form as it stands.
pub(super) fn email(text: &str) -> Result<String, String> {
    let parts = text.split_once('@');
    let sound = text.len() <= 254
        && parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
        && !text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '"');
    sound
        .then(|| text.to_owned())
        .ok_or_else(|| "an e-mail address is expected, for example you@example.com".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn answer(status: u16, content_type: &str, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: Some(content_type.to_owned()),
            location: Some("https://other.example.com/x?api_key=zzsecretzz".to_owned()),
            body: body.as_bytes().to_vec(),
            tls: Arc::default(),
        }
    }

    #[test]
    fn every_answer_has_its_exit_code_and_words() {
        let json = "application/json";
        assert_eq!(
            judge(&answer(200, json, r#"{"case_id":77}"#), "k")
                .unwrap()
                .case_id,
            "77"
        );
        assert_eq!(
            judge(&answer(200, json, "{}"), "k").unwrap().case_id,
            "none was told"
        );
        for (status, content_type, body, exit, words) in [
            (200, "text/html", "<p>", Exit::Unavailable, "not with JSON"),
            (
                200,
                json,
                r#"{"error":"no such case"}"#,
                Exit::Unavailable,
                "no such case",
            ),
            (202, json, "{}", Exit::Unavailable, "202"),
            (
                301,
                json,
                "",
                Exit::Unavailable,
                "other.example.com, which is not followed",
            ),
            (400, json, "bad mail", Exit::Usage, "bad mail"),
            (401, json, "", Exit::NoPermission, "API key"),
            (403, json, "", Exit::NoPermission, "API key"),
            (404, json, "", Exit::Usage, "case"),
            (413, json, "", Exit::Unavailable, "too large"),
            (429, json, "", Exit::Unavailable, "429"),
            (
                500,
                json,
                "oops zzsecretzz api_key=other",
                Exit::Unavailable,
                "oops [redacted]",
            ),
        ] {
            let (got, message) = judge(&answer(status, content_type, body), "zzsecretzz").unwrap_err();
            assert_eq!(got, exit, "{status}: {message}");
            assert!(message.contains(words), "{status}: {message}");
            assert!(
                !message.contains("zzsecretzz") && !message.contains("other\n"),
                "{message}"
            );
        }
    }

    #[test]
    fn what_goes_into_the_request_is_checked() {
        for good in ["1", "123456", "abc-9"] {
            assert!(case_id(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "1?x", "1 2", "é", &"1".repeat(65)] {
            assert!(case_id(bad).is_err(), "{bad}");
        }
        assert!(email("a.b+c@example.com").is_ok());
        for bad in ["", "a", "@b", "a@", "a\r\n@b", "a\"@b", "a b@c"] {
            assert!(email(bad).is_err(), "{bad}");
        }
    }
}
