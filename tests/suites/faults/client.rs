//! A client of the intake that breaks: curl, which nobody here wrote.

use std::time::{Duration, Instant};

use anyhow::Result;
use harness::agent::curl;
use harness::netns::Host;
use harness::world::API_KEY;

use crate::table::Ask;

/// What a request came to.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// `X-Agent-FIPS-Proxy-Error`.
    pub outcome: Option<String>,
    pub text: String,
    /// curl's.
    pub exit: i32,
    pub took: Duration,
}

/// One request by curl.
pub fn send(host: &Host, ask: Ask, id: &str, url: &str) -> Result<Answer> {
    let key = format!("DD-API-KEY: {API_KEY}");
    let mut words = vec!["-i", "-H", &key, "-H", id];
    let body;
    match ask {
        Ask::Get => {}
        Ask::Post(length) | Ask::Expect(length) => {
            body = format!("@{}", file(host, length)?);
            words.extend(["--data-binary", &body, "-H"]);
            words.push(match ask {
                Ask::Expect(_) => "Expect: 100-continue",
                _ => "Expect:",
            });
        }
    }
    words.push(url);
    let start = Instant::now();
    let answer = curl(host, None, &words)?;
    let outcome = answer.body.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.eq_ignore_ascii_case("x-agent-fips-proxy-error")).then(|| value.trim().to_owned())
    });
    Ok(Answer {
        status: answer.status,
        outcome,
        text: format!("{}{}", answer.body, answer.error),
        exit: answer.exit,
        took: start.elapsed(),
    })
}

/// A file of so many bytes on the host.
pub fn file(host: &Host, length: usize) -> Result<String> {
    let path = host.folder().join(format!("body-{length}"));
    if !path.exists() {
        std::fs::write(&path, vec![b'x'; length])?;
    }
    Ok(path.display().to_string())
}
