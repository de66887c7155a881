use std::future::Future;
use std::pin::pin;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::spdy::{Decoder, Encoder, Frame, ResetStatus};
use super::*;

/// Kubelet whose answers a test writes.
struct Kubelet {
    io: DuplexStream,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
}

/// Ids of the streams of a connection.
struct Pair {
    error: u32,
    data: u32,
}

impl Kubelet {
    /// Reads the next frame. `None` at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn write(&mut self, encode: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let mut bytes = Vec::new();
        encode(&mut self.encoder, &mut bytes);
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn send(&mut self, id: u32, payload: &[u8], fin: bool) {
        self.write(|_, bytes| Encoder::data(id, payload, fin, bytes))
            .await;
    }

    async fn reset(&mut self, id: u32) {
        self.write(|_, bytes| Encoder::rst_stream(id, ResetStatus::CANCEL, bytes))
            .await;
    }

    /// Reads the two streams of a connection to `port`.
    async fn request(&mut self, port: u16) -> Pair {
        let mut ids = Vec::new();
        for kind in ["error", "data"] {
            let Some(Frame::SynStream { id, fin, headers }) = self.next().await else {
                panic!("no stream");
            };
            assert!(!fin);
            assert_eq!(headers.get("streamtype"), Some(kind.as_bytes()));
            assert_eq!(headers.get("port"), Some(port.to_string().as_bytes()));
            assert_eq!(
                headers.get("requestid"),
                Some((id / 4).to_string().as_bytes())
            );
            ids.push(id);
        }
        Pair {
            error: ids[0],
            data: ids[1],
        }
    }

    /// Accepts a connection to `port`.
    async fn accept(&mut self, port: u16) -> Pair {
        let pair = self.request(port).await;
        for id in [pair.error, pair.data] {
            self.write(|encoder, bytes| encoder.syn_reply(id, bytes))
                .await;
        }
        assert_eq!(self.next().await, Some(data(pair.error, "", true)));
        pair
    }
}

fn data(id: u32, payload: &str, fin: bool) -> Frame {
    let payload = payload.to_owned().into();
    Frame::Data { id, fin, payload }
}

fn canceled(id: u32) -> Frame {
    let status = ResetStatus::CANCEL;
    Frame::RstStream { id, status }
}

fn open() -> (Session, Kubelet) {
    let (io, kubelet) = duplex(64 * 1024);
    let kubelet = Kubelet {
        io: kubelet,
        decoder: Decoder::default(),
        encoder: Encoder::default(),
        input: BytesMut::new(),
    };
    (Session::new(io), kubelet)
}

async fn connect(session: &Session, kubelet: &mut Kubelet, port: u16) -> (PortStream, Pair) {
    let (stream, pair) = tokio::join!(session.connect(port), kubelet.accept(port));
    (stream.unwrap(), pair)
}

/// Returns the failure of a connection from the error of its read.
async fn failure(stream: &mut PortStream) -> String {
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(error.get_ref().unwrap().is::<StreamError>());
    error.to_string()
}

/// Returns true if a future is not ready after the session's task had its turns.
async fn is_pending(future: impl Future) -> bool {
    let mut future = pin!(future);
    tokio::select! {
        biased;
        _ = &mut future => false,
        () = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        } => true,
    }
}

#[tokio::test]
async fn carries_data_and_half_closes_in_both_directions() {
    let (session, mut kubelet) = open();
    let (mut stream, pair) = connect(&session, &mut kubelet, 80).await;
    let (mut other, other_pair) = connect(&session, &mut kubelet, 81).await;
    assert_eq!((pair.error, pair.data), (1, 3));
    assert_eq!((other_pair.error, other_pair.data), (5, 7));
    stream.write_all(b"request").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(kubelet.next().await, Some(data(3, "request", true)));
    let error = stream.write_all(b"late").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    kubelet.send(3, b"resp", false).await;
    kubelet.send(7, b"other", false).await;
    kubelet.send(3, b"onse", false).await;
    kubelet.send(1, b"", true).await;
    kubelet.send(3, b"", true).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "response");
    // The kubelet half-closes first here.
    kubelet.send(7, b"", true).await;
    let mut response = String::new();
    other.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "other");
    other.write_all(b"more").await.unwrap();
    assert_eq!(kubelet.next().await, Some(data(7, "more", false)));
    // Both sides of the first connection have ended, which needs no reset.
    drop(stream);
    drop(other);
    assert_eq!(kubelet.next().await, Some(canceled(7)));
}

#[tokio::test]
async fn error_ends_only_its_stream_with_the_text_of_the_kubelet() {
    let (session, mut kubelet) = open();
    let (mut refused, pair) = connect(&session, &mut kubelet, 9).await;
    let (mut stream, other) = connect(&session, &mut kubelet, 80).await;
    kubelet.send(pair.error, b"connection ", false).await;
    kubelet.send(pair.error, b"refused", false).await;
    kubelet.reset(pair.data).await;
    kubelet.reset(pair.error).await;
    assert_eq!(failure(&mut refused).await, "connection refused");
    let error = refused.write_all(b"x").await.unwrap_err();
    assert_eq!(error.to_string(), "connection refused");
    kubelet.send(other.data, b"works", true).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "works");
}

#[tokio::test]
async fn failure_that_arrives_with_the_replies_is_one_of_the_first_read() {
    let (session, mut kubelet) = open();
    let refuse = async {
        let pair = kubelet.request(9).await;
        let answer = |encoder: &mut Encoder, bytes: &mut Vec<u8>| {
            encoder.syn_reply(pair.error, bytes);
            encoder.syn_reply(pair.data, bytes);
            Encoder::data(pair.error, b"refused", false, bytes);
            Encoder::rst_stream(pair.data, ResetStatus::CANCEL, bytes);
        };
        kubelet.write(answer).await;
    };
    let (stream, ()) = tokio::join!(session.connect(9), refuse);
    assert_eq!(failure(&mut stream.unwrap()).await, "refused");
}

#[tokio::test]
async fn received_data_precedes_a_failure_and_its_text_is_bounded() {
    let (session, mut kubelet) = open();
    let (mut stream, pair) = connect(&session, &mut kubelet, 80).await;
    kubelet.send(pair.data, b"half", false).await;
    kubelet.send(pair.error, &[b'e'; 5000], false).await;
    kubelet.send(pair.error, b"", true).await;
    let mut received = Vec::new();
    let error = stream.read_to_end(&mut received).await.unwrap_err();
    assert_eq!(received, b"half");
    assert_eq!(error.to_string().len(), 4096);
    // The kubelet gets no data that it does not read.
    assert_eq!(kubelet.next().await, Some(canceled(pair.data)));
    let (mut stream, pair) = connect(&session, &mut kubelet, 80).await;
    kubelet.reset(pair.data).await;
    let expected = "the connection to port 80 of the pod was reset";
    assert_eq!(failure(&mut stream).await, expected);
}

#[tokio::test]
async fn stops_sending_when_the_kubelet_has_ended_both_streams() {
    let (session, mut kubelet) = open();
    let (mut stream, pair) = connect(&session, &mut kubelet, 80).await;
    kubelet.send(pair.error, b"", true).await;
    kubelet.send(pair.data, b"bye", true).await;
    assert_eq!(kubelet.next().await, Some(canceled(pair.data)));
    let error = stream.write_all(b"late").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "bye");
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn rejected_and_ignored_connections_fail() {
    let (session, mut kubelet) = open();
    let rejected = async {
        let pair = kubelet.request(80).await;
        kubelet.reset(pair.data).await;
        kubelet
    };
    let (result, mut kubelet) = tokio::join!(session.connect(80), rejected);
    assert!(matches!(result, Err(StreamError::Reset { port: 80 })));
    // One reply is not enough, and data before it is not sent.
    let mut pending = Box::pin(session.connect(81));
    assert!(is_pending(&mut pending).await);
    let pair = kubelet.request(81).await;
    kubelet
        .write(|encoder, bytes| encoder.syn_reply(pair.data, bytes))
        .await;
    assert!(is_pending(&mut pending).await);
    tokio::time::pause();
    let result = pending.await;
    assert!(matches!(result, Err(StreamError::NoReply { port: 81 })));
}

/// D-row T5.
#[tokio::test]
async fn canceled_connections_are_reset_and_freed() {
    let (session, mut kubelet) = open();
    let mut pending: Vec<_> = (0..300).map(|_| Box::pin(session.connect(80))).collect();
    for future in &mut pending {
        assert!(is_pending(future).await);
    }
    drop(pending);
    let mut resets = 0;
    while resets < 300 {
        match kubelet.next().await.unwrap() {
            Frame::SynStream { id, .. } => {
                // Replies and data arrive too late.
                kubelet
                    .write(|encoder, bytes| encoder.syn_reply(id, bytes))
                    .await;
                kubelet.send(id, b"late", false).await;
            }
            Frame::RstStream { .. } => resets += 1,
            frame => panic!("{frame:?}"),
        }
    }
    assert_eq!(session.shared.permits.available_permits(), MAX_STREAMS);
    let (mut stream, pair) = connect(&session, &mut kubelet, 80).await;
    kubelet.send(pair.data, b"works", true).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert_eq!(response, "works");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let (session, mut kubelet) = open();
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS {
        streams.push(connect(&session, &mut kubelet, 80).await);
    }
    let mut waiting = Box::pin(session.connect(80));
    assert!(is_pending(&mut waiting).await);
    let (_, pair) = streams.pop().unwrap();
    assert_eq!(kubelet.next().await, Some(canceled(pair.data)));
    let (stream, _) = tokio::join!(waiting, kubelet.accept(80));
    assert!(stream.is_ok());
}

#[tokio::test]
async fn sending_waits_for_the_connection_and_streams_take_turns() {
    let (session, mut kubelet) = open();
    let (mut first, first_pair) = connect(&session, &mut kubelet, 80).await;
    let (mut second, second_pair) = connect(&session, &mut kubelet, 80).await;
    let bytes = vec![1; 1024 * 1024];
    let mut sent = 0;
    while !is_pending(first.write_all(&bytes[..4096])).await {
        sent += 4096;
        assert!(sent < 512 * 1024, "sending is not bounded");
    }
    second.write_all(b"second").await.unwrap();
    let mut received = 0;
    loop {
        match kubelet.next().await.unwrap() {
            Frame::Data { id, payload, .. } if id == first_pair.data => received += payload.len(),
            frame => {
                assert_eq!(frame, data(second_pair.data, "second", false));
                break;
            }
        }
    }
    // What waited in the stream comes after the other stream's turn.
    assert!(received < sent, "{received} of {sent}");
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_holds_up_others_for_a_bounded_time() {
    let (session, mut kubelet) = open();
    let (mut stalled, pair) = connect(&session, &mut kubelet, 80).await;
    // Alone, it may take its time.
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    while timeout(
        Duration::from_millis(1),
        kubelet.send(pair.data, &chunk, false),
    )
    .await
    .is_ok()
    {
        sent += chunk.len();
        assert!(sent < 1024 * 1024, "receiving is not bounded");
    }
    assert!(!session.is_held_up());
    tokio::time::sleep(Duration::from_mins(30)).await;
    assert!(session.is_held_up());
    let mut byte = [0; 1];
    assert_eq!(stalled.read(&mut byte).await.unwrap(), 1);
    // Another connection waits for it: its replies are behind the data.
    let other = tokio::spawn({
        let session = session.clone();
        async move { session.connect(81).await }
    });
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert!(session.is_held_up() && !other.is_finished());
    // The check of the next ping, before the other connection gives up.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!session.is_held_up() && !other.is_finished());
    let error = failure(&mut stalled).await;
    assert!(
        error.starts_with("the local client of port 80 read nothing for 15 s"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn slow_client_is_not_disconnected() {
    let (session, mut kubelet) = open();
    let (mut slow, pair) = connect(&session, &mut kubelet, 80).await;
    let (_other, _) = connect(&session, &mut kubelet, 81).await;
    let chunk = vec![7; 16 * 1024];
    let sender = tokio::spawn(async move {
        for _ in 0..64 {
            kubelet.send(pair.data, &chunk, false).await;
        }
        kubelet.send(pair.data, b"", true).await;
        kubelet
    });
    let (mut received, mut buffer) = (0, vec![0; 8 * 1024]);
    loop {
        let length = slow.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        received += length;
        tokio::time::sleep(Duration::from_secs(9)).await;
    }
    assert_eq!(received, 64 * 16 * 1024);
    sender.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pings_and_ends_a_dead_connection() {
    let (session, mut kubelet) = open();
    for id in [3, 5] {
        assert_eq!(kubelet.next().await, Some(Frame::Ping { id }));
        kubelet.write(|_, bytes| Encoder::ping(id, bytes)).await;
    }
    kubelet.write(|_, bytes| Encoder::ping(2, bytes)).await;
    assert_eq!(kubelet.next().await, Some(Frame::Ping { id: 2 }));
    let (mut stream, _) = connect(&session, &mut kubelet, 80).await;
    let end = "the connection to the pod is dead: nothing was received for 30 s";
    assert_eq!(session.ended().await.to_string(), end);
    assert_eq!(failure(&mut stream).await, end);
    assert!(!session.is_open());
    assert_eq!(session.connect(80).await.unwrap_err().to_string(), end);
}

#[tokio::test(start_paused = true)]
async fn upload_that_a_backend_does_not_read_is_not_a_dead_connection() {
    let (session, mut kubelet) = open();
    let (mut stream, _) = connect(&session, &mut kubelet, 80).await;
    let started = tokio::time::Instant::now();
    let reader = tokio::spawn(async move { while kubelet.next().await.is_some() {} });
    for _ in 0..64 {
        stream.write_all(b"part").await.unwrap();
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let end = session.ended().await;
    assert!(matches!(end, SessionError::Silent(limit) if limit == Duration::from_mins(5)));
    assert!(started.elapsed() >= Duration::from_mins(5));
    reader.await.unwrap();
}

#[tokio::test]
async fn server_that_goes_away_ends_connections_that_are_left() {
    let (session, mut kubelet) = open();
    let (mut stream, pair) = connect(&session, &mut kubelet, 80).await;
    kubelet.write(|_, bytes| Encoder::go_away(bytes)).await;
    kubelet.send(pair.data, b"last", false).await;
    let mut last = [0; 4];
    stream.read_exact(&mut last).await.unwrap();
    assert!(!session.is_open());
    let error = session.connect(80).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server closed the connection to the pod"
    );
    drop(kubelet);
    assert!(matches!(session.ended().await, SessionError::Closed));
    let expected = "the server closed the connection to the pod";
    assert_eq!(failure(&mut stream).await, expected);
}

#[tokio::test]
async fn bounds_the_answers_to_the_server() {
    let (session, mut kubelet) = open();
    let mut pings = Vec::new();
    for _ in 0..20_000 {
        Encoder::ping(2, &mut pings);
    }
    // It reads no answer.
    let _ = kubelet.io.write_all(&pings).await;
    assert!(matches!(session.ended().await, SessionError::Flooded));
    let (session, mut kubelet) = open();
    kubelet.io.write_all(b"HTTP/1.1").await.unwrap();
    kubelet.io.write_all(b"\xff\xff\xff\xff1234").await.unwrap();
    drop(kubelet);
    assert!(matches!(session.ended().await, SessionError::Closed));
}

#[tokio::test]
async fn says_goodbye_when_the_last_user_is_gone() {
    let (session, mut kubelet) = open();
    let (stream, pair) = connect(&session, &mut kubelet, 80).await;
    let clone = session.clone();
    drop(session);
    let (other, _) = connect(&clone, &mut kubelet, 80).await;
    drop(clone);
    drop(other);
    assert_eq!(kubelet.next().await, Some(canceled(7)));
    drop(stream);
    assert_eq!(kubelet.next().await, Some(canceled(pair.data)));
    assert_eq!(kubelet.next().await, Some(Frame::GoAway));
    assert_eq!(kubelet.next().await, None);
}
