//! A hundred requests at once on one connection, each with its own content, whatever the intake speaks.

use agent_fips_proxy::relay::outcome::Outcome;
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::intake::{Intake, MIB, Sender, asking, connect, content, digest, empty, full};
use crate::world::World;

const STREAMS: usize = 100;

async fn up(mut sender: Sender, number: usize) {
    let content = content(number);
    let expected = digest(&content);
    let request = asking("POST", &format!("/up/{number}"), full(content));
    let response = sender.send_request(request).await.unwrap();
    let said = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(said, Bytes::from(expected), "stream {number} arrived changed");
}

async fn down(mut sender: Sender, number: usize) {
    let request = asking("GET", &format!("/down/{number}"), empty());
    let response = sender.send_request(request).await.unwrap();
    let came = response.into_body().collect().await.unwrap().to_bytes();
    assert!(
        came == content(number),
        "stream {number} came changed: {} bytes",
        came.len()
    );
}

/// All of them at once: the intake answers none before all are there.
async fn hundred(http2: bool, goes_up: impl Fn(usize) -> bool) {
    let intake = Intake::of(http2, STREAMS);
    let world = World::with(intake.address, |setup| setup.tls.http2 = http2);
    let sender = connect(&world).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        if goes_up(number) {
            tasks.spawn(up(sender.clone(), number));
        } else {
            tasks.spawn(down(sender.clone(), number));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    drop(sender);
    assert_eq!((intake.begun(), intake.cancelled()), (STREAMS, 0));
    let records = world.requests(STREAMS);
    let bytes: u64 = records
        .iter()
        .map(|record| record.bytes_up + record.bytes_down)
        .sum();
    assert!(bytes >= (STREAMS * MIB) as u64, "{bytes}");
    for record in records {
        assert_eq!(record.outcome, Outcome::Ok, "{record:?}");
        assert_eq!(record.upstream_http, Some(if http2 { "2" } else { "1.1" }));
    }
    let record = &world.connections(1)[0];
    assert_eq!((record.outcome, record.requests), (Outcome::Ok, STREAMS as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hundred_uploads_of_1_mib_arrive_intact() {
    for http2 in [false, true] {
        hundred(http2, |_| true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hundred_downloads_of_1_mib_arrive_intact() {
    for http2 in [false, true] {
        hundred(http2, |_| false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_hundred_both_ways_arrive_intact() {
    for http2 in [false, true] {
        hundred(http2, |number| number % 2 == 0).await;
    }
}
