//! Targets through a plain API server, and arguments that are invalid.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Open, fail, kubeconfig};

/// API server with some objects, for tests with several threads, which rejects port-forwarding and
/// echoes requests for `/proxy/`, except for one that breaks off.
async fn api_server(objects: &[(&str, Value)]) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let objects: HashMap<_, _> = objects
        .iter()
        .map(|(path, object)| ((*path).to_owned(), object.clone()))
        .collect();
    let objects = Arc::new(objects);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let objects = Arc::clone(&objects);
            let service = service_fn(move |request| {
                let response = respond(&request, &objects);
                async move { Ok::<_, Infallible>(response) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    Ok(address)
}

type Body = BoxBody<Bytes, io::Error>;

fn full(text: String) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

fn respond(request: &Request<Incoming>, objects: &HashMap<String, Value>) -> Response<Body> {
    let json = |status: StatusCode, body: &Value| {
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = status;
        let json = "application/json".parse().expect("a media type");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    };
    let path = request.uri().path();
    if path.ends_with("/proxy/cut") {
        let first = stream::once(async { Ok(Frame::data("{".into())) });
        let rest = stream::once(async {
            // The first part leaves before.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(io::ErrorKind::Other.into())
        });
        let mut response = json(StatusCode::INTERNAL_SERVER_ERROR, &Value::Null);
        let length = header::HeaderValue::from_static("300");
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
        *response.body_mut() = BoxBody::new(StreamBody::new(first.chain(rest)));
        return response;
    }
    if let Some((prefix, rest)) = path.split_once("/proxy/") {
        let mut text = format!("{} {prefix} {rest}\n", request.method());
        for (name, value) in request.headers() {
            text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        let mut response = Response::new(full(text));
        let location = format!("{prefix}/proxy/login").parse().expect("a path");
        response.headers_mut().insert(header::LOCATION, location);
        return response;
    }
    if let Some(object) = objects.get(path) {
        return json(StatusCode::OK, object);
    }
    let (code, message) = if path.ends_with("/portforward") {
        (403, "pods \"web-0\" is forbidden")
    } else {
        (404, "not found")
    };
    let status = json!({"kind": "Status", "code": code, "message": message});
    json(StatusCode::from_u16(code).expect("a status"), &status)
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn objects() -> [(&'static str, Value); 6] {
    let selector = json!({"app": "web"});
    let pod = |name: &str, ready: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        })
    };
    [
        (
            "/api/v1/namespaces/default/services/web",
            json!({"spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8080}]}}),
        ),
        (
            "/api/v1/namespaces/default/services/rabbit",
            json!({"spec": {"ports": [{"port": 5672, "name": "amqp"}, {"port": 15672, "name": "management"}]}}),
        ),
        (
            SERVICES,
            json!({"items": [{"metadata": {"name": "web"}}, {"metadata": {"name": "rabbit"}}]}),
        ),
        (
            "/api/v1/namespaces/default/pods",
            json!({"items": [pod("web-0", "True"), pod("web-1", "False")]}),
        ),
        (
            "/apis/apps/v1/namespaces/default/deployments/web",
            json!({"spec": {
                "selector": {"matchLabels": selector},
                "template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]}},
            }}),
        ),
        ("/api/v1/nodes/n1", json!({"metadata": {"name": "n1"}})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_api_server_without_port_forwarding_serves_through_its_subresource() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = format!("http://{}", api_server(&objects()).await?);
    let file = kubeconfig(folder.path(), &server, "", "")?;
    for (target, prefix) in [
        ("svc/web", "/api/v1/namespaces/default/services/web"),
        (
            "svc/rabbit:management",
            "/api/v1/namespaces/default/services/rabbit:15672",
        ),
        // Its ready pod.
        ("deploy/web", "/api/v1/namespaces/default/pods/web-0"),
        ("node/n1", "/api/v1/nodes/n1"),
    ] {
        let open = Open::start(&file, &[target])?;
        let response = open.response("GET /a?b", "127.0.0.1:PORT", "").await?;
        ensure!(
            response.contains(&format!("GET {prefix} a\n")),
            "{target}: {response}"
        );
        let kept = format!("GET {prefix}/proxy/a");
        let response = open.response(&kept, "127.0.0.1:PORT", "").await?;
        if target != "deploy/web" {
            ensure!(
                response.contains("\r\nLocation: /login\r\n")
                    || response.contains("\r\nlocation: /login\r\n"),
                "{response}"
            );
        }
        ensure!(
            response.contains(&format!("GET {prefix} a\n")),
            "{target}: {response}"
        );
        let response = open.response("GET /cut", "127.0.0.1:PORT", "").await?;
        ensure!(
            response.starts_with("HTTP/1.1 502 ") && response.contains("the response broke off"),
            "{response}"
        );
        open.prints("is opened through /proxy/ of the API server")
            .await?;
        if target == "svc/web" {
            open.prints("cannot forward a port of service/web: the API server refuses port-forward to the pod: pods \"web-0\" is forbidden")
                .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_line_with_the_remedy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = api_server(&objects()).await?;
    let file = kubeconfig(folder.path(), &format!("http://{address}"), "", "")?;
    let taken = address.port().to_string();
    for (arguments, expected) in [
        (&["web"][..], r#""web" has no type; use TYPE/NAME, such as svc/web"#.to_owned()),
        (&["ing/web"], r#"unknown type "ing"; use svc, pod, node"#.to_owned()),
        (&["svc/webb"], r#"service "webb" not found in namespace "default"; did you mean "web"?"#.to_owned()),
        (&["svc/x"], r#"service "x" not found in namespace "default"; its services: web, rabbit"#.to_owned()),
        (
            &["svc/rabbit"],
            "service/rabbit has several ports; choose one with --port: 5672 (amqp), 15672 (management)".to_owned(),
        ),
        (
            &["svc/web", "--port", "81"],
            r#"service/web has no port "81"; its ports: 80"#.to_owned(),
        ),
        (
            &["svc/web", "--local-port", &taken],
            format!("port {taken} is in use on 127.0.0.1; choose another with --local-port"),
        ),
        (
            &["svc/web", "--via", "bastion"],
            format!("127.0.0.1:{taken} is not a bastion that forwards requests in absolute form; omit --via=bastion"),
        ),
        (
            &["svc/web", "--via", "bastion", "--as", "jane"],
            "omit --as, or use --via=proxy".to_owned(),
        ),
        (
            &["svc/web", "--via", "port-forward"],
            "cannot forward a port of service/web: the API server refuses port-forward to the pod: pods \"web-0\" is forbidden".to_owned(),
        ),
        (&["node/n1", "--via", "port-forward"], "node/n1 cannot be opened through port-forwarding".to_owned()),
    ] {
        let error = fail(&file, arguments)?;
        ensure!(error.contains(&expected) && error.lines().count() == 1, "{arguments:?}: {error}");
    }
    let unreachable = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let file = kubeconfig(folder.path(), &format!("http://{unreachable}"), "", "")?;
    let error = fail(&file, &["svc/web"])?;
    ensure!(
        error.contains(&format!("the server {unreachable} refused the connection")),
        "{error}"
    );
    Ok(())
}
