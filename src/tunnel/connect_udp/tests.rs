use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Result of a flow, and the bytes that it counted.
type Ended = (Result<(), TunnelError>, u64, u64);

/// Runs a flow to an endpoint while the client of its stream runs the scenario.
async fn flow<S, F>(endpoint: SocketAddr, scenario: S) -> (Ended, F::Output)
where
    S: FnOnce(TcpStream) -> F,
    F: Future,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let stream = Upgraded::from_tcp(accepted.unwrap().0, bytes::Bytes::new());
    let socket = Connected::new(endpoint).unwrap();
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let (ended, output) = tokio::join!(
        run(stream, socket, &received, &sent),
        scenario(client.unwrap())
    );
    ((ended, received.get(), sent.get()), output)
}

async fn endpoint() -> (tokio::net::UdpSocket, SocketAddr) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn capsules(payloads: &[&[u8]]) -> Vec<u8> {
    let mut stream = Vec::new();
    for payload in payloads {
        encode_datagram(payload, &mut stream);
    }
    stream
}

#[tokio::test]
async fn datagrams_pass_in_both_directions() {
    let (socket, address) = endpoint().await;
    let (ended, rest) = flow(address, |mut client| async move {
        let mut buffer = [0; 100];
        // An unknown capsule between two datagrams, and one longer than any packet, which is
        // dropped.
        let unknown = [&[0x17, 2, 0, 0][..], &capsules(&[&vec![0; MAX_PAYLOAD]])].concat();
        let stream = [capsules(&[b"one"]), unknown, capsules(&[b"two"])].concat();
        client.write_all(&stream).await.unwrap();
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"one");
        let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"two");
        socket.send_to(b"answer", from).await.unwrap();
        socket.send_to(b"", from).await.unwrap();
        let expected = capsules(&[b"answer", b""]);
        client
            .read_exact(&mut buffer[..expected.len()])
            .await
            .unwrap();
        assert_eq!(&buffer[..expected.len()], expected);
        client.shutdown().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap()
    })
    .await;
    assert_eq!(rest, 0, "the stream ends with that of the client");
    let received = 6 + MAX_PAYLOAD as u64;
    assert!(
        matches!(ended, (Ok(()), bytes, 6) if bytes == received),
        "{ended:?}"
    );
}

#[tokio::test]
async fn icmp_error_resets_the_stream() {
    let (socket, address) = endpoint().await;
    drop(socket);
    let (ended, error) = flow(address, |mut client| async move {
        client.write_all(&capsules(&[b"x"])).await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap_err()
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(
        matches!(ended.0, Err(TunnelError::Endpoint(_))),
        "{ended:?}"
    );
}

#[tokio::test]
async fn malformed_and_truncated_capsules_reset_the_stream() {
    // A datagram without a context, a payload of 65,528 bytes, and the start of a capsule.
    for (bytes, end) in [
        (&[0, 0][..], false),
        (&[0, 0x80, 0, 0xff, 0xf9, 0], false),
        (&[0, 5, 0, 1], true),
    ] {
        let (_socket, address) = endpoint().await;
        let (ended, error) = flow(address, |mut client| async move {
            client.write_all(bytes).await.unwrap();
            if end {
                client.shutdown().await.unwrap();
            }
            client.read_to_end(&mut Vec::new()).await.unwrap_err()
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{bytes:?}");
        assert!(matches!(ended.0, Err(TunnelError::Client(_))), "{ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_flow_ends_in_order() {
    let (_socket, address) = endpoint().await;
    let (ended, length) = flow(address, |mut client| async move {
        client.read_to_end(&mut Vec::new()).await.unwrap()
    })
    .await;
    assert!(matches!(ended, (Ok(()), 0, 0)), "{ended:?}");
    assert_eq!(length, 0);
}

/// Its flow would hold the datagrams that wait for it forever.
#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_is_reset() {
    const LENGTH: usize = 60_000;
    for closes in [false, true] {
        let (socket, address) = endpoint().await;
        let scenario = async |mut client: TcpStream| {
            client.write_all(&capsules(&[b"ask"])).await.unwrap();
            let (_, from) = socket.recv_from(&mut [0; 10]).await.unwrap();
            let payload = vec![0; LENGTH];
            // More than the buffers of the system hold.
            for _ in 0..1000 {
                socket.send_to(&payload, from).await.unwrap();
                tokio::task::yield_now().await;
            }
            if closes {
                client.shutdown().await.unwrap();
                return client;
            }
            // Datagrams in the other direction do not extend the time.
            while client.write_all(&capsules(&[b"more"])).await.is_ok() {
                tokio::time::sleep(IDLE_TIMEOUT / 8).await;
            }
            client
        };
        let limit = IDLE_TIMEOUT * 100;
        let flow = tokio::time::timeout(limit, flow(address, scenario)).await;
        let ((ended, _, sent), _client) = flow.expect("the flow ends");
        assert!(
            matches!(&ended, Err(TunnelError::Client(error)) if error.kind() == ErrorKind::TimedOut),
            "{closes}: {ended:?}"
        );
        assert!(sent < 1000 * LENGTH as u64, "{closes}: the client got all");
    }
}
