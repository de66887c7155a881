use std::cell::Cell;
use std::io::ErrorKind;

use bytes::Bytes;
use http::{Request, Response};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::http::h2::ByteStream;

/// Number of bytes that no pair of socket buffers holds.
const LARGE: usize = 64 << 20;

/// Result of a relay, and the bytes that it counted.
type Ended = (Result<(), TunnelError>, u64, u64);

/// Relays between the two streams of the scenario.
async fn relay<S, F>(scenario: S) -> (Ended, F::Output)
where
    S: FnOnce(TcpStream, TcpStream) -> F,
    F: Future,
{
    let ((client, near), (endpoint, far)) = (pair().await, pair().await);
    let relay = Relay::new(
        Upgraded::from_tcp(near, Bytes::new()),
        Upgraded::from_tcp(far, Bytes::new()),
    );
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let (ended, output) = tokio::join!(relay.run(&received, &sent), scenario(client, endpoint));
    ((ended, received.get(), sent.get()), output)
}

/// Opens a TCP connection and returns both of its ends.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Closes a connection with RST.
fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Reads until the connection fails, and returns the failure.
async fn read_failure(stream: &mut TcpStream) -> ErrorKind {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap_err().kind()
}

#[tokio::test]
async fn half_closed_client_receives_the_answer() {
    let (ended, answer) = relay(|mut client, mut endpoint| async move {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut endpoint).await, b"question");
        endpoint.write_all(b"answer").await.unwrap();
        drop(endpoint);
        read_all(&mut client).await
    })
    .await;
    assert_eq!(answer, b"answer");
    assert!(matches!(ended, (Ok(()), 8, 6)), "{ended:?}");
}

#[tokio::test]
async fn half_closed_endpoint_receives_the_rest() {
    let (ended, rest) = relay(|mut client, mut endpoint| async move {
        endpoint.write_all(b"hello").await.unwrap();
        endpoint.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"hello");
        client.write_all(b"the rest").await.unwrap();
        drop(client);
        read_all(&mut endpoint).await
    })
    .await;
    assert_eq!(rest, b"the rest");
    assert!(matches!(ended, (Ok(()), 8, 5)), "{ended:?}");
}

#[tokio::test]
async fn reset_of_either_side_resets_the_other() {
    let (ended, failure) = relay(|client, mut endpoint| async move {
        reset(client);
        read_failure(&mut endpoint).await
    })
    .await;
    assert_eq!(failure, ErrorKind::ConnectionReset);
    assert!(matches!(ended.0, Err(TunnelError::Client(_))), "{ended:?}");

    let (ended, failure) = relay(|mut client, endpoint| async move {
        reset(endpoint);
        read_failure(&mut client).await
    })
    .await;
    assert_eq!(failure, ErrorKind::ConnectionReset);
    assert!(
        matches!(ended.0, Err(TunnelError::Endpoint(_))),
        "{ended:?}"
    );
}

#[tokio::test]
async fn reset_of_half_closed_side_resets_the_other() {
    let (ended, ready) = relay(|mut client, mut endpoint| async move {
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut endpoint).await, b"");
        reset(client);
        // Reads return the end of the half-closed connection, whatever follows.
        endpoint.ready(Interest::ERROR).await.unwrap()
    })
    .await;
    assert!(ready.is_error());
    assert!(matches!(ended.0, Err(TunnelError::Client(_))), "{ended:?}");
}

#[tokio::test]
async fn reset_passes_a_side_that_does_not_read() {
    let (ended, failure) = relay(|mut client, mut endpoint| async move {
        let block = vec![0; 1 << 20];
        let filling = async {
            loop {
                client.write_all(&block).await.unwrap();
            }
        };
        // Nothing reads, so that the relay must stop reading, too.
        let filled = tokio::time::timeout(Duration::from_secs(2), filling).await;
        assert!(filled.is_err());
        reset(client);
        read_failure(&mut endpoint).await
    })
    .await;
    assert_eq!(failure, ErrorKind::ConnectionReset);
    assert!(matches!(ended.0, Err(TunnelError::Client(_))), "{ended:?}");
}

#[tokio::test]
async fn dropped_relay_resets_both_sides() {
    let ((mut client, near), (mut endpoint, far)) = (pair().await, pair().await);
    let relay = Relay::new(
        Upgraded::from_tcp(near, Bytes::new()),
        Upgraded::from_tcp(far, Bytes::new()),
    );
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let passed = async {
        client.write_all(b"x").await.unwrap();
        endpoint.read_u8().await.unwrap()
    };
    tokio::select! {
        ended = relay.run(&received, &sent) => panic!("{ended:?}"),
        byte = passed => assert_eq!(byte, b'x'),
    }
    assert_eq!(read_failure(&mut client).await, ErrorKind::ConnectionReset);
    assert_eq!(
        read_failure(&mut endpoint).await,
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn passes_large_transfers_in_both_directions() {
    let pattern = |seed: usize| {
        let block: Vec<u8> = (0..LARGE)
            .map(|i| u8::try_from(((i >> 8) ^ i ^ seed) % 256).unwrap())
            .collect();
        block
    };
    let (ended, (at_client, at_endpoint)) = relay(|client, endpoint| async move {
        let exchange = |stream: TcpStream, bytes: Vec<u8>| async move {
            let (mut read, mut write) = stream.into_split();
            let mut received = Vec::new();
            let sending = async {
                write.write_all(&bytes).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(read.read_to_end(&mut received), sending);
            read.unwrap();
            received
        };
        tokio::join!(exchange(client, pattern(1)), exchange(endpoint, pattern(2)))
    })
    .await;
    assert!(at_client == pattern(2) && at_endpoint == pattern(1));
    let length = LARGE as u64;
    assert!(matches!(ended, (Ok(()), received, sent) if received == length && sent == length));
}

/// Relays between a client over TCP, which has sent more than the server's window, and a server over
/// HTTP/2. That reads nothing, sends `bye`, ends the stream if `is_end` is true, and resets it with
/// `NO_ERROR` (RFC 9113 section 8.1).
async fn relay_to_leaving_server(is_end: bool) -> (Result<(), TunnelError>, TcpStream) {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut sending = respond.send_response(Response::new(()), false).unwrap();
        sending.send_data("bye".into(), is_end).unwrap();
        if is_end {
            drop((request, respond, sending));
        } else {
            // The frame leaves before the reset, which would drop it.
            let leaving = tokio::time::timeout(Duration::from_millis(50), connection.accept());
            assert!(leaving.await.is_err());
            sending.send_reset(h2::Reason::NO_ERROR);
        }
        while connection.accept().await.is_some() {}
    });
    let (sender, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let request = Request::connect("a:1").body(()).unwrap();
    let (response, sending) = sender.send_request(request, false).unwrap();
    let stream = ByteStream::new(sending, response.await.unwrap().into_body(), ());
    let (mut client, ours) = pair().await;
    client.write_all(&vec![0; 256 << 10]).await.unwrap();
    let relay = Relay::new(Upgraded::from_tcp(ours, Bytes::new()), stream.into());
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let ended = tokio::time::timeout(Duration::from_mins(1), relay.run(&received, &sent));
    (ended.await.unwrap(), client)
}

#[tokio::test]
async fn stream_that_is_reset_without_an_error_behind_its_end_is_complete() {
    let (ended, mut client) = relay_to_leaving_server(true).await;
    ended.unwrap();
    assert_eq!(read_all(&mut client).await, b"bye");
    assert!(SockRef::from(&client).take_error().unwrap().is_none());
}

#[tokio::test]
async fn stream_that_is_reset_without_an_error_before_its_end_is_not_complete() {
    let (ended, mut client) = relay_to_leaving_server(false).await;
    assert!(matches!(ended, Err(TunnelError::Endpoint(_))), "{ended:?}");
    assert_eq!(read_failure(&mut client).await, ErrorKind::ConnectionReset);
}

/// A receiver that does not read must not end the connection of the sender, which has other streams.
#[tokio::test]
async fn small_frames_for_a_slow_receiver_are_no_flood() {
    const FRAMES: usize = 60_000;
    let (near, far) = tokio::io::duplex(1 << 16);
    let client = async {
        let (sender, connection) = h2::client::handshake(far).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let request = Request::connect("a:1").body(()).unwrap();
        let (_response, mut stream) = sender.send_request(request, false).unwrap();
        for number in 0..FRAMES {
            let data = Bytes::copy_from_slice(&[number.to_le_bytes()[0]]);
            stream.send_data(data, false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        connection.await
    };
    let (mut endpoint, ours) = tokio::io::duplex(64);
    let server = async {
        let mut builder = h2::server::Builder::new();
        // Half of it is the limit for the bytes by which frames are small.
        builder.initial_connection_window_size(25 << 20);
        let mut connection = builder.handshake::<_, Bytes>(near).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let sending = respond.send_response(Response::new(()), false).unwrap();
        let stream = ByteStream::new(sending, request.into_body(), ());
        let relay = Relay::new(stream.into(), Upgraded::from_transport(Box::new(ours)));
        let (received, sent) = (Cell::new(0), Cell::new(0));
        let endpoint = async {
            // Once all frames have arrived.
            while received.get() < FRAMES as u64 {
                tokio::task::yield_now().await;
            }
            let mut bytes = Vec::new();
            endpoint.read_to_end(&mut bytes).await.unwrap();
            drop(endpoint);
            bytes
        };
        let relayed = async { tokio::join!(relay.run(&received, &sent), endpoint) };
        tokio::select! {
            relayed = relayed => relayed,
            _ = connection.accept() => panic!("one request"),
        }
    };
    let (ended, bytes) = tokio::select! {
        relayed = server => relayed,
        ended = client => panic!("{ended:?}"),
    };
    ended.unwrap();
    let expected: Vec<u8> = (0..FRAMES).map(|number| number.to_le_bytes()[0]).collect();
    assert_eq!(bytes, expected);
}

/// The future of a relay stays in memory while its tunnel is idle.
#[tokio::test]
async fn idle_relay_is_small() {
    let ((_client, near), (_endpoint, far)) = (pair().await, pair().await);
    let relay = Relay::new(
        Upgraded::from_tcp(near, Bytes::new()),
        Upgraded::from_tcp(far, Bytes::new()),
    );
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let size = size_of_val(&relay.run(&received, &sent));
    assert!(size <= 768, "{size} bytes");
}
