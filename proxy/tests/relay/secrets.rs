//! A canary key goes through every way a request can end; it must not show in any record or any line of our log.

use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use crate::harness::{Client, Proxy, Upstream};

const CANARY: &str = "c0ffee00c0ffee00c0ffee00c0ffee00";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn no_key_is_ever_told() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("trace")
        .with_writer(log.clone())
        .finish();
    // The only test of this binary that sets it; the proxies of others only add lines.
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let upstream = Upstream::start();
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let proxies = [
        Proxy::start(upstream.address),
        Proxy::start(dead),
        Proxy::with(upstream.address, |setup| setup.tls.fail = true),
    ];
    let secret_head = format!(
        "DD-API-KEY: {CANARY}\r\nDD-APPLICATION-KEY: {CANARY}\r\nAuthorization: Bearer {CANARY}\r\nCookie: {CANARY}\r\n"
    );
    let mut sent = 0;
    for proxy in &proxies {
        for line in [
            format!("GET /api/v1/validate?api_key={CANARY} HTTP/1.1\r\nHost: localhost\r\n"),
            format!("POST /v1/input/{CANARY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 32\r\n"),
            format!("GET /{CANARY}/x HTTP/1.1\r\nHost: evil.example\r\n"),
            format!("GET /?api_key={CANARY} HTTP/1.1\r\nHost: {CANARY}@localhost\r\n"),
            format!("GET /{CANARY} HTTP/1.1\r\nHost: localhost\r\nBad Name {CANARY}: x\r\n"),
        ] {
            let mut client = Client::connect(proxy.explicit);
            client.send(format!("{line}{secret_head}Connection: close\r\n\r\n{CANARY}"));
            let answer = String::from_utf8_lossy(&client.rest()).into_owned();
            assert!(
                answer.starts_with("HTTP/1.1 ") && !answer.contains(CANARY),
                "{answer}"
            );
            sent += 1;
        }
        for host in [
            format!("{CANARY}@app.ddog-gov.com"),
            format!("{CANARY}.example.org"),
        ] {
            let mut client = Client::connect(proxy.intercept);
            client.send(format!(
                "GET /{CANARY} HTTP/1.1\r\nHost: {host}\r\n{secret_head}\r\n"
            ));
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            client.rest();
        }
        let records = format!("{:?} {:?}", proxy.requests(4), proxy.connections(7));
        assert!(!records.contains(CANARY), "{records}");
        assert!(records.contains("/v1/input/[redacted]"));
    }
    assert_eq!(sent, 15);
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("request failed"), "the log was captured");
    assert!(
        !log.contains(CANARY) && !log.to_ascii_lowercase().contains("bearer"),
        "a key is in the log"
    );
}
