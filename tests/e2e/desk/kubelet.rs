//! The kubelet of the tests. kubectl uses it through the API server, without the bastion, which
//! shows that the other scenarios have a real counterpart.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Fixture, SHOP};
use crate::support::eventually;
use crate::support::program::Program;
use crate::support::streaming_kubelet::StreamingKubelet;

pub async fn kubectl_reaches_containers_through_the_kubelet(fixture: &mut Fixture) -> Result<()> {
    let kubelet =
        StreamingKubelet::start(&fixture.cluster, &fixture.namespace, "node-1", 2).await?;
    let kubeconfig = fixture.cluster.admin_kubeconfig();
    reach_containers(fixture, &kubelet, &|| kubectl(fixture, &kubeconfig)).await?;
    // The API server translates WebSockets: a kubelet without the feature gets SPDY.
    for path in ["POST /exec/", "POST /attach/", "POST /portForward/"] {
        eventually(path, async || Ok(kubelet.count(path) > 0))
            .await
            .with_context(|| format!("{:?}", kubelet.output()))?;
    }
    Ok(())
}

/// Returns kubectl with a kubeconfig, in the namespace of the pods.
pub fn kubectl(fixture: &Fixture, kubeconfig: &Path) -> Command {
    let mut command = Command::new(&fixture.cluster.kubectl);
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--namespace", SHOP]);
    command
}

/// Uses a container of `web-1` with all commands of kubectl that need its kubelet.
pub async fn reach_containers(
    fixture: &Fixture,
    kubelet: &StreamingKubelet,
    kubectl: &impl Fn() -> Command,
) -> Result<()> {
    kubelet.set_address(SHOP, "web-1", fixture.namespace.address(11))?;
    exec(kubectl)?;
    copy(fixture, kubelet, kubectl)?;
    attach(kubectl).await?;
    logs(kubelet, kubectl).await?;
    port_forward(kubectl).await
}

fn exec(kubectl: &impl Fn() -> Command) -> Result<()> {
    let script = "cat; echo failed >&2; exit 3";
    let input = tempfile::tempfile()?;
    std::io::Write::write_all(&mut &input, b"typed")?;
    std::io::Seek::rewind(&mut &input)?;
    let output = kubectl()
        .args(["exec", "-i", "web-1", "--", "sh", "-c", script])
        .stdin(Stdio::from(input))
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(output.stdout == b"typed", "{output:?}");
    ensure!(error.starts_with("failed\n"), "{output:?}");
    Ok(())
}

fn copy(
    fixture: &Fixture,
    kubelet: &StreamingKubelet,
    kubectl: &impl Fn() -> Command,
) -> Result<()> {
    let folder = fixture.cluster.folder.path();
    let (sent, received) = (folder.join("sent.bin"), folder.join("received.bin"));
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    std::fs::write(&sent, &content)?;
    let run = |from: &Path, to: &Path| -> Result<()> {
        let output = kubectl().arg("cp").arg(from).arg(to).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    };
    run(&sent, Path::new("web-1:copy.bin"))?;
    let copy = kubelet.files(SHOP, "web-1")?.join("copy.bin");
    ensure!(std::fs::read(copy)? == content, "the copy differs");
    run(Path::new("web-1:copy.bin"), &received)?;
    ensure!(std::fs::read(received)? == content, "the copy back differs");
    Ok(())
}

async fn attach(kubectl: &impl Fn() -> Command) -> Result<()> {
    let mut program = Program::start(kubectl().args(["attach", "-i", "web-1"]))?;
    program.write(b"attached\n")?;
    program.wait_for_line("attached").await?;
    program.finish().await
}

async fn logs(kubelet: &StreamingKubelet, kubectl: &impl Fn() -> Command) -> Result<()> {
    kubelet.append_log(SHOP, "web-1", "c", "one\ntwo\n")?;
    let output = kubectl().args(["logs", "--tail=1", "web-1"]).output()?;
    ensure!(output.stdout == b"two\n", "{output:?}");
    let mut program = Program::start(kubectl().args(["logs", "-f", "web-1"]))?;
    program.wait_for_line("two").await?;
    kubelet.append_log(SHOP, "web-1", "c", "three\n")?;
    program.wait_for_line("three").await?;
    Ok(())
}

async fn port_forward(kubectl: &impl Fn() -> Command) -> Result<()> {
    const PREFIX: &str = "Forwarding from ";
    let mut command = kubectl();
    command.args(["port-forward", "--address=127.0.0.1", "web-1", ":8080"]);
    let mut program = Program::start(&mut command)?;
    let line = program.wait_for_line(PREFIX).await?;
    let address = line
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split(' ').next())
        .with_context(|| format!("{line:?} has no address"))?;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"GET /name HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            .await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        ensure!(response.ends_with("\r\n\r\nweb-1"), "{response:?}");
    }
    Ok(())
}
