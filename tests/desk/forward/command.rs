//! `kube-bastion forward … -- COMMAND`.

use std::io::Write;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::forward_api_server::{ApiServer, objects};
use crate::forward_bastion::Bastion;
use crate::forward_program::{command, kubeconfig};
use crate::support::program::Program;

struct Bed {
    _server: ApiServer,
    kubeconfig: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

async fn bed() -> Result<Bed> {
    let folder = tempfile::tempdir()?;
    let server = ApiServer::start(objects()).await?;
    let url = format!("http://{}", server.address);
    let kubeconfig = kubeconfig(folder.path(), &url, "")?;
    Ok(Bed {
        _server: server,
        kubeconfig,
        _folder: folder,
    })
}

fn run(bed: &Bed, script: &str, input: &str) -> Result<Output> {
    let arguments = ["svc/web", ":83", ":80", "--", "bash", "-c", script];
    let mut child = command(&bed.kubeconfig, &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    // A command that does not read has closed it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// `forward svc/db 5432 -- psql …` (kubernetes/kubernetes issue 97549).
#[tokio::test(flavor = "multi_thread")]
async fn exit_status_is_that_of_the_command_or_its_signal() -> Result<()> {
    let bed = bed().await?;
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)] {
        let output = run(&bed, script, "")?;
        ensure!(
            output.status.code() == Some(expected),
            "{script}: {output:?}"
        );
    }
    for (program, expected) in [("/nonexistent/program", 127), ("/", 126)] {
        let output = command(&bed.kubeconfig, &["svc/web", ":83", "--", program]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(expected)
                && error.contains(&format!("cannot run \"{program}\"")),
            "{output:?}"
        );
    }
    Ok(())
}

/// The bastion selects the endpoint, so only a tunnel shows that there is one.
#[tokio::test(flavor = "multi_thread")]
async fn command_runs_once_the_bastion_has_an_endpoint() -> Result<()> {
    let script = "exec 3<>/dev/tcp/127.0.0.1/$FORWARD_PORT_1; echo hello >&3; head -n 1 <&3";
    for (arguments, expected) in [
        (&["svc/starting", ":80"][..], "hello"),
        // It exists; the command finds out that it refuses connections.
        (&["svc/closed", ":80"], "connection refused"),
        (
            &["svc/starting", ":80", "--pod-running-timeout=1ms"],
            "no endpoints available",
        ),
        (&["svc/missing", ":80"], "did you mean web?"),
        (&["svc/forbidden", ":80"], "may not create"),
    ] {
        let bastion = Bastion::start([]).await?;
        let arguments = [arguments, &["--", "bash", "-c", script]].concat();
        let output = command(&bastion.kubeconfig, &arguments).output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let runs = text.contains("Forwarding from");
        ensure!(text.contains(expected), "{arguments:?}: {text}");
        ensure!(
            runs == matches!(expected, "hello" | "connection refused"),
            "{arguments:?}: {text}"
        );
        ensure!(
            runs || output.status.code() == Some(1),
            "{arguments:?}: {}",
            output.status
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn command_has_the_standard_streams_and_the_ports() -> Result<()> {
    let bed = bed().await?;
    let script = "cat; cat < /dev/tcp/127.0.0.1/$FORWARD_PORT_1; echo failed >&2; \
                  test -n \"$FORWARD_PORT_2\" -a -z \"$FORWARD_PORT_3\"";
    let output = run(&bed, script, "typed ")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{output:?}");
    ensure!(text == "typed web-0" || text == "typed web-1", "{output:?}");
    // The lines of kubectl are not among the output of the command.
    ensure!(
        error.contains("Forwarding from 127.0.0.1:") && error.contains("failed\n"),
        "{error}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn command_gets_the_signals_of_the_process() -> Result<()> {
    let bed = bed().await?;
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
    ] {
        let script = format!(
            "trap 'echo got {name}; exit 5' {name}; echo ready; while :; do read -t 1 _; done"
        );
        let arguments = ["svc/web", ":83", "--", "bash", "-c", &script];
        let mut program = Program::start(&mut command(&bed.kubeconfig, &arguments))?;
        program.wait_for_line("ready").await?;
        program.signal(signal)?;
        program.wait_for_line(&format!("got {name}")).await?;
        let status = program.finish().await.err().context("the exit status 5")?;
        ensure!(
            format!("{status:#}").contains("the last output"),
            "{status:#}"
        );
    }
    Ok(())
}
