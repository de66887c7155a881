//! Several servers, their protocols, and connections that close.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{Method, Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use super::Open;
use crate::api::{Desk, ok, response};
use crate::support::raw::{Head, Wire};
use crate::support::tls_endpoint::TlsEndpoint;

const TOKEN: &str = "{token: t0k3n}";
const SERVICE: &str = r#"{"spec": {"ports": [{"port": 80}]}}"#;

/// Response to the probe for a bastion, to a look-up, or of the application with the request line.
fn respond(head: &Head) -> Vec<u8> {
    if head.line.starts_with("OPTIONS ") {
        response("407 Proxy Authentication Required", "")
    } else if is_forwarded(head) {
        ok(&head.line)
    } else {
        ok(SERVICE)
    }
}

fn is_forwarded(head: &Head) -> bool {
    head.line.contains("/proxy/") || head.line.contains("http://web.default.svc/")
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_server_fails_no_request_and_the_other_one_gets_its_own_host_and_path() -> Result<()> {
    const PROXY: &str = "/api/v1/namespaces/default/services/web/proxy";
    let proxied = |path: &str| format!("{path}{PROXY}/a?b");
    let absolute = || "http://web.default.svc/a?b".to_owned();
    for (via, path, expected) in [
        (
            "--via=proxy",
            "/k8s/one",
            [proxied("/k8s/one"), proxied("")],
        ),
        ("--via=bastion", "", [absolute(), absolute()]),
    ] {
        let desk = Desk::new()?;
        let first = desk.api(|head, _| respond(head)).await?;
        let second = desk.api(|head, _| respond(head)).await?;
        desk.kubeconfig("https://unused.example", TOKEN)?;
        let flags = [
            format!("--server=https://{}{path}", first.address),
            format!("--server=https://{}", second.address),
        ];
        let arguments = ["svc/web", via, &flags[0], &flags[1]];
        let open = Open::start(&desk.path("kubeconfig"), &arguments)?;
        let get = async || {
            let response = open.response("GET /a?b", "127.0.0.1:PORT", "").await?;
            ensure!(response.starts_with("HTTP/1.1 200 "), "{via}: {response}");
            anyhow::Ok(response)
        };
        for _ in 0..10 {
            get().await?;
        }
        for (api, expected) in [&first, &second].into_iter().zip(&expected) {
            let requests = api.requests();
            let requests: Vec<_> = requests.iter().filter(|head| is_forwarded(head)).collect();
            ensure!(requests.len() == 5, "{via}: {requests:?}");
            let host = if via == "--via=proxy" {
                api.address.to_string()
            } else {
                "web.default.svc".to_owned()
            };
            for head in requests {
                let line = format!("GET {expected} HTTP/1.1");
                ensure!(
                    head.line == line && head.value("host") == Some(&*host),
                    "{via}: {head:?}"
                );
            }
        }
        drop(first);
        for _ in 0..10 {
            let response = get().await?;
            ensure!(response.contains(&expected[1]), "{via}: {response}");
        }
    }
    Ok(())
}

/// Serves a connection, which closes behind the response to `/first`, and instead of that to
/// `/dies`.
async fn serve(stream: TlsStream<TcpStream>, closed: &Notify, deaths: &AtomicUsize) -> Result<()> {
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        let mut body = Vec::new();
        wire.body(&head, |bytes| body.extend_from_slice(bytes))
            .await?;
        if head.line.contains("/dies") {
            deaths.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        let mut response = respond(&head);
        if !body.is_empty() {
            response = ok(&String::from_utf8_lossy(&body));
        }
        wire.send(&response).await?;
        if head.line.contains("/first") {
            wire.stream.shutdown().await?;
            drop(wire);
            closed.notify_one();
            return Ok(());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn body_is_sent_on_a_new_connection_once_the_idle_one_has_closed() -> Result<()> {
    let desk = Desk::new()?;
    let endpoint = TlsEndpoint::start_http1(&desk.ca, desk.folder.path(), &["127.0.0.1"]).await?;
    desk.kubeconfig(&format!("https://{}", endpoint.address()?), TOKEN)?;
    let closed = Arc::<Notify>::default();
    let deaths = Arc::<AtomicUsize>::default();
    let (closing, dying) = (Arc::clone(&closed), Arc::clone(&deaths));
    tokio::spawn(async move {
        while let Ok(stream) = endpoint.accept().await {
            let (closed, deaths) = (Arc::clone(&closing), Arc::clone(&dying));
            tokio::spawn(async move { serve(stream, &closed, &deaths).await });
        }
    });
    let open = Open::start(&desk.path("kubeconfig"), &["svc/web", "--via=proxy"])?;
    for _ in 0..5 {
        let response = open.response("GET /first", "127.0.0.1:PORT", "").await?;
        ensure!(response.starts_with("HTTP/1.1 200 "), "{response}");
        closed.notified().await;
        let response = open.post("/form", "a=b").await?;
        ensure!(
            response.starts_with("HTTP/1.1 200 ") && response.ends_with("a=b"),
            "{response}"
        );
    }
    // The server may have carried out what it has received.
    let response = open.post("/dies", "a=b").await?;
    ensure!(
        response.starts_with("HTTP/1.1 502 ") && response.contains("may have been carried out"),
        "{response}"
    );
    ensure!(deaths.load(Ordering::SeqCst) == 1);
    Ok(())
}

/// Responds over HTTP/2, with method, URL and body of requests in absolute form. Refuses the first
/// POST.
async fn respond_http2(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    posts: &AtomicUsize,
) -> Result<()> {
    let (head, mut body) = request.into_parts();
    let (status, text) = if head.method == Method::OPTIONS {
        (407, String::new())
    } else if head.uri.path().starts_with("/api/") {
        (200, SERVICE.to_owned())
    } else {
        if head.method == Method::POST && posts.fetch_add(1, Ordering::SeqCst) == 0 {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return Ok(());
        }
        let mut text = format!("{} {} ", head.method, head.uri);
        while let Some(bytes) = body.data().await {
            text += &String::from_utf8_lossy(&bytes?);
        }
        (200, text)
    };
    let response = Response::builder().status(status).body(())?;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(text.into(), true)?;
    Ok(())
}

async fn serve_http2(stream: TlsStream<TcpStream>, posts: Arc<AtomicUsize>) -> Result<()> {
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        // A health check.
        let mut wire = Wire::new(stream);
        while wire.head().await?.is_some() {
            wire.send(&ok("ok")).await?;
        }
        return Ok(());
    }
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let posts = Arc::clone(&posts);
        tokio::spawn(async move { respond_http2(request, respond, &posts).await });
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bastion_gets_the_absolute_form_over_http2_and_a_refused_body_again() -> Result<()> {
    let desk = Desk::new()?;
    let endpoint = TlsEndpoint::start(&desk.ca, desk.folder.path(), &["127.0.0.1"]).await?;
    desk.kubeconfig(&format!("https://{}", endpoint.address()?), TOKEN)?;
    let posts = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&posts);
    tokio::spawn(async move {
        while let Ok(stream) = endpoint.accept().await {
            tokio::spawn(serve_http2(stream, Arc::clone(&counted)));
        }
    });
    let open = Open::start(&desk.path("kubeconfig"), &["svc/web"])?;
    ensure!(
        open.stdout.contains("through the bastion"),
        "{}",
        open.stdout
    );
    let response = open
        .response("GET /a%2Fb//?c", "127.0.0.1:PORT", "")
        .await?;
    ensure!(
        response.contains("GET http://web.default.svc/a%2Fb//?c "),
        "{response}"
    );
    let response = open.post("/form", "a=b").await?;
    ensure!(
        response.contains("POST http://web.default.svc/form a=b"),
        "{response}"
    );
    ensure!(posts.load(Ordering::SeqCst) == 2);
    Ok(())
}
