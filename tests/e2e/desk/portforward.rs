//! Sessions of the port-forward protocol with the real API server and kubelet.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube_bastion::apiservers::ApiServers;
use kube_bastion::balance::LoadBalancer;
use kube_bastion::config;
use kube_bastion::desk::portforward::{OpenError, PortStream, Session, open};
use kube_bastion::desk::{ConnectionFlags, Context};
use kube_bastion::forward::{ApiForwarder, Pool};
use kube_bastion::metrics::EjectionMetrics;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::fixture::{Fixture, SHOP};
use crate::support::cluster::KubeconfigUser;
use crate::support::eventually;
use crate::support::streaming_kubelet::StreamingKubelet;

pub(super) const POD: &str = "web-1";
/// Ports of the pod.
pub(super) const ECHO: u16 = 7001;
pub(super) const SINK: u16 = 7002;
const SOURCE: u16 = 7003;
pub(super) const RESETTING: u16 = 7004;
pub(super) const CLOSED: u16 = 7005;
/// Size of a large transfer.
const LARGE: usize = 64 * 1024 * 1024;
/// Limit of a whole step, so that a stall fails instead of hanging.
const STEP_TIMEOUT: Duration = Duration::from_mins(2);

/// Cases of public reports: fallback to SPDY, two connections in it, ends, cancellation, errors.
pub async fn portforward_sessions_carry_connections(fixture: &mut Fixture) -> Result<()> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    kubelet.set_address(SHOP, POD, fixture.namespace.address(11))?;
    let _backends = backends(fixture)?;
    // The WebSocket, then SPDY: with `create` alone the API server refuses the WebSocket.
    let websocket = account(fixture, "forwarder", &["get", "create"]).await?;
    let spdy = account(fixture, "creator", &["create"]).await?;
    for kubeconfig in [websocket, spdy] {
        let client = Client::new(&kubeconfig)?;
        let session = client.open().await?;
        within("parallel connections", parallel(&session)).await?;
        within("half-close", half_close(&session)).await?;
        within("large transfers", large(&session)).await?;
        within("failures", failures(&session)).await?;
        within("canceled connections", canceled(&session)).await?;
        within("two connections", two_connections(&session)).await?;
        eventually("the end of all connections at the kubelet", async || {
            ensure!(session.is_open(), "{}", session.ended().await);
            Ok(kubelet.count("dial") == kubelet.count("close"))
        })
        .await?;
        let ends = kubelet.count("end of port-forward");
        drop(session);
        eventually("the end of the session at the kubelet", async || {
            Ok(kubelet.count("end of port-forward") > ends)
        })
        .await?;
    }
    refused(fixture).await
}

/// Users and pods that the API server refuses.
async fn refused(fixture: &Fixture) -> Result<()> {
    // The session of this user shows SPDY only if the WebSocket is forbidden.
    let user = format!("--as=system:serviceaccount:{SHOP}:creator");
    let get = [
        "auth",
        "can-i",
        "get",
        "pods/portforward",
        "-n",
        SHOP,
        &user,
    ];
    ensure!(
        fixture.cluster.kubectl(&get).is_err(),
        "creator may use the WebSocket"
    );
    let reader = Client::new(&account(fixture, "reader", &["get"]).await?)?;
    let Err(OpenError::Refused { status, message }) = reader.open().await.map(drop) else {
        anyhow::bail!("port-forward without the verb create");
    };
    ensure!(
        status == 403 && message.contains(r#"cannot create resource "pods/portforward""#),
        "{status}: {message}"
    );
    let admin = Client::new(&fixture.cluster.admin_kubeconfig())?;
    let Err(OpenError::Refused { status, message }) = admin.open_pod("nobody").await.map(drop)
    else {
        anyhow::bail!("port-forward to a pod that does not exist");
    };
    ensure!(
        status == 404 && message == r#"pods "nobody" not found"#,
        "{status}: {message}"
    );
    Ok(())
}

/// Sender of the desk for one kubeconfig.
struct Client {
    forwarder: ApiForwarder,
    context: Context,
}

impl Client {
    fn new(kubeconfig: &Path) -> Result<Self> {
        let context = Context::load(&ConnectionFlags {
            kubeconfig: Some(kubeconfig.into()),
            ..ConnectionFlags::default()
        })?;
        let balance = Arc::new(LoadBalancer::new(EjectionMetrics::default()));
        let forwarder = ApiForwarder {
            servers: ApiServers::new(context.servers.clone()),
            pool: Rc::new(Pool::new(config::Upstream::default(), balance)),
        };
        Ok(Self { forwarder, context })
    }

    async fn open(&self) -> Result<Session, OpenError> {
        self.open_pod(POD).await
    }

    async fn open_pod(&self, pod: &str) -> Result<Session, OpenError> {
        open(&self.forwarder, &self.context.credentials, SHOP, pod).await
    }
}

async fn account(fixture: &Fixture, name: &str, verbs: &[&str]) -> Result<std::path::PathBuf> {
    let objects = &fixture.objects;
    objects
        .create::<ServiceAccount>(json!({"metadata": {"name": name}}))
        .await?;
    let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": SHOP});
    objects
        .allow(name, subject, &["pods/portforward"], verbs)
        .await?;
    let token = fixture.cluster.token(SHOP, name, None).await?;
    let cluster = &fixture.cluster;
    let user = KubeconfigUser::Token(&token);
    let kubeconfig = cluster.kubeconfig(name, &cluster.server, &cluster.ca.file, &user)?;
    Ok(kubeconfig)
}

async fn within(step: &str, run: impl Future<Output = Result<()>>) -> Result<()> {
    let run = timeout(STEP_TIMEOUT, run);
    run.await
        .with_context(|| format!("{step}: no end after {STEP_TIMEOUT:?}"))?
        .with_context(|| step.to_owned())
}

/// 100 connections at the same time, each with its own bytes.
async fn parallel(session: &Session) -> Result<()> {
    let exchange = async |number: usize| -> Result<()> {
        let mut stream = session.connect(ECHO).await?;
        for round in 0..5 {
            let sent = format!("{number} {round} ").repeat(2000);
            let (mut reader, mut writer) = tokio::io::split(&mut stream);
            let mut received = vec![0; sent.len()];
            let (written, read) = tokio::join!(
                writer.write_all(sent.as_bytes()),
                reader.read_exact(&mut received)
            );
            written?;
            read?;
            ensure!(received == sent.as_bytes(), "connection {number} differs");
        }
        finish(stream).await
    };
    try_join_all((0..100).map(exchange)).await.map(drop)
}

/// Closes the sending side, and expects the end of the other one.
async fn finish(mut stream: PortStream) -> Result<()> {
    stream.shutdown().await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    ensure!(rest.is_empty(), "{rest:?}");
    Ok(())
}

/// The backend answers after the end of the request, and its end follows immediately.
async fn half_close(session: &Session) -> Result<()> {
    let mut stream = session.connect(SINK).await?;
    stream.write_all(b"request").await?;
    stream.shutdown().await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    ensure!(response == "7 bytes", "{response:?}");
    Ok(())
}

/// 64 MiB in each direction, beside a connection that stays usable.
async fn large(session: &Session) -> Result<()> {
    let mut upload = session.connect(SINK).await?;
    let mut interactive = session.connect(ECHO).await?;
    // The last one: until it is read, it holds up the session.
    let mut download = session.connect(SOURCE).await?;
    let send = async {
        let chunk = vec![1; 64 * 1024];
        for _ in 0..LARGE / chunk.len() {
            upload.write_all(&chunk).await?;
        }
        upload.shutdown().await?;
        let mut response = String::new();
        upload.read_to_string(&mut response).await?;
        ensure!(response == format!("{LARGE} bytes"), "{response:?}");
        Ok(())
    };
    let receive = async {
        let (mut received, mut buffer) = (0_usize, vec![0; 64 * 1024]);
        loop {
            let length = download.read(&mut buffer).await?;
            let expected = (received..).map(source_byte);
            ensure!(
                buffer[..length].iter().copied().eq(expected.take(length)),
                "bytes from {received} on differ"
            );
            received += length;
            if length == 0 {
                ensure!(received == LARGE, "{received} bytes");
                return Ok(());
            }
        }
    };
    let talk = async {
        for _ in 0..20 {
            interactive.write_all(b"ping").await?;
            let mut answer = [0; 4];
            interactive.read_exact(&mut answer).await?;
            ensure!(&answer == b"ping", "{answer:?}");
        }
        Ok(())
    };
    let (uploaded, downloaded, talked) = tokio::join!(send, receive, talk);
    uploaded.and(downloaded).and(talked)
}

/// Failures end only their own connection.
async fn failures(session: &Session) -> Result<()> {
    let mut open = session.connect(ECHO).await?;
    let mut refused = session.connect(CLOSED).await?;
    let error = refused.read(&mut [0; 1]).await;
    let error = error.err().context("the port is closed")?.to_string();
    ensure!(
        error.contains("failed to connect to localhost:7005") && error.contains("refused"),
        "{error}"
    );
    // The kubelet ends a connection that its backend resets with an error or at its end.
    let mut reset = session.connect(RESETTING).await?;
    reset.write_all(b"x").await?;
    let mut read = Vec::new();
    let ended = reset.read_to_end(&mut read).await;
    let error = ended.err().context("the backend resets")?.to_string();
    ensure!(error.contains("connection reset by peer"), "{error}");
    open.write_all(b"still open").await?;
    let mut answer = [0; 10];
    open.read_exact(&mut answer).await?;
    ensure!(&answer == b"still open", "{answer:?}");
    finish(open).await
}

/// 300 connections that are canceled while they are opened, or right after.
async fn canceled(session: &Session) -> Result<()> {
    for limit in [Duration::ZERO, Duration::from_millis(1), STEP_TIMEOUT] {
        let cancel = async || {
            if let Ok(Ok(mut stream)) = timeout(limit, session.connect(ECHO)).await {
                let _ = stream.write_all(b"not answered").await;
            }
        };
        join_all((0..100).map(|_| cancel())).await;
    }
    two_connections(session).await
}

async fn two_connections(session: &Session) -> Result<()> {
    let (mut first, mut second) = (session.connect(ECHO).await?, session.connect(ECHO).await?);
    for (stream, text) in [(&mut first, b"first ."), (&mut second, b"second.")] {
        stream.write_all(text).await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        ensure!(&answer == text, "{answer:?}");
    }
    finish(first).await?;
    finish(second).await
}

fn source_byte(position: usize) -> u8 {
    (position % 251).to_le_bytes()[0]
}

/// Backends of the pod, in its network namespace.
pub(super) fn backends(fixture: &Fixture) -> Result<Vec<AbortOnDropHandle<()>>> {
    let listen = |port| -> Result<TcpListener> {
        let address = SocketAddr::from((fixture.namespace.address(11), port));
        Ok(TcpListener::from_std(fixture.namespace.bind(address)?)?)
    };
    Ok(vec![
        serve(listen(ECHO)?, |mut stream| async move {
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await.map(drop)
        }),
        serve(listen(SINK)?, |mut stream| async move {
            let received = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            let response = format!("{received} bytes");
            stream.write_all(response.as_bytes()).await
        }),
        serve(listen(SOURCE)?, |mut stream| async move {
            let bytes: Vec<u8> = (0..LARGE).map(source_byte).collect();
            stream.write_all(&bytes).await
        }),
        serve(listen(RESETTING)?, |mut stream| async move {
            stream.read_u8().await?;
            stream.set_zero_linger()
        }),
    ])
}

fn serve<F>(
    listener: TcpListener,
    handle: impl Fn(TcpStream) -> F + Send + 'static,
) -> AbortOnDropHandle<()>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Ends with its client.
            tokio::spawn(handle(stream));
        }
    }))
}
