//! What is known of a socket, against real ones on the loopback.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn pair() -> (TcpStream, Socket, Rc<Watch>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, watch) = Socket::new(stream);
    (listener.accept().await.unwrap().0, socket, watch)
}

#[tokio::test]
async fn a_quiet_socket_is_told_from_a_closed_or_talking_one() {
    let (mut peer, _socket, watch) = pair().await;
    assert!(watch.is_quiet() && watch.is_open());
    peer.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!watch.is_quiet() && watch.is_open());

    let (peer, _socket, watch) = pair().await;
    drop(peer);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!watch.is_quiet() && !watch.is_open());
}

#[tokio::test]
async fn confirmed_bytes_tell_whether_the_peer_got_anything() {
    let (mut peer, mut socket, watch) = pair().await;
    watch.mark();
    assert!(watch.cannot_have_processed(), "nothing was sent");
    socket.write_all(b"hello").await.unwrap();
    peer.read_exact(&mut [0; 5]).await.unwrap();
    peer.write_all(b"!").await.unwrap();
    socket.read_exact(&mut [0; 1]).await.unwrap();
    assert!(!watch.cannot_have_processed(), "the peer confirmed what it got");
}

/// What the proxy's kernel has acknowledged the proxy may have handed on, whatever becomes of the proxy.
#[tokio::test]
async fn behind_a_proxy_a_reset_proves_nothing_and_unconfirmed_bytes_do() {
    for relayed in [false, true] {
        let (peer, mut socket, watch) = pair().await;
        if relayed {
            watch.set_relayed();
        }
        watch.mark();
        assert!(watch.cannot_have_processed(), "nothing was sent");
        socket.write_all(b"a request").await.unwrap();
        peer.readable().await.unwrap();
        // Unread bytes: the kernel resets.
        drop(peer);
        assert!(socket.read(&mut [0; 8]).await.is_err());
        assert_eq!(watch.has_not_processed().await, !relayed);
    }
}

/// The peer says goodbye in order, and only then does its kernel find the request that nobody read.
#[tokio::test]
async fn a_request_that_meets_the_peers_end_is_told_from_one_that_was_read() {
    for read in [false, true] {
        let (mut peer, mut socket, watch) = pair().await;
        watch.mark();
        socket.write_all(b"a request").await.unwrap();
        if read {
            peer.read_exact(&mut [0; 9]).await.unwrap();
        }
        peer.shutdown().await.unwrap();
        assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 0);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(peer);
        });
        assert_eq!(watch.has_not_processed().await, !read, "read: {read}");
    }
}
