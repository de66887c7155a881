//! The status lines of `kube-bastion forward` on a terminal.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use nix::pty::openpty;
use tokio::net::TcpStream;

use crate::forward_api_server::objects;
use crate::forward_bastion::Bastion;
use crate::forward_program::{command, echo};
use crate::support::eventually;

/// Running command with a terminal as its standard error. Dropping it kills the process.
struct OnTerminal {
    child: Child,
    port: u16,
    /// Text that the terminal has received, with its control sequences.
    text: Arc<Mutex<String>>,
}

impl OnTerminal {
    /// Starts the command with one free port, and waits for it.
    fn start(bastion: &Bastion, arguments: &[&str]) -> Result<Self> {
        const PREFIX: &str = "Forwarding from 127.0.0.1:";
        let pty = openpty(None, None)?;
        let mut child = command(&bastion.kubeconfig, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(pty.slave))
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let mut lines = lines.map_while(Result::ok);
        let line = lines.find(|line| line.starts_with(PREFIX));
        let port = line.context("a line about the port")?;
        let port = port[PREFIX.len()..].split(' ').next();
        let port = port.context("the port")?.parse()?;
        let text = Arc::<Mutex<String>>::default();
        let (mut terminal, received) = (File::from(pty.master), Arc::clone(&text));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Fails once the process has ended.
            while let Ok(length @ 1..) = terminal.read(&mut buffer) {
                let read = String::from_utf8_lossy(&buffer[..length]);
                received.lock().expect("no panic").push_str(&read);
            }
        });
        Ok(Self { child, port, text })
    }

    fn text(&self) -> String {
        self.text.lock().expect("no panic").clone()
    }

    /// Waits for a text, and removes what the terminal has received until its end.
    async fn wait_for(&self, text: &str) -> Result<()> {
        let waited = eventually(text, async || {
            let mut received = self.text.lock().expect("no panic");
            let found = received.find(text);
            if let Some(at) = found {
                received.drain(..at + text.len());
            }
            Ok(found.is_some())
        });
        waited.await.with_context(|| format!("{:?}", self.text()))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_shows_connections_and_bytes_of_each_port() -> Result<()> {
    let bastion = Bastion::start(objects()).await?;
    let terminal = OnTerminal::start(&bastion, &["svc/web", ":80"])?;
    let port = terminal.port;
    let name = format!("service/web {port} -> 80");
    terminal
        .wait_for(&format!(
            "{name}: 0 open, 0 in total, 0 B sent, 0 B received\r\n"
        ))
        .await?;
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    echo(&mut stream, "hello").await?;
    // Over the line before.
    terminal.wait_for("\x1b[1F\x1b[J").await?;
    terminal
        .wait_for(&format!(
            "{name}: 1 open, 1 in total, 5 B sent, 5 B received\r\n"
        ))
        .await?;
    drop(stream);
    terminal
        .wait_for(&format!(
            "{name}: 0 open, 1 in total, 5 B sent, 5 B received\r\n"
        ))
        .await?;
    ensure!(bastion.connections() == 1);
    Ok(())
}
