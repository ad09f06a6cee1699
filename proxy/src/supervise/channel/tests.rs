//! Messages and descriptors between two ends of a socket pair, whole, cut up, many, and wrong.

use std::io::{Read, Seek, Write};
use std::time::Duration;

use super::*;
use crate::relay::network::{NetworkId, Taken};
use crate::supervise::protocol::{Passed, Purpose, ToWorker};

/// Files that hold their number.
fn files(numbers: std::ops::Range<usize>) -> Vec<OwnedFd> {
    numbers
        .map(|number| {
            let mut file = tempfile::tempfile().unwrap();
            write!(file, "{number}").unwrap();
            file.into()
        })
        .collect()
}

fn numbers(descriptors: Vec<OwnedFd>) -> Vec<usize> {
    descriptors
        .into_iter()
        .map(|descriptor| {
            let mut file = std::fs::File::from(descriptor);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text.parse().unwrap()
        })
        .collect()
}

fn ends() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

#[tokio::test]
async fn messages_and_descriptors_keep_together() {
    let (a, b) = ends();
    let (mut tx, _keep) = Channel::new(a).split().unwrap();
    let (_other, mut rx) = Channel::new(b).split().unwrap();
    // All of it waits in the socket before anything is read, so that reads could glue what does not belong together.
    tx.send(&"none").await.unwrap();
    tx.send_frame(Frame::new(&"two\nlines", files(0..2)).unwrap())
        .await
        .unwrap();
    tx.send_frame(Frame::new(&"one", files(2..3)).unwrap())
        .await
        .unwrap();
    tx.send(&"none again").await.unwrap();
    tx.send_frame(Frame::new(&"last", files(3..6)).unwrap())
        .await
        .unwrap();
    let mut heard = Vec::new();
    drop((tx, _keep));
    while let Some((message, descriptors)) = rx.next::<String>().await.unwrap() {
        heard.push((message, numbers(descriptors)));
    }
    let expected: [(&str, &[usize]); 5] = [
        ("none", &[]),
        ("two\nlines", &[0, 1]),
        ("one", &[2]),
        ("none again", &[]),
        ("last", &[3, 4, 5]),
    ];
    assert_eq!(heard.len(), expected.len());
    for ((message, numbers), (text, wanted)) in heard.iter().zip(expected) {
        assert_eq!((message.as_str(), numbers.as_slice()), (text, wanted));
    }
}

#[tokio::test]
async fn many_descriptors_and_a_large_message_go_through_a_small_socket() {
    let (a, b) = ends();
    let mut receiver = Channel::new(b);
    let reader = std::thread::spawn(move || receiver.receive::<String>().unwrap());
    let (mut tx, _keep) = Channel::new(a).split().unwrap();
    let text = "x".repeat(3 << 20);
    tx.send_frame(Frame::new(&text, files(0..700)).unwrap())
        .await
        .unwrap();
    let (heard, descriptors) = reader.join().unwrap();
    assert_eq!(heard.len(), text.len());
    assert_eq!(numbers(descriptors), (0..700).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_read_too_far_before_the_event_loop_is_not_lost() {
    let (a, b) = ends();
    let (mut tx, _keep) = Channel::new(a).split().unwrap();
    tx.send_frame(Frame::new(&1, files(0..1)).unwrap()).await.unwrap();
    for number in 2..20 {
        tx.send(&number).await.unwrap();
    }
    tx.send_frame(Frame::new(&20, files(1..2)).unwrap())
        .await
        .unwrap();
    let mut channel = Channel::new(b);
    let (first, descriptors) = channel.receive::<u32>().unwrap();
    assert_eq!((first, numbers(descriptors)), (1, vec![0]));
    let (second, _) = channel.receive::<u32>().unwrap();
    assert_eq!(second, 2);
    let (_tx, mut rx) = channel.split().unwrap();
    for expected in 3..20 {
        let (number, descriptors) = rx.next::<u32>().await.unwrap().unwrap();
        assert_eq!((number, descriptors.len()), (expected, 0));
    }
    let (number, descriptors) = rx.next::<u32>().await.unwrap().unwrap();
    assert_eq!((number, numbers(descriptors)), (20, vec![1]));
}

#[tokio::test]
async fn a_cancelled_wait_keeps_what_is_half_received() {
    let (mut a, b) = ends();
    let (_tx, mut rx) = Channel::new(b).split().unwrap();
    let line = "{\"descriptors\":0,\"message\":\"in pieces\"}\n";
    for byte in line.as_bytes().chunks(5) {
        let waited = tokio::time::timeout(Duration::from_millis(5), rx.next::<String>()).await;
        assert!(waited.is_err());
        a.write_all(byte).unwrap();
    }
    let (message, _) = rx.next::<String>().await.unwrap().unwrap();
    assert_eq!(message, "in pieces");
}

#[tokio::test]
async fn what_is_no_message_of_ours_is_an_error() {
    for (sent, kind) in [
        ("garbage\n", io::ErrorKind::InvalidData),
        ("{\"descriptors\":0}\n", io::ErrorKind::InvalidData),
        (
            "{\"descriptors\":-1,\"message\":\"x\"}\n",
            io::ErrorKind::InvalidData,
        ),
        // It announces descriptors that do not come.
        (
            "{\"descriptors\":1,\"message\":\"x\"}\n",
            io::ErrorKind::InvalidData,
        ),
        ("{\"descriptors\":0,\"mess", io::ErrorKind::UnexpectedEof),
    ] {
        let (mut a, b) = ends();
        a.write_all(sent.as_bytes()).unwrap();
        drop(a);
        let (_tx, mut rx) = Channel::new(b).split().unwrap();
        let error = rx.next::<String>().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{sent}: {error}");
    }
    let (a, b) = ends();
    drop(a);
    assert_eq!(
        Channel::new(b).receive::<String>().unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn an_endless_message_is_refused_on_both_sides() {
    let refused = Frame::new(&"x".repeat(MAX_MESSAGE), Vec::new()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    let (mut a, b) = ends();
    let writer = std::thread::spawn(move || {
        let piece = [b'x'; 1 << 16];
        // Ends when the reader has had enough and closes.
        while a.write_all(&piece).is_ok() {}
    });
    let (tx, mut rx) = Channel::new(b).split().unwrap();
    assert_eq!(
        rx.next::<String>().await.unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    drop((tx, rx));
    writer.join().unwrap();
}

/// Every network that the kernel's tables have room for, in both families, on as many data threads as there may be, and
/// room for the rest of a set-up.
#[test]
fn the_largest_set_of_listeners_fits() {
    let passed: Vec<Passed> = (1..proxy_ebpf::MAX_NETWORKS)
        .flat_map(|number| (0..2 * 64).map(move |at| (number, at)))
        .map(|(number, at)| {
            let purpose = Purpose::Intercept {
                network: NetworkId(u32::MAX - number),
                datapath: Taken::Cgroup,
            };
            Passed::new(purpose, at % 64)
        })
        .collect();
    assert!(passed.len() < MAX_DESCRIPTORS);
    let frame = Frame::new(&ToWorker::AddListeners(passed), Vec::new()).unwrap();
    assert!(
        frame.line.len() < MAX_MESSAGE / 3 * 2,
        "{} bytes",
        frame.line.len()
    );
}

#[tokio::test]
async fn descriptors_of_a_message_that_nobody_takes_are_closed() {
    let (a, b) = ends();
    let (reader, writer) = io::pipe().unwrap();
    let (mut tx, _keep) = Channel::new(a).split().unwrap();
    tx.send_frame(Frame::new(&"pipe", vec![writer.into()]).unwrap())
        .await
        .unwrap();
    let (_other, mut rx) = Channel::new(b).split().unwrap();
    let received = rx.next::<String>().await.unwrap();
    drop(received);
    // No writer is left: the end, and not a wait for ever.
    let mut reader = reader;
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}
