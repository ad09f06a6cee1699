//! What is sent to an intake leaves no choice to its reader.

use crate::oracle::Reading;

/// What the relay writes in place of any Host that it takes.
const HOST: &str = "metrics.agent.ddog-gov.com";

/// A head without its end.
fn check_head(head: &[u8]) -> Result<(), String> {
    let text: String = head.iter().map(|&byte| char::from(byte)).collect();
    let lines: Vec<&str> = text.split("\r\n").collect();
    if text.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return Err("a bare CR, LF or NUL".to_owned());
    }
    if !lines[0].ends_with(" HTTP/1.1") || lines[0].split(' ').count() != 3 {
        return Err(format!("request line {:?}", lines[0]));
    }
    let named = |name: &str| -> Vec<&str> {
        let of = lines[1..].iter().filter_map(|line| line.split_once(':'));
        of.filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    };
    if named("content-length").len() + named("transfer-encoding").len() > 1 {
        return Err("two framings".to_owned());
    }
    if named("transfer-encoding").iter().any(|value| *value != "chunked") {
        return Err("another coding than chunked".to_owned());
    }
    if named("host") != [HOST] {
        return Err(format!("Host {:?}", named("host")));
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
    ] {
        if !named(name).is_empty() {
            return Err(format!("{name} was passed on"));
        }
    }
    Ok(())
}

/// All of a connection to an intake: requests as `reading` says, each with one reading only, and nothing else.
pub fn check(bytes: &[u8], reading: &Reading) -> Result<(), String> {
    // The heads are found where hyper says that the bodies end, so that a body may look like anything.
    let mut at = 0;
    for request in &reading.requests {
        let end = bytes[at..].windows(4).position(|four| four == b"\r\n\r\n");
        let end = at + end.ok_or("hyper read a head without an end")?;
        check_head(&bytes[at..end]).map_err(|why| format!("{why}: {}", bytes[at..end].escape_ascii()))?;
        let head = String::from_utf8_lossy(&bytes[at..end]).to_lowercase();
        at = end + 4;
        if !request.complete {
            return Ok(());
        }
        if head.lines().any(|line| line == "transfer-encoding: chunked") {
            // One chunk a piece, no extensions, no trailers.
            let mut left = request.body.len();
            loop {
                let line = bytes[at..]
                    .windows(2)
                    .position(|two| two == b"\r\n")
                    .ok_or("a chunk without size")?;
                let size = str::from_utf8(&bytes[at..at + line]).map_err(|_| "a strange size")?;
                let size = usize::from_str_radix(size, 16).map_err(|_| "a size that is not only a number")?;
                at += line + 2 + size + 2;
                left = left.checked_sub(size).ok_or("more than the body")?;
                if size == 0 {
                    break;
                }
            }
            if left > 0 || !bytes[..at].ends_with(b"0\r\n\r\n") {
                return Err("not the end that it should have".to_owned());
            }
        } else {
            at += request.body.len();
        }
    }
    if at == bytes.len() {
        Ok(())
    } else {
        Err(format!("more bytes: {}", bytes[at..].escape_ascii()))
    }
}
