//! Server names of TLS connections to endpoints (CONFORMANCE C51, C52).

use anyhow::{Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::support::eventually;
use crate::support::test_bed::{TestBed, read_until};
use crate::support::tls_endpoint::{TlsEndpoint, pod_path};
use crate::{OK_RESPONSE, SWITCH_TO_X};

/// Requests a path and returns the server name that the endpoint receives.
async fn server_name(bed: &TestBed, endpoint: &TlsEndpoint, path: &str) -> Result<Option<String>> {
    let response = bed.get(path);
    let serve = async {
        let mut stream = endpoint.accept_http1().await?;
        read_until(&mut stream, "\r\n\r\n").await?;
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        stream.write_all(response).await?;
        stream.flush().await?;
        anyhow::Ok(stream.get_ref().1.server_name().map(str::to_owned))
    };
    let (response, name) = tokio::try_join!(response, serve)?;
    ensure!(response.status == 200, "{path}: {response:?}");
    Ok(name)
}

/// A service and nodes whose kubelets and other servers are the endpoint at `PORT`.
const OBJECTS: &str = "\
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 443, appProtocol: https}]}
---
kind: Pod
metadata: {name: web-1, namespace: shop}
status: {podIPs: [{ip: 127.0.0.1}]}
---
kind: EndpointSlice
metadata: {name: web, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: PORT}]
endpoints: [{addresses: [127.0.0.1], targetRef: {kind: Pod, namespace: shop, name: web-1}}]
---
kind: Node
metadata: {name: named}
status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}
---
kind: Node
metadata: {name: hosted}
status:
  addresses:
  - {type: InternalIP, address: 127.0.0.1}
  - {type: Hostname, address: hosted.example}
---
kind: Node
metadata: {name: numbered}
status:
  addresses:
  - {type: InternalIP, address: 127.0.0.1}
  - {type: Hostname, address: 127.0.0.1}
---
kind: Node
metadata: {name: kubelet}
status:
  addresses:
  - {type: InternalIP, address: 127.0.0.1}
  - {type: Hostname, address: kubelet.example}
  daemonEndpoints: {kubeletEndpoint: {Port: PORT}}
";

async fn add_objects(bed: &TestBed, port: u16) -> Result<()> {
    let objects = OBJECTS.replace("PORT", &port.to_string());
    std::fs::write(bed.folder.path().join("manifests/tls.yaml"), objects)?;
    eventually("the objects to be loaded", async || {
        // A redirect, if the node is known.
        Ok(bed.get("/api/v1/nodes/hosted/proxy").await?.status == 301)
    })
    .await
}

#[tokio::test]
async fn sends_names_of_services_and_nodes_and_none_for_pods() -> Result<()> {
    let bed = TestBed::new().await?;
    let endpoint = TlsEndpoint::start_http1(&bed.ca, bed.folder.path(), &["127.0.0.1"]).await?;
    let port = endpoint.address()?.port();
    add_objects(&bed, port).await?;
    let node = |name: &str| format!("/api/v1/nodes/https:{name}:{port}/proxy/x");
    for (path, name) in [
        (
            "/api/v1/namespaces/shop/services/web/proxy/x".to_owned(),
            Some("web.shop.svc"),
        ),
        (
            "/api/v1/namespaces/shop/services/https:web:443/proxy/x".to_owned(),
            Some("web.shop.svc"),
        ),
        (pod_path(port), None),
        (node("named"), Some("named")),
        (node("hosted"), Some("hosted.example")),
        (node("numbered"), None),
        (node("kubelet"), Some("kubelet.example")),
        (
            "/api/v1/nodes/kubelet/proxy/x".to_owned(),
            Some("kubelet.example"),
        ),
    ] {
        // Twice, because the second handshake may resume the session of the first.
        for _ in 0..2 {
            let sent = server_name(&bed, &endpoint, &path).await?;
            ensure!(sent.as_deref() == name, "{path}: {sent:?}");
        }
    }
    Ok(())
}

/// A connection serves only targets with its server name.
#[tokio::test]
async fn targets_with_different_names_do_not_share_connections() -> Result<()> {
    let bed = TestBed::serving("workers: 1", &[]).await?;
    let endpoint = TlsEndpoint::start_http1(&bed.ca, bed.folder.path(), &["127.0.0.1"]).await?;
    let port = endpoint.address()?.port();
    add_objects(&bed, port).await?;
    let serve = async |stream: &mut TlsStream<TcpStream>| {
        read_until(stream, "\r\n\r\n").await?;
        stream.write_all(OK_RESPONSE).await?;
        anyhow::Ok(stream.flush().await?)
    };
    let service = "/api/v1/namespaces/shop/services/web/proxy/x";
    let node = format!("/api/v1/nodes/https:hosted:{port}/proxy/x");
    let mut open = Vec::new();
    for (path, name) in [
        (service, Some("web.shop.svc")),
        (&*pod_path(port), None),
        (&*node, Some("hosted.example")),
    ] {
        let accept = async {
            let mut stream = endpoint.accept_http1().await?;
            serve(&mut stream).await?;
            anyhow::Ok(stream)
        };
        let (response, stream) = tokio::try_join!(bed.get(path), accept)?;
        ensure!(response.status == 200, "{path}: {response:?}");
        ensure!(stream.get_ref().1.server_name() == name, "{path}");
        open.push((path.to_owned(), stream));
    }
    // Each target finds its connection again.
    for (path, stream) in &mut open {
        let (response, ()) = tokio::try_join!(bed.get(path), serve(stream))?;
        ensure!(response.status == 200, "{path}: {response:?}");
    }
    Ok(())
}

#[tokio::test]
async fn sends_name_of_service_with_upgrade() -> Result<()> {
    let bed = TestBed::new().await?;
    let endpoint = TlsEndpoint::start_http1(&bed.ca, bed.folder.path(), &["127.0.0.1"]).await?;
    add_objects(&bed, endpoint.address()?.port()).await?;
    let mut client = bed.client().await?;
    let head = "GET /api/v1/namespaces/shop/services/web/proxy/x HTTP/1.1\r\nHost: h\r\n\
                Authorization: Bearer t\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    client.write_all(head.as_bytes()).await?;
    let mut stream = endpoint.accept_http1().await?;
    ensure!(stream.get_ref().1.server_name() == Some("web.shop.svc"));
    read_until(&mut stream, "\r\n\r\n").await?;
    stream.write_all(SWITCH_TO_X).await?;
    stream.flush().await?;
    let head = read_until(&mut client, "\r\n\r\n").await?;
    ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
    Ok(())
}

/// CONFORMANCE C52: a kubelet is verified for its address, whatever name is sent.
#[tokio::test]
async fn verifies_kubelets_for_their_address() -> Result<()> {
    for (hosts, valid) in [
        (&["127.0.0.1"][..], true),
        (&["kubelet.example", "127.0.0.1"], true),
        (&["kubelet.example"], false),
        (&["127.0.0.2", "localhost"], false),
    ] {
        let folder = tempfile::tempdir()?;
        let ca = crate::support::pki::Ca::new(folder.path(), "kubelet-ca")?;
        let flag = format!("--kubelet-certificate-authority={}", ca.file.display());
        let bed = TestBed::with(&[&flag]).await?;
        let endpoint = TlsEndpoint::start_http1(&ca, folder.path(), hosts).await?;
        add_objects(&bed, endpoint.address()?.port()).await?;
        let response = bed.get("/api/v1/nodes/kubelet/proxy/x");
        if valid {
            let serve = async {
                let stream = endpoint.accept_http1().await?;
                let name = stream.get_ref().1.server_name();
                ensure!(name == Some("kubelet.example"), "{name:?}");
                // Closes the connection: the verified handshake suffices.
                anyhow::Ok(())
            };
            let (response, ()) = tokio::try_join!(response, serve)?;
            ensure!(!response.body.contains("tls: "), "{hosts:?}: {response:?}");
        } else {
            let (response, accepted) = tokio::join!(response, endpoint.accept());
            let response = response?;
            ensure!(
                accepted.is_err() || response.status == 503,
                "{hosts:?} was accepted"
            );
            ensure!(
                response.body.contains("tls: invalid peer certificate: ")
                    && response.body.contains("127.0.0.1"),
                "{hosts:?}: {response:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn connects_without_name_if_endpoint_rejects_it() -> Result<()> {
    /// `unrecognized_name` (RFC 6066 section 3).
    const UNRECOGNIZED_NAME: u8 = 112;
    let bed = TestBed::new().await?;
    let endpoint = TlsEndpoint::start_http1(&bed.ca, bed.folder.path(), &["127.0.0.1"]).await?;
    let port = endpoint.address()?.port();
    add_objects(&bed, port).await?;
    let path = "/api/v1/namespaces/shop/services/web/proxy/x";
    let serve = async {
        endpoint.alert(UNRECOGNIZED_NAME).await?;
        let mut stream = endpoint.accept_http1().await?;
        ensure!(stream.get_ref().1.server_name().is_none());
        read_until(&mut stream, "\r\n\r\n").await?;
        stream.write_all(OK_RESPONSE).await?;
        stream.flush().await?;
        anyhow::Ok(())
    };
    let (response, ()) = tokio::try_join!(bed.get(path), serve)?;
    ensure!(response.status == 200, "{response:?}");
    // A handshake without a name is not repeated.
    let path = pod_path(port);
    let (response, ()) = tokio::try_join!(bed.get(&path), endpoint.alert(UNRECOGNIZED_NAME))?;
    ensure!(
        response.status == 503 && response.body.contains("tls: "),
        "{response:?}"
    );
    Ok(())
}
