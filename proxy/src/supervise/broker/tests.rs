//! The broker against a master that the test plays.

use std::sync::Arc;

use super::*;

const POD: NetworkId = NetworkId(7);

fn broker() -> (Arc<Broker>, mpsc::UnboundedReceiver<FromWorker>) {
    let (ask, asked) = mpsc::unbounded_channel();
    (Arc::new(Broker::new(ask, Duration::from_millis(200))), asked)
}

/// The next request: its number and what it wants.
fn wanted(asked: &mut mpsc::UnboundedReceiver<FromWorker>) -> (u64, Kind) {
    match asked.try_recv() {
        Ok(FromWorker::SocketWanted {
            request,
            network,
            ipv6,
        }) => (request, (network, ipv6)),
        other => panic!("no request: {other:?}"),
    }
}

/// One end of a pair is the socket; the other tells whether it is still open.
fn socket() -> (OwnedFd, std::os::unix::net::UnixStream) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    b.set_nonblocking(true).unwrap();
    (a.into(), b)
}

fn is_closed(other: &std::os::unix::net::UnixStream) -> bool {
    use std::io::Read;
    let mut other = other;
    matches!(other.read(&mut [0; 1]), Ok(0))
}

/// A dial that waits, and its request.
async fn dial(
    broker: &Arc<Broker>,
    asked: &mut mpsc::UnboundedReceiver<FromWorker>,
) -> (tokio::task::JoinHandle<io::Result<OwnedFd>>, u64) {
    let waiting = Arc::clone(broker);
    let dial = tokio::spawn(async move { waiting.socket(POD, false).await });
    tokio::task::yield_now().await;
    let (request, kind) = wanted(asked);
    assert_eq!(kind, (POD, false));
    (dial, request)
}

#[tokio::test]
async fn after_the_first_dial_there_is_a_spare_that_nobody_waits_for() {
    let (broker, mut asked) = broker();
    let (first, request) = dial(&broker, &mut asked).await;
    let (made, first_end) = socket();
    broker.answer(request, Ok(made));
    let first = first.await.unwrap().unwrap();
    let (spare, _) = wanted(&mut asked);
    let (made, spare_end) = socket();
    broker.answer(spare, Ok(made));
    assert!(asked.try_recv().is_err(), "one spare is enough");
    // No await between: it is there at once.
    let second = broker.take_spare((POD, false)).unwrap();
    wanted(&mut asked);
    assert!(broker.take_spare((POD, true)).is_none(), "another family");
    drop(first);
    assert!(is_closed(&first_end) && !is_closed(&spare_end));
    drop(second);
    assert!(is_closed(&spare_end));
}

#[tokio::test]
async fn what_a_network_had_goes_with_it() {
    let (broker, mut asked) = broker();
    let (first, request) = dial(&broker, &mut asked).await;
    broker.answer(request, Ok(socket().0));
    first.await.unwrap().unwrap();
    let (spare, _) = wanted(&mut asked);
    let (made, spare_end) = socket();
    broker.answer(spare, Ok(made));
    let used = broker.take_spare((POD, false)).unwrap();
    let (on_its_way, _) = wanted(&mut asked);
    let (waiting, request) = dial(&broker, &mut asked).await;

    broker.forget(POD);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("network 7 is gone"), "{error}");
    // What the master had sent before it knew is not kept.
    for late in [on_its_way, request] {
        let (made, end) = socket();
        broker.answer(late, Ok(made));
        assert!(is_closed(&end));
    }
    drop(used);
    assert!(is_closed(&spare_end));
}

#[tokio::test]
async fn a_spare_of_a_removed_network_is_closed() {
    let (broker, mut asked) = broker();
    let (first, request) = dial(&broker, &mut asked).await;
    broker.answer(request, Ok(socket().0));
    first.await.unwrap().unwrap();
    let (spare, _) = wanted(&mut asked);
    let (made, end) = socket();
    broker.answer(spare, Ok(made));
    broker.forget(NetworkId(8));
    assert!(!is_closed(&end));
    broker.forget(POD);
    assert!(is_closed(&end));
}

#[tokio::test(start_paused = true)]
async fn a_master_that_is_silent_or_refuses_or_is_gone_fails_the_dial() {
    let (broker, mut asked) = broker();
    let (silent, late) = dial(&broker, &mut asked).await;
    let error = silent.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let (made, end) = socket();
    broker.answer(late, Ok(made));
    assert!(is_closed(&end), "nobody waits for it any more");

    let (refused, request) = dial(&broker, &mut asked).await;
    broker.answer(request, Err(io::Error::other("no such network")));
    assert!(
        refused
            .await
            .unwrap()
            .unwrap_err()
            .to_string()
            .contains("no such network")
    );
    assert!(asked.try_recv().is_err(), "no spare of what could not be had");

    let (cut, _) = dial(&broker, &mut asked).await;
    broker.close();
    assert_eq!(cut.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(asked);
    let error = broker.socket(POD, true).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    // An answer to nobody is not our end.
    broker.answer(12345, Err(io::Error::other("stray")));
}
