//! The intake's HTTP/1.1, parsed strictly and by hand.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Answer, Connection, Head};
use crate::hex;

/// The longest request head that is read.
const MAX_HEAD: usize = 64 * 1024;
const BODY: &str = r#"{"status":"ok"}"#;

/// Serves one connection to its end. An error ends it, as it would at an intake; a request that cannot be read to its
/// end is not recorded.
pub(super) async fn serve(stream: TlsStream<TcpStream>, connection: &Connection) {
    let mut reader = Reader {
        stream,
        buffer: Vec::new(),
    };
    while let Ok(Some((head, framing))) = reader.head().await {
        if head
            .headers
            .iter()
            .any(|(name, value)| name == "expect" && value.eq_ignore_ascii_case("100-continue"))
            && reader
                .stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .is_err()
        {
            return;
        }
        let mut kept = connection.kept(&head.target);
        let Ok((length, sum)) = reader.body(framing, kept.as_mut()).await else {
            return;
        };
        connection.keep(kept);
        let answer = connection.record("1.1", head, length, sum);
        match respond(&mut reader, &answer).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = reader.stream.shutdown().await;
                return;
            }
            Err(_) => return,
        }
    }
}

/// How a request body is delimited.
#[derive(Clone, Copy)]
enum Framing {
    Length(u64),
    Chunked,
}

struct Reader {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Reader {
    /// The next head; none when the client closed between two requests.
    async fn head(&mut self) -> Result<Option<(Head, Framing)>> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > MAX_HEAD {
                bail!("head too long");
            }
            if !self.more().await? {
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        parse(&text).map(Some)
    }

    /// Reads the body, into `kept` where there is one; its length and SHA-256.
    async fn body(&mut self, framing: Framing, mut kept: Option<&mut Vec<u8>>) -> Result<(u64, String)> {
        let mut sum = digest::Context::new(&digest::SHA256);
        let mut total = 0;
        match framing {
            Framing::Length(length) => {
                self.take(length, &mut sum, kept.as_deref_mut()).await?;
                total = length;
            }
            Framing::Chunked => loop {
                let line = self.line().await?;
                let size = u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
                    .with_context(|| format!("chunk size {line:?}"))?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                self.take(size, &mut sum, kept.as_deref_mut()).await?;
                total += size;
                if !self.line().await?.is_empty() {
                    bail!("a chunk is longer than it said");
                }
            },
        }
        Ok((total, hex(sum.finish().as_ref())))
    }

    async fn take(
        &mut self,
        mut length: u64,
        sum: &mut digest::Context,
        mut kept: Option<&mut Vec<u8>>,
    ) -> Result<()> {
        while length > 0 {
            if self.buffer.is_empty() && !self.more().await? {
                bail!("the body broke off");
            }
            let here = self
                .buffer
                .len()
                .min(usize::try_from(length).unwrap_or(usize::MAX));
            sum.update(&self.buffer[..here]);
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(&self.buffer[..here]);
            }
            self.buffer.drain(..here);
            length -= here as u64;
        }
        Ok(())
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if !self.more().await? {
                bail!("the body broke off");
            }
        }
    }

    async fn more(&mut self) -> Result<bool> {
        let mut piece = vec![0; 32 * 1024];
        let length = self.stream.read(&mut piece).await?;
        self.buffer.extend_from_slice(&piece[..length]);
        Ok(length > 0)
    }

    /// Makes the coming close an RST.
    fn reset(&self) -> Result<()> {
        let (tcp, _) = self.stream.get_ref();
        socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }
}

/// Parses a head without its final blank line. What a lenient server would accept is a fault here.
fn parse(text: &str) -> Result<(Head, Framing)> {
    let mut faults = Vec::new();
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        bail!("request line");
    };
    if text.replace("\r\n", "").contains(['\r', '\n']) {
        faults.push("bare CR or LF in the head".to_owned());
    }
    if !target.starts_with('/') {
        faults.push(format!("target {target} is not in origin form"));
    }
    let mut headers = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            faults.push("obs-fold".to_owned());
        }
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("header line without a colon: {line:?}"))?;
        if name.is_empty() || name.contains([' ', '\t']) {
            faults.push(format!("header name {name:?}"));
        }
        headers.push((
            name.to_ascii_lowercase(),
            value.trim_matches([' ', '\t']).to_owned(),
        ));
    }
    let all = |name: &str| {
        headers
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
    };
    let (hosts, lengths, codings) = (all("host"), all("content-length"), all("transfer-encoding"));
    if hosts.len() != 1 {
        faults.push(format!("{} Host headers", hosts.len()));
    }
    if lengths.len() + codings.len() > 1 {
        faults.push(format!(
            "content-length {lengths:?} with transfer-encoding {codings:?}"
        ));
    }
    let framing = match (codings.first(), lengths.first()) {
        (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        (Some(coding), _) => bail!("transfer-encoding {coding}"),
        (None, Some(length)) => Framing::Length(
            length
                .parse()
                .with_context(|| format!("content-length {length}"))?,
        ),
        (None, None) => Framing::Length(0),
    };
    let head = Head {
        method: method.to_owned(),
        target: target.to_owned(),
        host: hosts.first().cloned().unwrap_or_default(),
        headers,
        faults,
    };
    Ok((head, framing))
}

/// Writes the answer; true when the connection goes on.
async fn respond(reader: &mut Reader, answer: &Answer) -> Result<bool> {
    let full = |status: u16, body: &str| {
        format!(
            "HTTP/1.1 {status} Test\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let accepted = full(202, BODY);
    let middle = accepted.len() - BODY.len() / 2;
    let (first, pause, rest): (&[u8], Option<Duration>, &[u8]) = match answer {
        Answer::Slow(pause) => (b"", Some(*pause), accepted.as_bytes()),
        Answer::SlowBody(pause) => (
            &accepted.as_bytes()[..middle],
            Some(*pause),
            &accepted.as_bytes()[middle..],
        ),
        Answer::Status(status, body) => {
            write(reader, full(*status, body).as_bytes()).await?;
            return Ok(true);
        }
        Answer::EarlyHints => {
            write(reader, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").await?;
            (accepted.as_bytes(), None, b"")
        }
        Answer::OddChunks => (
            b"HTTP/1.1 202 Test\r\nTransfer-Encoding: Chunked\r\nTrailer: x-end\r\n\r\n\
              1\r\n{\r\n0000d;name=\"va;lue\"\r\n\"status\":\"ok\"\r\n01\r\n}\r\n0\r\nx-end: yes\r\n\r\n",
            None,
            b"",
        ),
        Answer::UntilClose(body) => {
            write(reader, format!("HTTP/1.1 200 Test\r\n\r\n{body}").as_bytes()).await?;
            return Ok(false);
        }
        Answer::ResetBeforeHead => {
            reader.reset()?;
            bail!("reset as told");
        }
        Answer::ResetInHead => {
            write(reader, &accepted.as_bytes()[..20]).await?;
            // Long enough for the bytes to arrive before the RST overtakes them.
            tokio::time::sleep(Duration::from_millis(50)).await;
            reader.reset()?;
            bail!("reset as told");
        }
        Answer::ResetInBody => {
            write(reader, &accepted.as_bytes()[..middle]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            reader.reset()?;
            bail!("reset as told");
        }
        Answer::CloseOnNext => {
            write(reader, accepted.as_bytes()).await?;
            if reader.buffer.is_empty() {
                let _ = reader.more().await;
            }
            bail!("closed as told");
        }
        Answer::Accepted | Answer::CloseAfter => (accepted.as_bytes(), None, b""),
    };
    write(reader, first).await?;
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
    }
    write(reader, rest).await?;
    Ok(*answer != Answer::CloseAfter)
}

async fn write(reader: &mut Reader, bytes: &[u8]) -> Result<()> {
    reader.stream.write_all(bytes).await?;
    reader.stream.flush().await?;
    Ok(())
}
