//! gRPC with its own Go library on both ends: cleartext HTTP/2 by `appProtocol: kubernetes.io/h2c`,
//! and TLS by ALPN (CONFORMANCE C53, C103).

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpStream;

use super::go::program;
use crate::fixture::{Fixture, bastion, path};
use crate::support::eventually;
use crate::support::program::{Program, command_in_namespace};

/// The last byte of the addresses of the two pods.
const PODS: [u8; 2] = [38, 39];
const CLEARTEXT: u16 = 50051;
const TLS: u16 = 50052;

pub async fn grpc_calls_and_streams_work(fixture: &mut Fixture) -> Result<()> {
    let servers = Servers::start(fixture, "grpc", "0s").await?;
    let bastion = fixture.bastion.secure.to_string();
    // The apiserver supports it only over TLS with https in the id.
    let apiserver = fixture
        .cluster
        .server
        .trim_start_matches("https://")
        .to_owned();
    for (who, server, target) in [
        ("the apiserver", &apiserver, "https:grpc-tls:443"),
        ("the bastion", &bastion, "https:grpc-tls:443"),
        ("the bastion", &bastion, "grpc-tls"),
        ("the bastion", &bastion, "grpc-cleartext"),
        ("the bastion", &bastion, "grpc-cleartext:80"),
    ] {
        let prefix = path(&format!("services/{target}/proxy"));
        let mut client =
            Program::start(call(fixture, server, &prefix)?.args(["interop", "large"]))?;
        client
            .finish()
            .await
            .with_context(|| format!("through {who}, {target}"))?;
    }
    servers.have_seen_no_credential()
}

pub async fn grpc_errors_are_grpc_statuses(fixture: &mut Fixture) -> Result<()> {
    let server = fixture.bastion.secure.to_string();
    for (prefix, expected) in [
        (
            "/api/v1/namespaces/default/services/web/proxy".to_owned(),
            "forbidden",
        ),
        (path("services/empty/proxy"), "gone"),
    ] {
        Program::start(call(fixture, &server, &prefix)?.arg(expected))?
            .finish()
            .await?;
    }
    Ok(())
}

pub async fn grpc_cancellations_reach_the_server(fixture: &mut Fixture) -> Result<()> {
    let servers = Servers::start(fixture, "cancelled", "0s").await?;
    let server = fixture.bastion.secure.to_string();
    let mut canceled_calls = 0;
    for kind in ["tls", "cleartext"] {
        let prefix = path(&format!("services/cancelled-{kind}/proxy"));
        for how in ["cancel", "deadline"] {
            Program::start(call(fixture, &server, &prefix)?.arg(how))?
                .finish()
                .await?;
            canceled_calls += 1;
            servers
                .hear_of_cancellations(canceled_calls)
                .await
                .with_context(|| format!("{how} over {kind}"))?;
        }
        let mut client = Program::start(call(fixture, &server, &prefix)?.arg("paced"))?;
        client.wait_for_line("said 1").await?;
        // Kills the client.
        drop(client);
        canceled_calls += 1;
        servers
            .hear_of_cancellations(canceled_calls)
            .await
            .with_context(|| format!("a dead client over {kind}"))?;
    }
    Ok(())
}

pub async fn grpc_goaway_fails_no_call(fixture: &mut Fixture) -> Result<()> {
    // Age at which servers end each connection with GOAWAY.
    const AGE: &str = "200ms";
    let mut servers = Servers::start(fixture, "updated", AGE).await?;
    let server = fixture.bastion.secure.to_string();
    for (kind, port) in [("tls", TLS), ("cleartext", CLEARTEXT)] {
        let prefix = path(&format!("services/updated-{kind}/proxy"));
        let mut calls = Program::start(call(fixture, &server, &prefix)?.arg("calls"))?;
        for pod in PODS {
            servers.of(pod, port)?.wait_for_line("called").await?;
        }
        // A rolling update: each server finishes its calls, exits, and is replaced after a while.
        for pod in PODS {
            let old = servers.of(pod, port)?;
            old.signal(Signal::SIGTERM)?;
            old.finish().await?;
            reach(&mut calls, 500).await?;
            *servers.of(pod, port)? = serve(fixture, pod, port, AGE).await?;
            servers.of(pod, port)?.wait_for_line("called").await?;
        }
        reach(&mut calls, 1_000).await?;
        calls
            .finish()
            .await
            .with_context(|| format!("calls over {kind}"))?;
        println!(
            "     {kind}, two servers replaced: {}",
            calls.wait_for_line("calls,").await?
        );
    }
    servers.have_seen_no_credential()
}

pub async fn grpc_streams_continue_during_a_drain(fixture: &mut Fixture) -> Result<()> {
    let _servers = Servers::start(fixture, "drained", "0s").await?;
    let kubeconfig = fixture
        .cluster
        .bastion_kubeconfig("drained", &fixture.cluster.server)
        .await?;
    let mut draining = bastion(&kubeconfig, &fixture.serving, &["--drain-timeout=20s"])?;
    draining.ready().await?;
    let server = draining.secure.to_string();
    let mut clients = Vec::new();
    for kind in ["tls", "cleartext"] {
        let prefix = path(&format!("services/drained-{kind}/proxy"));
        let mut client = Program::start(call(fixture, &server, &prefix)?.arg("paced"))?;
        client.wait_for_line("said 1").await?;
        clients.push(client);
    }
    draining.signal(Signal::SIGTERM)?;
    eventually("the port to close", async || {
        Ok(TcpStream::connect(draining.secure).await.is_err())
    })
    .await?;
    // After the GOAWAY the streams continue.
    for client in &mut clients {
        for text in ["said 2", "said 3"] {
            client.write(b"\n")?;
            client.wait_for_line(text).await?;
        }
        client.finish().await?;
    }
    // The drain ends with the last stream.
    let ended = tokio::task::spawn_blocking(move || draining.wait()).await??;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

/// Two pods, each with a cleartext and a TLS server, and a service for each kind.
struct Servers(Vec<((u8, u16), Program)>);

impl Servers {
    async fn start(fixture: &Fixture, name: &str, age: &str) -> Result<Self> {
        let mut servers = Vec::new();
        for pod in PODS {
            for port in [CLEARTEXT, TLS] {
                servers.push(((pod, port), serve(fixture, pod, port, age).await?));
            }
            let address = fixture.namespace.address(pod);
            fixture
                .objects
                .pod(
                    &format!("{name}-{pod}"),
                    json!({"app": name}),
                    address,
                    json!([]),
                )
                .await?;
        }
        for (kind, port, target, protocol) in [
            ("cleartext", 80, CLEARTEXT, "kubernetes.io/h2c"),
            ("tls", 443, TLS, "https"),
        ] {
            let ports = json!([{"port": port, "targetPort": target, "appProtocol": protocol}]);
            let spec = json!({"selector": {"app": name}, "ports": ports});
            fixture
                .objects
                .service(&format!("{name}-{kind}"), spec)
                .await?;
            fixture
                .wait_until_known(&format!("services/{name}-{kind}:{port}"))
                .await?;
        }
        Ok(Self(servers))
    }

    fn of(&mut self, pod: u8, port: u16) -> Result<&mut Program> {
        let server = self.0.iter_mut().find(|(place, _)| *place == (pod, port));
        Ok(&mut server.context("each pod has both servers")?.1)
    }

    fn output(&self) -> Vec<String> {
        self.0
            .iter()
            .flat_map(|(_, server)| server.output())
            .collect()
    }

    async fn hear_of_cancellations(&self, count: usize) -> Result<()> {
        let canceled_calls = || {
            self.output()
                .iter()
                .filter(|line| line.starts_with("cancelled"))
                .count()
        };
        eventually(
            &format!("the servers to hear of {count} cancellations"),
            async || Ok(canceled_calls() >= count),
        )
        .await?;
        ensure!(canceled_calls() == count, "{:?}", self.output());
        Ok(())
    }

    fn have_seen_no_credential(&self) -> Result<()> {
        let leaked = self
            .output()
            .into_iter()
            .find(|line| line.starts_with("leaked"));
        ensure!(leaked.is_none(), "{leaked:?}");
        Ok(())
    }
}

async fn serve(fixture: &Fixture, pod: u8, port: u16, age: &str) -> Result<Program> {
    let mut command = command_in_namespace(&fixture.namespace, &program("grpcserver")?);
    command
        .arg("-listen")
        .arg(format!("{}:{port}", fixture.namespace.address(pod)));
    command.arg("-connection-age").arg(age);
    if port == TLS {
        command
            .arg("-cert")
            .arg(&fixture.serving.certificate)
            .arg("-key")
            .arg(&fixture.serving.key);
    }
    let mut server = Program::start(&mut command)?;
    server.wait_for_line("serving").await?;
    Ok(server)
}

/// Returns the command of the client, with the token of the caller.
fn call(fixture: &Fixture, server: &str, prefix: &str) -> Result<Command> {
    let token = fixture.cluster.folder.path().join("caller-token");
    std::fs::write(&token, &fixture.token)?;
    let mut command = Command::new(program("grpcclient")?);
    command
        .args(["-address", server, "-prefix", prefix, "-ca"])
        .arg(&fixture.cluster.ca.file);
    command.arg("-token-file").arg(token);
    Ok(command)
}

/// Waits for a number of further calls.
async fn reach(calls: &mut Program, more: u64) -> Result<()> {
    let made = |calls: &Program| {
        let output = calls.output();
        let counts = output
            .iter()
            .filter_map(|line| line.strip_prefix("made ")?.parse::<u64>().ok());
        counts.max().unwrap_or_default()
    };
    let goal = made(calls) + more;
    eventually(&format!("{goal} calls"), async || Ok(made(calls) >= goal)).await?;
    Ok(())
}
