use std::io;
use std::pin::Pin;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, header};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

use super::*;
use crate::apiservers::{Connect, Credential};
use crate::desk::credentials::Login;
use crate::http::{Stream, Transport};
use crate::kubeconfig::UserEntry;

/// Connection in memory that has selected HTTP/2.
#[derive(Debug)]
struct Http2(DuplexStream);

impl Transport for Http2 {
    fn alpn_protocol(&self) -> Option<&[u8]> {
        Some(b"h2")
    }
}

impl AsyncRead for Http2 {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Http2 {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Behavior of the bastion on a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Script {
    Refuse,
    /// Answers the requests, with a maximum number of streams.
    Serve(u32),
    /// Answers requests until the first stream is open, then nothing.
    Freeze,
    /// Refuses all streams, as a bastion that ends.
    GoAway,
}

/// Bastion with one script per connection. The last one is repeated.
#[derive(Debug)]
struct Bastion {
    scripts: Vec<Script>,
    connections: AtomicUsize,
    /// Proxy-Authorization of the requests.
    tokens: Arc<StdMutex<Vec<String>>>,
}

impl Connect for Bastion {
    fn connect(&self, _: Credential, http2: bool) -> BoxFuture<'_, io::Result<Stream>> {
        assert!(http2);
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let script = self.scripts[number.min(self.scripts.len() - 1)];
        if script == Script::Refuse {
            return futures::future::ready(Err(io::ErrorKind::ConnectionRefused.into())).boxed();
        }
        let (client, server) = duplex(1024 * 1024);
        tokio::spawn(serve(server, number, script, Arc::clone(&self.tokens)));
        futures::future::ready(Ok(Stream::Boxed(Box::new(Http2(client))))).boxed()
    }
}

async fn serve(
    io: DuplexStream,
    number: usize,
    script: Script,
    tokens: Arc<StdMutex<Vec<String>>>,
) {
    let mut builder = h2::server::Builder::new();
    if let Script::Serve(streams) = script {
        builder.max_concurrent_streams(streams);
    }
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if script == Script::GoAway {
            respond.send_reset(Reason::REFUSED_STREAM);
            connection.graceful_shutdown();
            continue;
        }
        assert_eq!(request.method(), http::Method::CONNECT);
        let token = request.headers().get(header::PROXY_AUTHORIZATION);
        let token = token.map(|token| token.to_str().unwrap().to_owned());
        tokens.lock().unwrap().extend(token.clone());
        tokio::spawn(answer(request, respond, number, token));
        if script == Script::Freeze {
            // The response is sent, and then nothing is read or written.
            for _ in 0..10 {
                tokio::task::yield_now().await;
                assert!(connection.accept().now_or_never().is_none());
            }
            std::future::pending::<()>().await;
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    number: usize,
    token: Option<String>,
) {
    let authority = request.uri().authority().unwrap().to_string();
    let (name, _) = authority.split_once('.').unwrap();
    if token.as_deref() == Some("Bearer old") {
        let response = Response::builder().status(407).body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data("log in".into(), true).unwrap();
        return;
    }
    if name == "forbidden" {
        let response = Response::builder().status(403).body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        let status = r#"{"kind":"Status","message":"jane may not\n"}"#;
        body.send_data(status.into(), true).unwrap();
        return;
    }
    let mut sending = respond.send_response(Response::new(()), false).unwrap();
    let mut receiving = request.into_body();
    match name {
        "number" => sending.send_data(number.to_string().into(), true).unwrap(),
        "reset" => {
            receiving.data().await.unwrap().unwrap();
            sending.send_reset(Reason::CONNECT_ERROR);
        }
        "flood" => while send(&mut sending, Bytes::from_static(&[0; 16_384])).await {},
        _ => {
            while let Some(Ok(data)) = receiving.data().await {
                receiving
                    .flow_control()
                    .release_capacity(data.len())
                    .unwrap();
                send(&mut sending, data).await;
            }
            // Fails if the client has reset the stream.
            let _ = sending.send_data(Bytes::new(), true);
        }
    }
}

/// Sends data as the window allows. Returns false once the stream was reset.
async fn send(sending: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        sending.reserve_capacity(data.len());
        if sending.capacity() == 0 {
            let capacity = std::future::poll_fn(|context| sending.poll_capacity(context)).await;
            if !matches!(capacity, Some(Ok(_))) {
                return false;
            }
        }
        let part = data.split_to(sending.capacity().min(data.len()));
        if sending.send_data(part, false).is_err() {
            return false;
        }
    }
    true
}

fn credentials(token: &std::path::Path) -> Arc<Credentials> {
    let user = UserEntry {
        token_file: Some(token.to_owned()),
        ..UserEntry::default()
    };
    let login = Login {
        user,
        ..Login::default()
    };
    Arc::new(Credentials::new(login).unwrap())
}

fn tunnels(scripts: &[Script], credentials: Arc<Credentials>) -> (Tunnels, Arc<Bastion>) {
    let bastion = Arc::new(Bastion {
        scripts: scripts.to_vec(),
        connections: AtomicUsize::new(0),
        tokens: Arc::default(),
    });
    let server = ServerConfig {
        name: "bastion:443".into(),
        host: None,
        path: String::new(),
        connector: Arc::clone(&bastion) as _,
    };
    (Tunnels::new(vec![server], credentials), bastion)
}

fn anonymous(scripts: &[Script]) -> (Tunnels, Arc<Bastion>) {
    let credentials = Credentials::none(&Login::default()).unwrap();
    tunnels(scripts, Arc::new(credentials))
}

async fn echo(stream: &mut TunnelStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, text.as_bytes());
}

#[tokio::test]
async fn streams_share_a_connection_and_close_each_side_alone() {
    let (tunnels, bastion) = anonymous(&[Script::Serve(100)]);
    let mut first = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    let mut second = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    echo(&mut first, "first").await;
    echo(&mut second, "second").await;
    first.write_all(b"last").await.unwrap();
    first.shutdown().await.unwrap();
    let mut rest = String::new();
    first.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last");
    drop(first);
    echo(&mut second, "still open").await;
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn reset_is_an_error_of_its_own_stream() {
    let (tunnels, _) = anonymous(&[Script::Serve(100)]);
    let mut other = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    let mut stream = tunnels.open(Protocol::Tcp, "reset.a.svc:7").await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    echo(&mut other, "open").await;
}

#[tokio::test]
async fn refusal_has_the_message_of_the_status() {
    let (tunnels, _) = anonymous(&[Script::Serve(100)]);
    let error = tunnels
        .open(Protocol::Tcp, "forbidden.a.svc:7")
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "jane may not  (status 403)");
}

#[tokio::test]
async fn credentials_are_renewed_once_after_407() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "old").unwrap();
    let rejected = credentials(&file);
    let (without, _) = tunnels(&[Script::Serve(100)], rejected);
    let error = without
        .open(Protocol::Tcp, "echo.a.svc:7")
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "log in (status 407)");
    let renewed = credentials(&file);
    renewed.authorization().await.unwrap();
    std::fs::write(&file, "new").unwrap();
    let (tunnels, bastion) = tunnels(&[Script::Serve(100)], renewed);
    let mut stream = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    echo(&mut stream, "open").await;
    let tokens = bastion.tokens.lock().unwrap().clone();
    assert_eq!(tokens, ["Bearer old", "Bearer new"]);
}

#[tokio::test(start_paused = true)]
async fn connection_that_answers_no_ping_is_replaced() {
    let (tunnels, bastion) = anonymous(&[Script::Freeze, Script::Serve(100)]);
    let mut stream = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::ConnectionReset);
    let mut stream = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    echo(&mut stream, "again").await;
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn new_tunnels_wait_for_a_connection_up_to_a_limit() {
    let mut scripts = vec![Script::Refuse; 5];
    scripts.push(Script::Serve(100));
    let (tunnels, bastion) = anonymous(&scripts);
    let opened =
        futures::future::join_all((0..20).map(|_| tunnels.open(Protocol::Tcp, "echo.a.svc:7")))
            .await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 6);
    let (tunnels, _) = anonymous(&[Script::Refuse]);
    let error = tunnels
        .open(Protocol::Tcp, "echo.a.svc:7")
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("bastion:443 cannot be reached: "),
        "{error}"
    );
    let error = tunnels.check().await.unwrap_err();
    assert!(matches!(error, TunnelError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn connection_that_ends_is_left_to_its_streams() {
    let (tunnels, bastion) = anonymous(&[Script::GoAway, Script::Serve(100)]);
    let mut stream = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    echo(&mut stream, "open").await;
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn full_connection_is_followed_by_another() {
    let (tunnels, bastion) = anonymous(&[Script::Serve(3)]);
    // Its limit is known after the first response.
    let mut streams = Vec::new();
    for _ in 0..7 {
        streams.push(tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap());
    }
    for stream in &mut streams {
        echo(stream, "open").await;
    }
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 3);
    drop(streams);
    let mut stream = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    echo(&mut stream, "open").await;
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 3);
}

/// Clients that read nothing, and clients that leave (kubernetes/kubernetes issue 78446).
#[tokio::test]
async fn unread_and_canceled_streams_hold_up_no_other() {
    let (tunnels, bastion) = anonymous(&[Script::Serve(100)]);
    let mut unread = Vec::new();
    for _ in 0..50 {
        unread.push(tunnels.open(Protocol::Tcp, "flood.a.svc:7").await.unwrap());
    }
    for _ in 0..3 {
        let canceled = (0..100).map(async |number| {
            let mut stream = tunnels.open(Protocol::Tcp, "flood.a.svc:7").await.unwrap();
            if number % 2 == 0 {
                stream.read_u8().await.unwrap();
            }
        });
        futures::future::join_all(canceled).await;
    }
    let mut stream = tunnels.open(Protocol::Tcp, "echo.a.svc:7").await.unwrap();
    let chunk = "x".repeat(64 * 1024);
    for _ in 0..100 {
        echo(&mut stream, &chunk).await;
    }
    // 150 streams at once.
    assert_eq!(bastion.connections.load(Ordering::SeqCst), 2);
    for stream in &mut unread {
        stream.read_u8().await.unwrap();
    }
}
