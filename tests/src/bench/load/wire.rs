//! One HTTP/1.1 answer, read strictly: anything but 200 with the backend's 15 bytes, and nothing after them, is an error by name.

use super::super::ANSWER;

/// An answer is far below this.
pub(super) const SPACE: usize = 4096;

/// True when `bytes` are one whole answer as it should be; false while it is not complete.
pub(super) fn complete(bytes: &[u8]) -> Result<bool, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < SPACE => return Ok(false),
        Ok(httparse::Status::Partial) => return Err("an answer without an end".to_owned()),
        Err(_) => return Err("not HTTP".to_owned()),
    };
    let status = response.code.unwrap_or(0);
    if status != 200 {
        return Err(format!("status {status}"));
    }
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    if length.is_none_or(|header| header.value != b"15") {
        return Err("not the backend's Content-Length".to_owned());
    }
    let body = &bytes[head..];
    if body.len() < ANSWER.len() {
        return Ok(false);
    }
    if body != ANSWER {
        return Err("not the backend's answer".to_owned());
    }
    Ok(true)
}

/// The error of a socket, by kind.
pub(super) fn failed(what: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{what}: {:?}", error.kind())
}
