//! DNS rebinding: a name server that returns a valid address first and loopback later
//! (CVE-2020-8562).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::super::observe::Observation;
use super::super::send::Side;
use super::super::setting::Setting;
use super::{get, send_row};
use crate::support::bastion::Bastion;
use crate::support::cluster::START_TIMEOUT;
use crate::support::within;

/// Address of the name server: a loopback address that nothing else uses.
const SERVER: ([u8; 4], u16) = ([127, 0, 0, 153], 53);
/// First address that it returns.
const CHECKED_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 254, 240, 45);
const BAD: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Port that is served on both addresses.
pub const PORT: u16 = 19153;

pub async fn rebinding(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let names = Names::start().await?;
    let folder = setting.fixture.cluster.folder.path();
    let resolver = folder.join("resolv.conf");
    std::fs::write(
        &resolver,
        format!(
            "nameserver {}\noptions attempts:1 timeout:2\n",
            Ipv4Addr::from(SERVER.0)
        ),
    )?;
    // A separate server that uses only this name server.
    let (address, _running) = if side.name == "bastion" {
        let command = setting.bastion_command(wrapped(
            &resolver,
            env!("CARGO_BIN_EXE_kube-bastion").as_ref(),
        ));
        let bastion = Bastion::run(command)?;
        bastion.ready().await?;
        (bastion.secure, Running::Bastion(Box::new(bastion)))
    } else {
        let (address, process) = setting
            .fixture
            .cluster
            .another_apiserver(|binary| wrapped(&resolver, binary))
            .await?;
        (address, Running::Apiserver(process))
    };
    let side = Side {
        address,
        ..side.clone()
    };
    within(START_TIMEOUT, "the server of its own", async || {
        let known = send_row(setting, &side, &get("pods/p/proxy/x"))
            .await
            .unwrap_or_default();
        Ok(known.get("status").is_some_and(|status| status == "200"))
    })
    .await?;
    names.begin();
    let mut found = send_row(
        setting,
        &side,
        &get(&format!("nodes/rebinding:{PORT}/proxy/x")),
    )
    .await?;
    names.end().await;
    let dialled = found
        .remove("received at")
        .with_context(|| format!("nothing was dialled: {found:?}"))?;
    Ok([("dialled".to_owned(), dialled)].into())
}

/// Process that is killed on drop.
enum Running {
    Bastion(#[expect(dead_code, reason = "keeps it running")] Box<Bastion>),
    Apiserver(#[expect(dead_code, reason = "keeps it running")] crate::support::cluster::Process),
}

/// Returns a command with an `/etc/resolv.conf` of the test.
fn wrapped(resolver: &Path, binary: &Path) -> Command {
    let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(resolver)
        .arg(binary);
    command
}

/// The name server.
struct Names {
    was_checked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Names {
    async fn start() -> Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::from(SERVER))
            .await
            .context("the name server cannot listen")?;
        let was_checked = Arc::new(AtomicBool::new(false));
        let known = Arc::clone(&was_checked);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&buffer[..length], &known) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Ok(Self { was_checked, task })
    }

    /// Returns the valid address for the next query.
    fn begin(&self) {
        self.was_checked.store(false, Ordering::SeqCst);
    }

    /// Releases the port.
    async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Returns a response (RFC 1035) with one address for type A, and none for other types.
fn answer(query: &[u8], was_checked: &AtomicBool) -> Option<Vec<u8>> {
    const HEAD: usize = 12;
    let name = query.get(HEAD..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(HEAD..HEAD + name + 5)?;
    let is_a = question.get(name + 1..name + 3)? == [0, 1];
    let mut answer = query.get(..2)?.to_vec();
    // A response to a recursive query without an error; one question, at most one answer.
    answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    if is_a {
        let address = if was_checked.swap(true, Ordering::SeqCst) {
            BAD
        } else {
            CHECKED_ADDRESS
        };
        // Pointer to the name of the question, type A, class IN, TTL zero, four bytes.
        answer.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}
