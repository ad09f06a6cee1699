//! Splits: however the bytes of good requests come, the intake gets the same ones.

use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::bytes::{Split, split};
use crate::harness::{Proxy, Upstream, read_message};
use crate::requests::{LAST, Tee, ask, good};
use crate::run;

/// Good requests, one behind the other, and how they are split.
#[derive(Clone)]
struct Case {
    requests: Vec<Vec<u8>>,
    splits: [Split; 2],
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for request in &self.requests {
            let shown = &request[..request.len().min(400)];
            writeln!(f, "{} bytes: {}", request.len(), shown.escape_ascii())?;
        }
        write!(f, "{:?}", self.splits)
    }
}

fn case() -> impl Strategy<Value = Case> {
    (prop::collection::vec(good(), 1..4), [split(), split()])
        .prop_map(|(requests, splits)| Case { requests, splits })
}

/// An intake that keeps the bytes of each request, in the order in which they came, on whatever connection.
fn keeping() -> (Upstream, Arc<Mutex<Vec<Vec<u8>>>>) {
    let kept = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let all = Arc::clone(&kept);
    let upstream = Upstream::raw(move |stream, _| {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(Tee(stream, Arc::clone(&bytes)));
        while let Ok(Some(request)) = read_message(&mut reader, false) {
            assert!(reader.buffer().is_empty(), "the next came before the answer");
            let mut bytes = std::mem::take(&mut *bytes.lock().unwrap());
            if request.header("transfer-encoding") == Some("chunked") {
                // Each piece that comes goes on as a chunk: these are the split's, what is in them is not.
                let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
                bytes.truncate(head);
                bytes.extend(request.body);
            }
            all.lock().unwrap().push(bytes);
            if writer
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .is_err()
            {
                break;
            }
        }
    });
    (upstream, kept)
}

fn check(case: &Case, relayed: &AtomicUsize) -> Result<(), TestCaseError> {
    let (upstream, kept) = keeping();
    let address: SocketAddr = upstream.address;
    let proxy = Proxy::start(address);
    let bytes = [case.requests.concat(), LAST.to_vec()].concat();
    let mut got = [&Split::none(), &case.splits[0], &case.splits[1]].map(|split| {
        let answers = ask(&proxy, &bytes, split);
        (std::mem::take(&mut *kept.lock().unwrap()), answers)
    });
    got.reverse();
    let [second, first, (whole, answers)] = got;
    prop_assert_eq!(whole.len(), case.requests.len() + 1, "{:?}", answers);
    for (split, answers) in [first, second] {
        prop_assert_eq!(answers.relayed, whole.len(), "{:?}", answers);
        for (n, (got, expected)) in split.iter().zip(&whole).enumerate() {
            prop_assert!(
                got == expected,
                "request {}: {}\nin one piece: {}",
                n,
                got.escape_ascii(),
                expected.escape_ascii()
            );
        }
        prop_assert_eq!(split.len(), whole.len());
    }
    relayed.fetch_add(whole.len(), Ordering::Relaxed);
    Ok(())
}

#[test]
fn property_any_split_of_good_requests_gives_the_intake_the_same_bytes() {
    let relayed = AtomicUsize::new(0);
    let cases = run::cases(case, |case| check(case, &relayed));
    let relayed = relayed.into_inner();
    eprintln!("{cases} streams of {relayed} requests, each in three splits");
    assert!(
        cases >= 50 && relayed > cases,
        "too little was tried: {cases} {relayed}"
    );
}
