//! Retries and ejection: a bastion with the manifests source before backends that break, refuse or
//! fall silent on command.

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use support::bastion::Bastion;
use support::client::{Answer, Client, tls};
use support::eventually;
use support::pki::Ca;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a backend does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Answer,
    /// Closes the connection instead.
    Close,
    /// Waits until it is to do something else.
    Freeze,
}

/// A server of plain HTTP/1.1 without bodies.
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
            // A ClientHello, for instance.
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

/// A bastion of one worker with the service `web` over some endpoints.
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
        // The access log goes to a file.
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

    async fn get(&self, path: &str) -> Result<Answer> {
        self.client().await?.get(path).await
    }

    /// A request on its way.
    fn spawn_get(&self, path: String) -> JoinHandle<Result<Answer>> {
        let (address, ca) = (self.bastion.secure, self.ca());
        tokio::spawn(async move {
            Client::connect(address, &ca, Some("t"), None)
                .await?
                .get(&path)
                .await
        })
    }

    /// The value of a metric, 0 where there is none.
    async fn metric(&self, name: &str) -> Result<u64> {
        let metrics = self.bastion.metrics().await?;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kube_bastion_")?.strip_prefix(name));
        value.map_or(Ok(0), |value| Ok(value.trim().parse()?))
    }

    /// Waits until the access log has a line with all these words.
    async fn logs(&self, words: &[String]) -> Result<()> {
        eventually(&format!("a line with {words:?}"), async || {
            let log = std::fs::read_to_string(Path::new(self.folder.path()).join("access"))?;
            Ok(log
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word))))
        })
        .await
    }
}

fn manifests(endpoints: &[SocketAddr]) -> String {
    let slices = endpoints.iter().enumerate().map(|(n, endpoint)| {
        let port = endpoint.port();
        format!(
            "---
kind: Pod
metadata: {{name: web-{n}}}
spec: {{containers: [{{ports: [{{containerPort: {port}}}]}}]}}
status: {{podIPs: [{{ip: 127.0.0.1}}]}}
---
kind: EndpointSlice
metadata: {{name: web-{n}, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: '', port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], targetRef: {{kind: Pod, namespace: default, name: web-{n}}}}}]
"
        )
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

/// Ports that the system has given to this process and on which nothing listens.
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
async fn a_safe_request_outlives_two_endpoints_that_break() -> Result<()> {
    let (backends, bed) = backends([Mode::Close, Mode::Close, Mode::Answer]).await?;
    // Each of the three begins at another endpoint: one meets both broken ones.
    for _ in 0..3 {
        let answer = bed.get(WEB).await?;
        ensure!(answer.status == 200, "{answer:?}");
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
async fn a_stale_connection_and_two_breaks_fail_no_request() -> Result<()> {
    let (backends, bed) = backends([Mode::Answer, Mode::Answer, Mode::Answer]).await?;
    for _ in 0..3 {
        ensure!(bed.get(WEB).await?.status == 200);
    }
    // Three connections are idle now. Whichever of the two is tried first breaks its idle one, and
    // the new one too.
    backends[0].mode.send(Mode::Close)?;
    backends[1].mode.send(Mode::Close)?;
    for _ in 0..3 {
        let answer = bed.get(WEB).await?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn dials_per_request_are_bounded() -> Result<()> {
    let (_sockets, addresses) = dead_ports(20)?;
    let bed = TestBed::new(&addresses).await?;
    let answer = bed.get(WEB).await?;
    ensure!(
        answer.status == 503
            && answer
                .body
                .contains("error trying to reach service: dial tcp "),
        "{answer:?}"
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
async fn one_callers_scheme_steers_no_other_caller() -> Result<()> {
    let (backends, bed) = backends([Mode::Answer; 3]).await?;
    for _ in 0..3 {
        let answer = bed
            .get("/api/v1/namespaces/default/services/https:web:80/proxy/")
            .await?;
        ensure!(
            answer.status == 503 && answer.body.contains("tls: "),
            "{answer:?}"
        );
    }
    // After an ejection an endpoint would be probed by one request, and then take its turns again.
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
async fn a_single_target_that_refuses_is_not_ejected() -> Result<()> {
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
async fn a_frozen_endpoint_gets_no_new_requests_until_it_answers() -> Result<()> {
    let (backends, bed) = backends([Mode::Freeze, Mode::Answer, Mode::Answer]).await?;
    let mut stuck = Vec::new();
    while backends[0].requests() == 0 {
        let asked = backends.iter().map(Backend::requests).sum::<usize>();
        stuck.push(bed.spawn_get(WEB.to_owned()));
        eventually("the request to arrive", async || {
            Ok(backends.iter().map(Backend::requests).sum::<usize>() > asked)
        })
        .await?;
    }
    let ejected = async || bed.metric(r#"endpoints_ejected{reason="stalled"}"#).await;
    eventually("the frozen endpoint to be ejected", async || {
        Ok(ejected().await? == 1)
    })
    .await?;
    for _ in 0..20 {
        ensure!(bed.get(WEB).await?.status == 200);
    }
    // One more where the machine was too busy to look for stalls in time, so that the ejection
    // lapsed and was probed.
    let reached = backends[0].requests();
    ensure!(reached <= 2, "{reached} requests reached it");
    backends[0].mode.send(Mode::Answer)?;
    for stuck in stuck {
        ensure!(
            stuck.await??.status == 200,
            "the request that was on it is answered"
        );
    }
    ensure!(ejected().await? == 0);
    for _ in 0..3 {
        ensure!(bed.get(WEB).await?.status == 200);
    }
    ensure!(
        backends[0].requests() == reached + 1,
        "it takes its turns again"
    );
    Ok(())
}

#[tokio::test]
async fn a_slow_pod_that_one_caller_chose_steers_no_service() -> Result<()> {
    let (mut backends, bed) = backends([Mode::Freeze; 3]).await?;
    // The order in which the service takes its first turns.
    backends.sort_unstable_by_key(|backend| backend.address);
    let [first, _, last] = &backends[..] else {
        unreachable!("three were started")
    };
    let pods = (0..3).map(|n| {
        format!(
            "/api/v1/namespaces/default/pods/web-{n}:{}/proxy/",
            last.address.port()
        )
    });
    let chosen = pods.map(|path| bed.spawn_get(path)).collect::<Vec<_>>();
    eventually("the requests to arrive", async || Ok(last.requests() == 3)).await?;
    let on_first = bed.spawn_get(WEB.to_owned());
    // The requests to the pod began earlier: if they counted, the last endpoint would be ejected
    // before the first.
    let ejections = async || bed.metric(r#"ejections_total{reason="stalled"}"#).await;
    eventually("the first endpoint to be ejected", async || {
        Ok(ejections().await? == 1)
    })
    .await?;
    let others = [bed.spawn_get(WEB.to_owned()), bed.spawn_get(WEB.to_owned())];
    eventually("the last endpoint to have its turn", async || {
        Ok(last.requests() == 4)
    })
    .await?;
    ensure!(
        first.requests() == 1,
        "{} requests reached the ejected endpoint",
        first.requests()
    );
    for backend in &backends {
        backend.mode.send(Mode::Answer)?;
    }
    for request in chosen.into_iter().chain(others).chain([on_first]) {
        ensure!(request.await??.status == 200);
    }
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_waits_for_the_clients_body_is_not_stalled() -> Result<()> {
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
    // The upload began earlier: if it counted, its endpoint would be ejected before the second one.
    let stuck = bed.spawn_get(WEB.to_owned());
    let ejections = async || bed.metric(r#"ejections_total{reason="stalled"}"#).await;
    eventually("the second endpoint to be ejected", async || {
        Ok(ejections().await? == 1)
    })
    .await?;
    let next = bed.spawn_get(WEB.to_owned());
    eventually("the first endpoint to have its turn", async || {
        Ok(backends[0].requests() == 2)
    })
    .await?;
    ensure!(backends[1].requests() == 1);
    stuck.abort();
    next.abort();
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_logged() -> Result<()> {
    let (_sockets, addresses) = dead_ports(1)?;
    let bed = TestBed::new(&addresses).await?;
    ensure!(bed.get(WEB).await?.status == 503);
    bed.logs(&[
        r#""code":503"#.into(),
        format!(r#""endpoint":"{}""#, addresses[0]),
    ])
    .await
}

#[tokio::test]
async fn the_endpoint_of_a_client_that_leaves_is_logged() -> Result<()> {
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
    bed.logs(&[
        r#""code":499"#.into(),
        format!(r#""endpoint":"{}""#, backends[0].address),
    ])
    .await
}
