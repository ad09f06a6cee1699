//! Workers that are handed from one program to another.

use std::io::{BufRead, BufReader, Write};

use super::*;

/// A process that lives until its standard input closes, and our end of a channel that it takes no notice of.
fn child() -> (std::process::Child, UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    (child, ours, theirs.into())
}

fn record(pid: u32) -> WorkerRecord {
    WorkerRecord {
        id: 3,
        pid,
        age: Duration::from_secs(60),
        ready: true,
        draining: false,
        received: Vec::new(),
    }
}

fn lines(socket: &UnixStream) -> impl Iterator<Item = String> + use<> {
    BufReader::new(socket.try_clone().unwrap())
        .lines()
        .map_while(Result::ok)
}

#[tokio::test]
async fn a_message_that_is_cut_by_a_hand_over_arrives_whole() {
    let (mut child, mut theirs, channel) = child();
    let (events, mut heard) = mpsc::channel(8);
    let mut before = WorkerProcess::inherit(record(child.id()), channel, false, events.clone()).unwrap();
    theirs
        .write_all(
            b"{\"descriptors\":0,\"message\":\"alive\"}\n{\"descriptors\":0,\"message\":{\"failed\":{\"exit\":7,\"message\":\"\xc3",
        )
        .unwrap();
    assert!(matches!(
        heard.recv().await,
        Some((3, WorkerEvent::Said(FromWorker::Alive)))
    ));
    before.send(&ToWorker::Status).await;
    while !before.hush() {
        tokio::task::yield_now().await;
    }
    before.rest().await;
    let (after, channel) = before.record();
    assert_eq!((after.id, after.pid, after.ready), (3, child.id(), true));
    assert!(after.age >= Duration::from_secs(60) && !after.received.is_empty());
    let text = serde_json::to_string(&after).unwrap();
    let after: WorkerRecord = serde_json::from_str(&text).unwrap();
    let channel = channel.unwrap().try_clone_to_owned().unwrap();
    let mut after = WorkerProcess::inherit(after, channel, false, events).unwrap();
    drop(before);
    theirs.write_all(b"\xa4\"}}}\n").unwrap();
    match heard.recv().await {
        Some((3, WorkerEvent::Said(FromWorker::Failed { exit: 7, message }))) => assert_eq!(message, "ä"),
        other => panic!("{other:?}"),
    }
    after.drain().await;
    let said: Vec<String> = tokio::task::spawn_blocking(move || lines(&theirs).take(2).collect())
        .await
        .unwrap();
    assert!(
        said[0].contains("\"status\"") && said[1].contains("\"drain\""),
        "{said:?}"
    );
    drop(child.stdin.take());
    assert!(matches!(
        heard.recv().await,
        Some((3, WorkerEvent::Ended(Ok(WaitStatus::Exited(_, 0)))))
    ));
}

#[tokio::test]
async fn a_stranger_is_told_to_drain_and_nothing_else() {
    let (mut child, mut theirs, channel) = child();
    let (events, mut heard) = mpsc::channel(8);
    let mut worker = WorkerProcess::inherit(record(child.id()), channel, true, events).unwrap();
    theirs
        .write_all(b"{\"descriptors\":0,\"message\":{\"of another\":[\"program\"]}}\n")
        .unwrap();
    assert!(matches!(
        heard.recv().await,
        Some((3, WorkerEvent::Said(FromWorker::Alive)))
    ));
    worker.send(&ToWorker::Status).await;
    worker.send(&ToWorker::LogLevel("debug".to_owned())).await;
    worker.drain().await;
    // In order: what had been said before would stand before it.
    let said = tokio::task::spawn_blocking(move || {
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        lines(&theirs).next()
    });
    assert_eq!(
        said.await.unwrap().unwrap(),
        "{\"descriptors\":0,\"message\":\"drain\"}"
    );
    drop(child.stdin.take());
    assert!(matches!(heard.recv().await, Some((3, WorkerEvent::Ended(Ok(_))))));
}

#[tokio::test]
async fn one_that_was_not_handed_on_after_all_goes_on() {
    let (mut child, mut theirs, channel) = child();
    let (events, mut heard) = mpsc::channel(8);
    let mut worker = WorkerProcess::inherit(record(child.id()), channel, false, events.clone()).unwrap();
    while !worker.hush() {
        tokio::task::yield_now().await;
    }
    worker.rest().await;
    theirs
        .write_all(b"{\"descriptors\":0,\"message\":\"ready\"}\n")
        .unwrap();
    worker.wake(events);
    assert!(matches!(
        heard.recv().await,
        Some((3, WorkerEvent::Said(FromWorker::Ready)))
    ));
    worker.drain().await;
    let said = tokio::task::spawn_blocking(move || lines(&theirs).next());
    assert!(said.await.unwrap().unwrap().contains("drain"));
    drop(child.stdin.take());
    child.wait().unwrap();
}
