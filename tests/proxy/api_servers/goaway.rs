//! API server over HTTP/2 that sends GOAWAY amid requests, frame by frame (RFC 9113 section 6.8).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::join_all;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use super::server::{Server, ok};
use super::{connect, exchange, get, with_token};
use crate::support::frames::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, SETTINGS, frame, read_frame,
};
use crate::support::pki::Ca;
use crate::support::raw::Wire;
use crate::support::test_bed::TestBed;
use crate::support::tls_endpoint::{TlsEndpoint, read_preface, settings};

/// Header block of a 200, an entry of the static table (RFC 7541 appendix A).
const OK: &[u8] = &[0x88];
/// Last stream of a GOAWAY that announces another one (RFC 9113 section 6.8).
const ANY_STREAM: u32 = (1 << 31) - 1;

/// GOAWAY on the first HTTP/2 connection.
#[derive(Clone, Copy)]
struct Plan {
    /// Requests that are answered before.
    answered: usize,
    /// Requests in flight when it is sent.
    in_flight: usize,
    /// Those of them that it does not exclude. They are answered behind it.
    processed: usize,
    /// Sends one that excludes nothing before.
    announced: bool,
    /// Stops listening before it is sent, as a server that shuts down.
    shuts_down: bool,
}

/// Server that answers a request with the number of its connection, `h` over HTTP/1.1.
struct GoawayServer {
    address: SocketAddr,
    /// Answers so far.
    answers: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl GoawayServer {
    async fn start(ca: &Ca, folder: &Path, plan: Plan) -> Result<Self> {
        let endpoint = TlsEndpoint::start(ca, folder, &["kubernetes.default.svc"]).await?;
        let address = endpoint.address()?;
        let answers = Arc::<Mutex<Vec<String>>>::default();
        let task = tokio::spawn(accept(endpoint, plan, Arc::clone(&answers)));
        Ok(Self {
            address,
            answers,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Number of requests that were answered over HTTP/2 on the connections that `is` accepts.
    fn count(&self, is: impl Fn(usize) -> bool) -> usize {
        let answers = self.answers.lock().expect("no thread panics with them");
        let numbers = answers.iter().filter_map(|answer| answer.parse().ok());
        numbers.filter(|number| is(*number)).count()
    }
}

async fn accept(endpoint: TlsEndpoint, plan: Plan, answers: Arc<Mutex<Vec<String>>>) {
    let (stop, mut stopped) = mpsc::channel(1);
    let (mut connections, mut number) = (JoinSet::new(), 0);
    loop {
        let accepted = tokio::select! {
            accepted = endpoint.accept() => accepted,
            _ = stopped.recv() => break,
        };
        let Ok(stream) = accepted else { continue };
        let answers = Arc::clone(&answers);
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            connections.spawn(serve_http1(stream));
            continue;
        }
        let connection = Connection {
            stream,
            number,
            answers,
        };
        let plan = (number == 0).then_some(plan);
        number += 1;
        let stop = stop.clone();
        // It ends with the connection.
        connections.spawn(async move { connection.serve(plan, &stop).await });
    }
    drop((endpoint, stopped));
    connections.join_all().await;
}

/// Answers health checks, and requests of tokens that are not proven.
async fn serve_http1(stream: TlsStream<TcpStream>) -> Result<()> {
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        wire.body(&head, |_| {}).await?;
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nh")
            .await?;
    }
    Ok(())
}

struct Connection {
    stream: TlsStream<TcpStream>,
    number: usize,
    answers: Arc<Mutex<Vec<String>>>,
}

impl Connection {
    async fn serve(mut self, plan: Option<Plan>, stop: &mpsc::Sender<()>) -> Result<()> {
        read_preface(&mut self.stream).await?;
        self.send(&settings()).await?;
        if let Some(plan) = plan {
            self.go_away(plan, stop).await?;
            // Requests behind the GOAWAY get no answer.
            while self.request().await.is_ok() {}
            return Ok(());
        }
        loop {
            let stream = self.request().await?;
            self.answer(stream).await?;
        }
    }

    async fn go_away(&mut self, plan: Plan, stop: &mpsc::Sender<()>) -> Result<()> {
        for _ in 0..plan.answered {
            let stream = self.request().await?;
            self.answer(stream).await?;
        }
        let mut streams = Vec::new();
        for _ in 0..plan.in_flight {
            streams.push(self.request().await?);
        }
        if plan.shuts_down {
            stop.send(()).await?;
            stop.closed().await;
        }
        let processed = &streams[..plan.processed];
        let last = processed.last().copied();
        // Stream ids are odd. Before the first one in flight, the last that was answered.
        let last = last.unwrap_or_else(|| streams[0] - 2);
        let mut sent = Vec::new();
        for last in plan
            .announced
            .then_some(ANY_STREAM)
            .into_iter()
            .chain([last])
        {
            frame(
                &mut sent,
                GOAWAY,
                0,
                0,
                &[last.to_be_bytes(), [0; 4]].concat(),
            );
        }
        self.send(&sent).await?;
        for stream in processed {
            self.answer(*stream).await?;
        }
        Ok(())
    }

    /// Reads frames up to the head of a request. Returns its stream.
    async fn request(&mut self) -> Result<u32> {
        loop {
            let read = read_frame(&mut self.stream).await.context("closed")?;
            let acknowledged = match read.kind {
                HEADERS => return Ok(read.stream),
                SETTINGS | PING if read.flags & ACK == 0 => read.kind,
                _ => continue,
            };
            let payload = match acknowledged {
                PING => &read.payload[..],
                _ => &[],
            };
            let mut sent = Vec::new();
            frame(&mut sent, acknowledged, ACK, 0, payload);
            self.send(&sent).await?;
        }
    }

    async fn answer(&mut self, stream: u32) -> Result<()> {
        let number = self.number.to_string();
        self.answers
            .lock()
            .expect("no thread panics with them")
            .push(number.clone());
        let mut sent = Vec::new();
        frame(&mut sent, HEADERS, END_HEADERS, stream, OK);
        frame(&mut sent, DATA, END_STREAM, stream, number.as_bytes());
        self.send(&sent).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }
}

fn create() -> Result<Request<&'static str>> {
    // Not idempotent: only the GOAWAY permits to send it again.
    let request = Request::post("/api/v1/namespaces/default/pods").body("{}")?;
    with_token("t", request)
}

/// With and without the GOAWAY that precedes another one. Requests that it excludes are sent again
/// to the same server, because there is no other.
#[tokio::test]
async fn requests_beyond_a_goaway_are_repeated_on_another_connection() -> Result<()> {
    const IN_FLIGHT: usize = 10;
    kube_bastion::tls::install_provider();
    for (processed, announced) in [(4, false), (4, true), (0, false), (IN_FLIGHT, true)] {
        let folder = tempfile::tempdir()?;
        let ca = Ca::new(folder.path(), "api-ca")?;
        let plan = Plan {
            answered: 1,
            in_flight: IN_FLIGHT,
            processed,
            announced,
            shuts_down: false,
        };
        let server = GoawayServer::start(&ca, folder.path(), plan).await?;
        let list = format!("servers: [{{address: '{}'}}]", server.address);
        let bed = TestBed::with_api_servers(&list, &ca.file).await?;
        let mut client = connect(&bed).await?;
        // The token is not known to be valid, then the connection for it is opened.
        for answer in ["h", "0"] {
            let response = exchange(&mut client, with_token("t", get("/version"))?).await?;
            ensure!(response.body() == answer, "{response:?}");
        }
        let creations = (0..IN_FLIGHT).map(|_| {
            let mut client = client.clone();
            async move { exchange(&mut client, create()?).await }
        });
        let mut bodies = Vec::new();
        for response in join_all(creations).await {
            let response = response?;
            ensure!(response.status() == 200, "{response:?}");
            bodies.push(response.into_body());
        }
        let first = bodies.iter().filter(|body| *body == "0").count();
        ensure!(first == processed, "{bodies:?}");
        // Each was carried out once.
        let answered = server.count(|number| number > 0);
        ensure!(answered == IN_FLIGHT - processed, "{answered}");
        ensure!(server.count(|number| number == 0) == 1 + processed);
    }
    Ok(())
}

/// The request in flight is processed or not, and those that follow go to the other server.
#[tokio::test]
async fn goaway_of_a_server_that_shuts_down_fails_no_request() -> Result<()> {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 10;
    kube_bastion::tls::install_provider();
    for processed in [0, 1] {
        let folder = tempfile::tempdir()?;
        let ca = Ca::new(folder.path(), "api-ca")?;
        let plan = Plan {
            answered: 1,
            in_flight: 1,
            processed,
            announced: true,
            shuts_down: true,
        };
        let leaving = GoawayServer::start(&ca, folder.path(), plan).await?;
        let pair = ca.server(folder.path(), "staying", &["kubernetes.default.svc"])?;
        let staying = Server::start(&pair, |_| ok("staying")).await?;
        let list = format!(
            "servers: [{{address: '{}'}}, {{address: '{}'}}]",
            leaving.address, staying.address
        );
        let bed = TestBed::with_api_servers(&list, &ca.file).await?;
        let mut client = connect(&bed).await?;
        let mut answer = Bytes::new();
        while answer != "0" {
            let response = exchange(&mut client, with_token("t", get("/version"))?).await?;
            answer = response.into_body();
        }
        let before = staying.received().len();
        let load = (0..CLIENTS).map(|_| create_repeatedly(client.clone(), REQUESTS));
        let bodies = join_all(load).await.into_iter();
        let bodies = bodies.collect::<Result<Vec<_>>>()?.concat();
        ensure!(
            TcpStream::connect(leaving.address).await.is_err(),
            "the server that leaves got no request"
        );
        let left = bodies.iter().filter(|body| *body == "0").count();
        ensure!(left == processed, "{left} answers of the server that left");
        // Each was carried out once.
        let received = staying.received().len() - before;
        ensure!(received == CLIENTS * REQUESTS - processed, "{received}");
    }
    Ok(())
}

async fn create_repeatedly(
    mut client: SendRequest<Full<Bytes>>,
    requests: usize,
) -> Result<Vec<Bytes>> {
    let mut bodies = Vec::new();
    for _ in 0..requests {
        let response = exchange(&mut client, create()?).await?;
        ensure!(response.status() == 200, "{response:?}");
        bodies.push(response.into_body());
    }
    Ok(bodies)
}
