//! Retries and ejection: a bastion with the manifests source in front of backends that close
//! connections or stop responding on command.

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use support::bastion::Bastion;
use support::client::{Client, Response, tls};
use support::eventually;
use support::pki::Ca;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Behavior of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Respond,
    /// Closes the connection without a response.
    Close,
    /// Sends no response until the mode changes.
    Freeze,
}

/// HTTP/1.1 server for requests without bodies.
struct Backend {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    requests: Arc<AtomicUsize>,
}

impl Backend {
    async fn start(mode: Mode) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (mode, wanted) = watch::channel(mode);
        let requests = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, wanted.clone(), Arc::clone(&counted)));
            }
        });
        Ok(Self {
            address,
            mode,
            requests,
        })
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, mut mode: watch::Receiver<Mode>, requests: Arc<AtomicUsize>) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head[0].is_ascii_uppercase() {
            // Not HTTP, such as a ClientHello.
            return;
        }
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        head.clear();
        requests.fetch_add(1, Ordering::SeqCst);
        let Ok(wanted) = mode
            .wait_for(|mode| *mode != Mode::Freeze)
            .await
            .map(|mode| *mode)
        else {
            return;
        };
        if wanted == Mode::Close
            || stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .is_err()
        {
            return;
        }
    }
}

/// Bastion with one worker and the service `web`.
struct TestBed {
    bastion: Bastion,
    folder: tempfile::TempDir,
}

const EJECTIONS_FOR_CONNECTS: &str = r#"ejections_total{reason="connect"}"#;
const EJECTED_FOR_CONNECTS: &str = r#"endpoints_ejected{reason="connect"}"#;
const WEB: &str = "/api/v1/namespaces/default/services/web:80/proxy/";

impl TestBed {
    async fn new(endpoints: &[SocketAddr]) -> Result<Self> {
        kube_bastion::tls::install_provider();
        let folder = tempfile::tempdir()?;
        let serving =
            Ca::new(folder.path(), "ca")?.server(folder.path(), "bastion", &["localhost"])?;
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("manifests"))?;
        std::fs::write(path("manifests/all.yaml"), manifests(endpoints))?;
        std::fs::write(path("tokens"), "t,jane,1,\"system:masters\"\n")?;
        let arguments = [
            ("tls-cert-file", serving.certificate),
            ("tls-private-key-file", serving.key),
            ("manifests-dir", path("manifests")),
            ("token-auth-file", path("tokens")),
        ];
        let config = "apiVersion: kube-bastion.dev/v1alpha1\nkind: BastionConfiguration\nserving: {workers: 1}\n\
                      targets: {allowLoopback: true}\n";
        std::fs::write(path("config.yaml"), config)?;
        // Redirects the access log to a file.
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(r#"exec "$0" "$@" >{}"#, path("access").display()));
        command
            .args([env!("CARGO_BIN_EXE_kube-bastion"), "serve", "--config"])
            .arg(path("config.yaml"));
        command.args(arguments.map(|(flag, path)| format!("--{flag}={}", path.display())));
        let bastion = Bastion::run(command)?;
        bastion.ready().await?;
        Ok(Self { bastion, folder })
    }

    fn ca(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.crt")
    }

    async fn client(&self) -> Result<Client> {
        Client::connect(self.bastion.secure, &self.ca(), Some("t"), None).await
    }

    async fn get(&self, path: &str) -> Result<Response> {
        self.client().await?.get(path).await
    }

    /// Sends a request in a task.
    fn spawn_get(&self, path: String) -> JoinHandle<Result<Response>> {
        let (address, ca) = (self.bastion.secure, self.ca());
        tokio::spawn(async move {
            Client::connect(address, &ca, Some("t"), None)
                .await?
                .get(&path)
                .await
        })
    }

    /// Value of a metric; 0 if it does not exist.
    async fn metric(&self, name: &str) -> Result<u64> {
        let metrics = self.bastion.metrics().await?;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kube_bastion_")?.strip_prefix(name));
        value.map_or(Ok(0), |value| Ok(value.trim().parse()?))
    }

    /// Waits until the access log has a line that contains all texts.
    async fn wait_for_access_log(&self, texts: &[String]) -> Result<()> {
        eventually(&format!("a line with {texts:?}"), async || {
            let log = std::fs::read_to_string(Path::new(self.folder.path()).join("access"))?;
            Ok(log
                .lines()
                .any(|line| texts.iter().all(|text| line.contains(text))))
        })
        .await
    }
}

/// A pod and its slice. `PORT` is its port, `INDEX` makes its name unique.
const ENDPOINT: &str = include_str!("fixtures/retry_endpoint.yaml");

fn manifests(endpoints: &[SocketAddr]) -> String {
    let slices = endpoints.iter().enumerate().map(|(n, endpoint)| {
        let port = endpoint.port();
        ENDPOINT
            .replace("PORT", &port.to_string())
            .replace("INDEX", &n.to_string())
    });
    "kind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n".to_owned()
        + &slices.collect::<String>()
}

async fn backends<const N: usize>(modes: [Mode; N]) -> Result<(Vec<Backend>, TestBed)> {
    let mut backends = Vec::new();
    for mode in modes {
        backends.push(Backend::start(mode).await?);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let bed = TestBed::new(&addresses).await?;
    Ok((backends, bed))
}

/// Returns ports that are bound by this process and not listened on, so that connects are refused.
fn dead_ports(count: usize) -> Result<(Vec<TcpSocket>, Vec<SocketAddr>)> {
    let (mut sockets, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        addresses.push(socket.local_addr()?);
        sockets.push(socket);
    }
    Ok((sockets, addresses))
}

#[tokio::test]
async fn retries_safe_request_after_two_lost_connections() -> Result<()> {
    let (backends, bed) = backends([Mode::Close, Mode::Close, Mode::Respond]).await?;
    // Each request starts at another endpoint, so one of them is sent to both failing ones.
    for _ in 0..3 {
        let response = bed.get(WEB).await?;
        ensure!(response.status == 200, "{response:?}");
    }
    let requests: Vec<_> = backends.iter().map(Backend::requests).collect();
    ensure!(
        requests.iter().sum::<usize>() == 6 && requests[2] == 3,
        "{requests:?}"
    );
    let granted = bed.metric(r#"retries_total{outcome="granted"}"#).await?;
    ensure!(granted == 3, "{granted} retries");
    Ok(())
}

#[tokio::test]
async fn retries_after_stale_connection_and_two_failures() -> Result<()> {
    let (backends, bed) = backends([Mode::Respond, Mode::Respond, Mode::Respond]).await?;
    for _ in 0..3 {
        ensure!(bed.get(WEB).await?.status == 200);
    }
    // Three connections are idle now. A failing endpoint closes its idle connection and the new
    // one.
    backends[0].mode.send(Mode::Close)?;
    backends[1].mode.send(Mode::Close)?;
    for _ in 0..3 {
        let response = bed.get(WEB).await?;
        ensure!(response.status == 200, "{response:?}");
    }
    Ok(())
}

#[tokio::test]
async fn bounds_dials_per_request() -> Result<()> {
    let (_sockets, addresses) = dead_ports(20)?;
    let bed = TestBed::new(&addresses).await?;
    let response = bed.get(WEB).await?;
    ensure!(
        response.status == 503
            && response
                .body
                .contains("error trying to reach service: dial tcp "),
        "{response:?}"
    );
    let dials = bed
        .metric(r#"dial_failures_total{reason="connect"}"#)
        .await?;
    ensure!(dials == 3, "{dials} dials");
    ensure!(
        bed.metric(r#"retries_total{outcome="attempts_exhausted"}"#)
            .await?
            == 1
    );
    ensure!(bed.metric(EJECTED_FOR_CONNECTS).await? == 3);
    Ok(())
}

#[tokio::test]
async fn tls_failures_of_one_caller_eject_no_endpoint() -> Result<()> {
    let (backends, bed) = backends([Mode::Respond; 3]).await?;
    for _ in 0..3 {
        let response = bed
            .get("/api/v1/namespaces/default/services/https:web:80/proxy/")
            .await?;
        ensure!(
            response.status == 503 && response.body.contains("tls: "),
            "{response:?}"
        );
    }
    // After an ejection, a probe would readmit the endpoint, so count ejections before more
    // requests.
    ensure!(bed.metric(EJECTIONS_FOR_CONNECTS).await? == 0);
    for _ in 0..6 {
        ensure!(bed.get(WEB).await?.status == 200);
    }
    let requests: Vec<_> = backends.iter().map(Backend::requests).collect();
    ensure!(requests == [2, 2, 2], "{requests:?}");
    ensure!(bed.metric(EJECTIONS_FOR_CONNECTS).await? == 0);
    Ok(())
}

#[tokio::test]
async fn does_not_eject_only_endpoint() -> Result<()> {
    let (_sockets, addresses) = dead_ports(1)?;
    let bed = TestBed::new(&addresses).await?;
    let pod = format!(
        "/api/v1/namespaces/default/pods/web-0:{}/proxy/",
        addresses[0].port()
    );
    for path in [WEB, &pod] {
        ensure!(bed.get(path).await?.status == 503);
    }
    ensure!(bed.metric(EJECTIONS_FOR_CONNECTS).await? == 0);
    Ok(())
}

#[tokio::test]
async fn ejects_stalled_endpoint_until_it_responds() -> Result<()> {
    let (backends, bed) = backends([Mode::Freeze, Mode::Respond, Mode::Respond]).await?;
    let mut stuck = Vec::new();
    while backends[0].requests() == 0 {
        let before = backends.iter().map(Backend::requests).sum::<usize>();
        stuck.push(bed.spawn_get(WEB.to_owned()));
        eventually("the request to arrive", async || {
            Ok(backends.iter().map(Backend::requests).sum::<usize>() > before)
        })
        .await?;
    }
    let ejected = async || bed.metric(r#"endpoints_ejected{reason="stalled"}"#).await;
    eventually("the stalled endpoint to be ejected", async || {
        Ok(ejected().await? == 1)
    })
    .await?;
    // On a busy machine the ejection may expire before the next stall check, which allows one
    // probe. It waits for the stalled endpoint.
    let mut waiting = 0;
    for _ in 0..20 {
        let mut request = bed.spawn_get(WEB.to_owned());
        let ended = tokio::time::timeout(Duration::from_secs(5), &mut request).await;
        if let Ok(response) = ended {
            ensure!(response??.status == 200);
        } else {
            stuck.push(request);
            waiting += 1;
        }
    }
    let reached = backends[0].requests();
    ensure!(
        reached <= 2,
        "{reached} requests reached the stalled endpoint"
    );
    ensure!(
        waiting < reached,
        "{waiting} requests wait for another endpoint"
    );
    backends[0].mode.send(Mode::Respond)?;
    for stuck in stuck {
        ensure!(stuck.await??.status == 200, "the pending request failed");
    }
    ensure!(ejected().await? == 0);
    for _ in 0..3 {
        ensure!(bed.get(WEB).await?.status == 200);
    }
    ensure!(
        backends[0].requests() == reached + 1,
        "the endpoint gets no requests after its ejection"
    );
    Ok(())
}

#[tokio::test]
async fn stalls_of_requests_to_a_pod_do_not_eject_it_from_services() -> Result<()> {
    let (mut backends, bed) = backends([Mode::Freeze; 3]).await?;
    // Round-robin order of the service.
    backends.sort_unstable_by_key(|backend| backend.address);
    let [first, _, last] = &backends[..] else {
        unreachable!("three backends were started")
    };
    let pods = (0..3).map(|n| {
        format!(
            "/api/v1/namespaces/default/pods/web-{n}:{}/proxy/",
            last.address.port()
        )
    });
    let to_pod = pods.map(|path| bed.spawn_get(path)).collect::<Vec<_>>();
    eventually("the requests to arrive", async || Ok(last.requests() == 3)).await?;
    let on_first = bed.spawn_get(WEB.to_owned());
    // The requests to the pod are older: if they counted, the last endpoint would be ejected first.
    let ejections = async || bed.metric(r#"ejections_total{reason="stalled"}"#).await;
    eventually("the first endpoint to be ejected", async || {
        Ok(ejections().await? == 1)
    })
    .await?;
    let others = [bed.spawn_get(WEB.to_owned()), bed.spawn_get(WEB.to_owned())];
    eventually("a request to the last endpoint", async || {
        Ok(last.requests() == 4)
    })
    .await?;
    ensure!(
        first.requests() == 1,
        "{} requests reached the ejected endpoint",
        first.requests()
    );
    for backend in &backends {
        backend.mode.send(Mode::Respond)?;
    }
    for request in to_pod.into_iter().chain(others).chain([on_first]) {
        ensure!(request.await??.status == 200);
    }
    Ok(())
}

#[tokio::test]
async fn upload_in_progress_is_not_a_stall() -> Result<()> {
    let (mut backends, bed) = backends([Mode::Freeze; 3]).await?;
    backends.sort_unstable_by_key(|backend| backend.address);
    let mut upload = tls(bed.bastion.secure, &bed.ca(), None).await?;
    let head = format!(
        "POST {WEB} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 9\r\n\r\nhalf"
    );
    upload.write_all(head.as_bytes()).await?;
    eventually("the upload to arrive", async || {
        Ok(backends[0].requests() == 1)
    })
    .await?;
    // The upload is older: if it counted, its endpoint would be ejected before the second one.
    let stuck = bed.spawn_get(WEB.to_owned());
    let ejections = async || bed.metric(r#"ejections_total{reason="stalled"}"#).await;
    eventually("the second endpoint to be ejected", async || {
        Ok(ejections().await? == 1)
    })
    .await?;
    let next = bed.spawn_get(WEB.to_owned());
    eventually("a request to the first endpoint", async || {
        Ok(backends[0].requests() == 2)
    })
    .await?;
    ensure!(backends[1].requests() == 1);
    stuck.abort();
    next.abort();
    Ok(())
}

#[tokio::test]
async fn logs_endpoint_that_refuses_connection() -> Result<()> {
    let (_sockets, addresses) = dead_ports(1)?;
    let bed = TestBed::new(&addresses).await?;
    ensure!(bed.get(WEB).await?.status == 503);
    bed.wait_for_access_log(&[
        r#""code":503"#.into(),
        format!(r#""endpoint":"{}""#, addresses[0]),
    ])
    .await
}

#[tokio::test]
async fn logs_endpoint_of_disconnected_client() -> Result<()> {
    let (backends, bed) = backends([Mode::Freeze]).await?;
    let mut client = tls(bed.bastion.secure, &bed.ca(), None).await?;
    client
        .write_all(
            format!("GET {WEB} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n").as_bytes(),
        )
        .await?;
    eventually("the request to arrive", async || {
        Ok(backends[0].requests() == 1)
    })
    .await?;
    drop(client);
    bed.wait_for_access_log(&[
        r#""code":499"#.into(),
        format!(r#""endpoint":"{}""#, backends[0].address),
    ])
    .await
}
