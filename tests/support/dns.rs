//! A DNS server of Debian's package dnsmasq-base, and queries for it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;

use super::eventually;
use super::net::Namespace;
use super::program::{Program, command_in_namespace, find_program};

pub const DNS_PORT: u16 = 53;

/// Name that the server knows.
const NAME: &str = "printer.example.test";

/// Starts a server that has `answer` as the address of its only name.
///
/// # Errors
/// Returns an error if it is not installed or does not start.
pub async fn dnsmasq(
    namespace: &Namespace,
    address: Ipv4Addr,
    answer: Ipv4Addr,
) -> Result<Program> {
    let dnsmasq = find_program(&["dnsmasq"], "on Debian, apt-get install dnsmasq-base")?;
    let mut command = command_in_namespace(namespace, &dnsmasq);
    command
        .args(["--keep-in-foreground", "--log-facility=-", "--user=root"])
        .args(["--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
        .args(["--pid-file=", "--bind-interfaces", "--log-queries"])
        .arg(format!("--listen-address={address}"))
        .arg(format!("--port={DNS_PORT}"))
        .arg(format!("--host-record={NAME},{answer}"));
    let mut program = Program::start(&mut command)?;
    program.wait_for_line("started").await?;
    // It listens on TCP too.
    let server = SocketAddr::from((address, DNS_PORT));
    eventually("the DNS server", async || {
        Ok(TcpStream::connect(server).await.is_ok())
    })
    .await?;
    Ok(program)
}

/// Returns a query for the address of the name (RFC 1035 section 4.1).
pub fn query(id: u16) -> Vec<u8> {
    const RECURSION_DESIRED: u16 = 0x0100;
    let mut message = Vec::new();
    // One question; no answers, authorities and additional records.
    for field in [id, RECURSION_DESIRED, 1, 0, 0, 0] {
        message.extend_from_slice(&field.to_be_bytes());
    }
    for label in NAME.split('.') {
        message.push(u8::try_from(label.len()).expect("a label is short"));
        message.extend_from_slice(label.as_bytes());
    }
    // Type A, class IN.
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// Returns the address in the answer to the query with this id.
///
/// # Errors
/// Returns an error if it is not the answer, or has not one address.
pub fn address(answer: &[u8], id: u16) -> Result<Ipv4Addr> {
    let count = answer.get(6..8).context("a header")?;
    ensure!(
        answer.starts_with(&id.to_be_bytes()) && count == [0, 1],
        "{answer:?}"
    );
    let address = answer.last_chunk::<4>().context("a record")?;
    Ok(Ipv4Addr::from(*address))
}
