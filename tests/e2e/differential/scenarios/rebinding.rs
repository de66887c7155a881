//! A name server that tells a good address to who checks and loopback to who dials (CVE-2020-8562).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::super::ask::Side;
use super::super::observe::Observation;
use super::super::setting::Setting;
use super::{asked, get};
use crate::support::bastion::Bastion;
use crate::support::eventually;

/// Where the name server listens: an address of loopback that no other uses.
const SERVER: ([u8; 4], u16) = ([127, 0, 0, 153], 53);
/// What it tells first, and ever after.
const GOOD: Ipv4Addr = Ipv4Addr::new(10, 254, 240, 45);
const BAD: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A port that is served at both.
pub const PORT: u16 = 19153;

pub async fn rebinding(setting: &Setting<'_>, side: &Side) -> Result<Observation> {
    let names = Names::start().await?;
    let folder = setting.world.cluster.folder.path();
    let resolver = folder.join("resolv.conf");
    std::fs::write(
        &resolver,
        format!(
            "nameserver {}\noptions attempts:1 timeout:2\n",
            Ipv4Addr::from(SERVER.0)
        ),
    )?;
    // A server of its own, which asks this name server and no other.
    let (address, _running) = if side.name == "ours" {
        let command = setting.bastion_command(wrapped(
            &resolver,
            env!("CARGO_BIN_EXE_kube-bastion").as_ref(),
        ));
        let bastion = Bastion::run(command)?;
        bastion.ready().await?;
        (bastion.secure, Running::Bastion(Box::new(bastion)))
    } else {
        let (address, process) = setting
            .world
            .cluster
            .another_apiserver(|binary| wrapped(&resolver, binary))?;
        (address, Running::Apiserver(process))
    };
    let side = Side {
        address,
        ..side.clone()
    };
    eventually("the server of its own", async || {
        let known = asked(setting, &side, &get("pods/p/proxy/x"))
            .await
            .unwrap_or_default();
        Ok(known.get("status").is_some_and(|status| status == "200"))
    })
    .await?;
    names.begin();
    let mut found = asked(
        setting,
        &side,
        &get(&format!("nodes/rebinding:{PORT}/proxy/x")),
    )
    .await?;
    names.end().await;
    let dialled = found
        .remove("saw at")
        .with_context(|| format!("nothing was dialled: {found:?}"))?;
    Ok([("dialled".to_owned(), dialled)].into())
}

/// Ends with its owner.
enum Running {
    Bastion(#[expect(dead_code, reason = "kept running")] Box<Bastion>),
    Apiserver(#[expect(dead_code, reason = "kept running")] crate::support::cluster::Process),
}

/// A command whose `/etc/resolv.conf` is the test's.
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
    told: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Names {
    async fn start() -> Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::from(SERVER))
            .await
            .context("the name server cannot listen")?;
        let told = Arc::new(AtomicBool::new(false));
        let known = Arc::clone(&told);
        let task = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&buffer[..length], &known) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Ok(Self { told, task })
    }

    /// The next to ask is told the good address.
    fn begin(&self) {
        self.told.store(false, Ordering::SeqCst);
    }

    /// Gives the port back for the next.
    async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// RFC 1035: the question, and one address where it is asked for (type A); no other type has any.
fn answer(query: &[u8], told: &AtomicBool) -> Option<Vec<u8>> {
    const HEAD: usize = 12;
    let name = query.get(HEAD..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(HEAD..HEAD + name + 5)?;
    let is_a = question.get(name + 1..name + 3)? == [0, 1];
    let mut answer = query.get(..2)?.to_vec();
    // A response to a recursive query, without an error; one question, no answer or one.
    answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    if is_a {
        let address = if told.swap(true, Ordering::SeqCst) {
            BAD
        } else {
            GOOD
        };
        // The name of the question, type A, class IN, to be remembered for no time, four bytes.
        answer.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}
