//! `kube-bastion forward` through a plain API server: connections to pods by port-forward.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::forward_api_server::{ApiServer, objects, pod, slices};
use crate::forward_program::{Forward, command, echo, expect_reset, fail, kubeconfig, read_to_end};
use crate::support::eventually;
use crate::support::program::Program;

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

struct Bed {
    server: ApiServer,
    kubeconfig: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

async fn bed() -> Result<Bed> {
    let folder = tempfile::tempdir()?;
    let server = ApiServer::start(objects()).await?;
    let url = format!("http://{}", server.address);
    let kubeconfig = kubeconfig(folder.path(), &url, "")?;
    Ok(Bed {
        server,
        kubeconfig,
        _folder: folder,
    })
}

impl Bed {
    async fn forward(&self, count: usize, arguments: &[&str]) -> Result<Forward> {
        Forward::start(&self.kubeconfig, count, arguments).await
    }
}

/// A user with the verb `create` alone (derailed/k9s issue 4144, kubernetes-client/csharp issue
/// 559).
#[tokio::test(flavor = "multi_thread")]
async fn connections_share_a_session_without_a_websocket() -> Result<()> {
    let bed = bed().await?;
    let forward = bed.forward(1, &["pod/web-0", ":echo"]).await?;
    let (mut first, mut second) = (forward.connect(0).await?, forward.connect(0).await?);
    echo(&mut first, "first").await?;
    echo(&mut second, "second").await?;
    first.write_all(b"last").await?;
    first.shutdown().await?;
    ensure!(read_to_end(&mut first).await? == "last");
    echo(&mut second, "still open").await?;
    ensure!(bed.server.sessions("web-0") == 1);
    ensure!(forward.count("-> 7") >= 1, "{:?}", forward.program.output());
    let line = format!("Handling connection for {}", forward.ports[0].port());
    forward.expect_count(&line, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_use_the_ready_pods_in_turn() -> Result<()> {
    let bed = bed().await?;
    for target in [
        "svc/web",
        "deploy/web",
        "sts/web",
        "rs/web",
        "ds/web",
        "job/web",
        "rc/old",
    ] {
        let port = if target == "svc/web" { ":83" } else { ":name" };
        let forward = bed.forward(1, &[target, port]).await?;
        let mut names = Vec::new();
        for _ in 0..4 {
            names.push(read_to_end(&mut forward.connect(0).await?).await?);
        }
        ensure!(
            names[0] != names[1] && names[..2] == names[2..],
            "{target}: {names:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn service_without_readable_slices_uses_the_pods_of_its_selector() -> Result<()> {
    let bed = bed().await?;
    bed.server.set(SLICES, json!({"items": []}));
    let forward = bed.forward(1, &["svc/web", ":83"]).await?;
    ensure!(
        read_to_end(&mut forward.connect(0).await?)
            .await?
            .starts_with("web-")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_that_ends_resets_its_own_connections_only() -> Result<()> {
    let bed = bed().await?;
    let forward = bed.forward(2, &["svc/web", ":80", ":83"]).await?;
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut stream = forward.connect(0).await?;
        echo(&mut stream, "open").await?;
        connections.push(stream);
    }
    bed.server.set(SLICES, slices(&["web-1"]));
    bed.server.end_sessions("web-0");
    // Of the two connections in turn, one was to that pod.
    let mut ended = None;
    eventually("a connection to end", async || {
        for (index, stream) in connections.iter_mut().enumerate() {
            if echo(stream, "x").await.is_err() {
                ended = Some(index);
            }
        }
        Ok(ended.is_some())
    })
    .await?;
    let mut other = connections.swap_remove(1 - ended.unwrap_or_default());
    echo(&mut other, "still open").await?;
    for _ in 0..4 {
        let name = read_to_end(&mut forward.connect(1).await?).await?;
        ensure!(name == "web-1", "{name}");
    }
    Ok(())
}

/// The session of a pod of a `StatefulSet` is opened again when the pod is back.
#[tokio::test(flavor = "multi_thread")]
async fn connection_waits_for_a_pod_that_is_replaced() -> Result<()> {
    let bed = bed().await?;
    let path = "/api/v1/namespaces/default/pods/web-0";
    let forward = bed.forward(1, &["web-0", ":name"]).await?;
    let mut pending = pod("web-0");
    pending["status"]["phase"] = "Pending".into();
    pending["status"]["conditions"] = json!([]);
    bed.server.set(path, pending);
    bed.server.end_sessions("web-0");
    let ended = async || {
        // The first connections may use the list of pods from before.
        let mut stream = forward.connect(0).await?;
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(3), async {
            read_to_end(&mut stream).await
        });
        Ok(waiting.await.is_err())
    };
    eventually("a connection that waits", ended).await?;
    let mut waiting = forward.connect(0).await?;
    bed.server.set(path, pod("web-0"));
    ensure!(read_to_end(&mut waiting).await? == "web-0");
    Ok(())
}

/// The node of a pod is gone, while the pod is still an endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn connections_share_the_failure_of_a_session() -> Result<()> {
    const CONNECTIONS: usize = 10;
    let bed = bed().await?;
    let forward = bed.forward(1, &["svc/web", ":name"]).await?;
    bed.server.set(SLICES, slices(&["unreachable-0", "web-1"]));
    let (mut streams, mut answers) = (Vec::new(), Vec::new());
    while bed.server.attempts("unreachable-0") == 0 {
        streams.push(forward.connect(0).await?);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for _ in 0..CONNECTIONS {
        streams.push(forward.connect(0).await?);
    }
    for stream in &mut streams[..] {
        answers.push(read_to_end(stream).await?);
    }
    ensure!(
        answers.iter().all(|answer| answer.starts_with("web-")),
        "{answers:?}"
    );
    let attempts = bed.server.attempts("unreachable-0");
    ensure!(attempts < CONNECTIONS / 2, "{attempts} attempts");
    Ok(())
}

/// kubernetes/kubernetes issue 8766.
#[tokio::test(flavor = "multi_thread")]
async fn client_sees_the_end_of_an_answer_immediately() -> Result<()> {
    let bed = bed().await?;
    let forward = bed.forward(1, &["svc/web", ":bye"]).await?;
    for _ in 0..20 {
        ensure!(read_to_end(&mut forward.connect(0).await?).await? == "bye");
    }
    Ok(())
}

/// A failed connection, then further ones (kubernetes/kubernetes issue 111825).
#[tokio::test(flavor = "multi_thread")]
async fn refused_port_ends_its_own_connection_with_one_message() -> Result<()> {
    let bed = bed().await?;
    let forward = bed.forward(2, &["pod/web-0", ":9", ":7"]).await?;
    let mut open = forward.connect(1).await?;
    echo(&mut open, "open").await?;
    for _ in 0..5 {
        forward.expect_refusal(0).await?;
    }
    echo(&mut open, "still open").await?;
    echo(&mut forward.connect(1).await?, "new").await?;
    let message =
        "pod/web-0: error forwarding port 9 to pod web-0: failed to connect to localhost:9";
    forward.expect_count(message, 1).await
}

/// kubernetes/kubernetes issue 78446.
#[tokio::test(flavor = "multi_thread")]
async fn canceled_connections_leave_room_for_others() -> Result<()> {
    let bed = bed().await?;
    let forward = bed.forward(1, &["svc/web", ":80"]).await?;
    let canceled = (0..300).map(async |number| -> Result<()> {
        let mut stream = forward.connect(0).await?;
        if number % 3 > 0 {
            stream.write_all(b"not read").await?;
        }
        if number % 2 == 0 {
            stream.set_zero_linger()?;
        }
        Ok(())
    });
    for result in futures::future::join_all(canceled).await {
        result?;
    }
    echo(&mut forward.connect(0).await?, "later").await?;
    eventually("the end of the canceled connections", async || {
        Ok(bed.server.connections() == 0)
    })
    .await
}

/// Each client has a descriptor; without a free one, new clients wait.
#[tokio::test(flavor = "multi_thread")]
async fn missing_descriptors_end_neither_the_command_nor_its_connections() -> Result<()> {
    let bed = bed().await?;
    let arguments = ["svc/web", ":80"];
    let mut forward = Forward::start_with_few_files(&bed.kubeconfig, &arguments).await?;
    let mut streams = forward.use_up_files().await?;
    echo(&mut streams[0], "still open").await?;
    let mut last = streams.pop().expect("there are 60");
    streams.clear();
    echo(&mut last, "served later").await
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_of_arguments_and_a_file_are_printed_as_json() -> Result<()> {
    let bed = bed().await?;
    let file = bed.kubeconfig.with_file_name("forwards.yaml");
    let text = "- {target: svc/web.stage, ports: [':83'], addresses: [127.0.0.1]}\n";
    std::fs::write(&file, text)?;
    let file = file.to_str().unwrap_or_default();
    let arguments = [
        "web-0",
        ":7",
        "svc/web",
        ":83",
        "-o",
        "json",
        "-f",
        file,
        "--address=127.0.0.1",
    ];
    let mut program = Program::start(&mut command(&bed.kubeconfig, &arguments))?;
    let line = program.wait_for_line("localPort").await?;
    let ports: Value = serde_json::from_str(&line)?;
    let forwards = ports["forwards"].as_array().cloned().unwrap_or_default();
    let summary: Vec<_> = forwards
        .iter()
        .map(|it| {
            (
                &it["target"],
                &it["namespace"],
                &it["address"],
                &it["remotePort"],
            )
        })
        .map(|(a, b, c, d)| format!("{a} {b} {c} {d}").replace('"', ""))
        .collect();
    ensure!(
        summary
            == [
                "pod/web-0 default 127.0.0.1 7",
                "service/web default 127.0.0.1 10",
                "service/web stage 127.0.0.1 10",
            ],
        "{summary:?}"
    );
    let port = forwards[2]["localPort"].as_u64().unwrap_or_default();
    let mut stream = TcpStream::connect(("127.0.0.1", u16::try_from(port)?)).await?;
    ensure!(read_to_end(&mut stream).await? == "stage-0");
    let output = program.output();
    let is_other = |other: &&String| **other != line && !other.starts_with("warning: http://");
    ensure!(!output.iter().any(|other| is_other(&other)), "{output:?}");
    Ok(())
}

/// A service listens on its own port (kubernetes/kubectl issues 752 and 947).
#[tokio::test(flavor = "multi_thread")]
async fn named_port_of_a_service_is_its_local_port() -> Result<()> {
    let bed = bed().await?;
    let free = TcpListener::bind("127.0.0.1:0").await?;
    let port = free.local_addr()?.port();
    drop(free);
    let ports = json!([{"name": "web", "port": port, "targetPort": 10}]);
    let service = json!({"spec": {"selector": {"app": "web"}, "ports": ports}});
    bed.server
        .set("/api/v1/namespaces/default/services/prom", service);
    bed.server.set(SLICES, json!({"items": []}));
    let forward = bed
        .forward(1, &["svc/prom", "web", "--address", "127.0.0.1"])
        .await?;
    ensure!(forward.ports[0].port() == port);
    ensure!(forward.count(&format!("Forwarding from 127.0.0.1:{port} -> 10")) == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn target_that_fails_is_skipped_with_keep_going() -> Result<()> {
    let bed = bed().await?;
    let arguments = ["svc/nothing", ":80", "svc/web", ":83", "--keep-going"];
    let forward = bed.forward(1, &arguments).await?;
    ensure!(
        read_to_end(&mut forward.connect(0).await?)
            .await?
            .starts_with("web-")
    );
    let message = "kube-bastion: service \"nothing\" not found";
    forward.expect_count(message, 1).await?;
    let arguments = ["svc/nothing", ":80", "--keep-going"];
    let output = command(&bed.kubeconfig, &arguments).output()?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(1) && error.ends_with("no target can be forwarded\n"),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_before_the_start_are_one_line_with_the_remedy() -> Result<()> {
    let bed = bed().await?;
    let taken = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let _taken = std::net::TcpListener::bind(taken)?;
    let taken = format!("{}:83", taken.port());
    let forbidden = "/api/v1/namespaces/default/pods/forbidden-0";
    bed.server.set(forbidden, pod("forbidden-0"));
    let mut pending = pod("pending-0");
    pending["status"] = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"},
    ]});
    bed.server
        .set("/api/v1/namespaces/default/pods/pending-0", pending);
    for (arguments, expected) in [
        (
            &["svc/webb", "80"][..],
            r#"service "webb" not found in namespace "default"; did you mean "web"?"#,
        ),
        (
            &["svc/web"],
            "service/web has no port; append [LOCAL:]REMOTE",
        ),
        (
            &["svc/web", "99"],
            r#"service/web has no port "99"; its ports: 80 (echo), 81 (bye)"#,
        ),
        (
            &["svc/web", "dns"],
            "port dns of service/web is of protocol UDP",
        ),
        (
            &["svc/web", "53/udp"],
            "port 53 of service/web is of protocol UDP",
        ),
        (
            &["svc/web", &taken, "--address=127.0.0.1"],
            "is in use on 127.0.0.1; choose another, as in LOCAL:83",
        ),
        (
            &["svc/web", ":83", "--address=example.com"],
            r#""example.com" is not an address to listen on"#,
        ),
        (
            &["svc/web", ":83", "--via=bastion"],
            "is not a bastion; omit --via=bastion",
        ),
        (
            &["forbidden-0", ":7"],
            r#"User "jane" cannot create resource "pods/portforward""#,
        ),
        (
            &["pending-0", ":7", "--pod-running-timeout=1s"],
            "cannot forward to pod/pending-0: no pod is ready: pending-0 (not scheduled: 0/3 nodes",
        ),
        (
            &["svc/web", ":unnamed", "--pod-running-timeout=1h"],
            "has a port named nosuch",
        ),
        (&["-f", "/nonexistent"], "cannot read \"/nonexistent\""),
    ] {
        let error = fail(&bed.kubeconfig, arguments)?;
        ensure!(error.contains(expected), "{arguments:?}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn signal_ends_the_command_and_resets_its_connections() -> Result<()> {
    let bed = bed().await?;
    let mut forward = bed.forward(1, &["web-0", ":7"]).await?;
    let mut stream = forward.connect(0).await?;
    echo(&mut stream, "open").await?;
    forward.program.signal(nix::sys::signal::Signal::SIGINT)?;
    forward.program.finish().await?;
    expect_reset(&mut stream).await
}
