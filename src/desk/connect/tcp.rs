//! TCP connections to a host with several addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use super::CONNECT_TIMEOUT;
use crate::client_connection::configure_socket;

/// Time after which the next address is tried as well, so that an unreachable one costs little (RFC
/// 8305).
const STAGGER: Duration = Duration::from_millis(300);
/// Maximum number of addresses that are tried.
const MAX_ADDRESSES: usize = 8;

/// Connects to the first address of a host that accepts.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let connected = async {
        let addresses = lookup_host((host, port)).await?;
        race(addresses.take(MAX_ADDRESSES).collect()).await
    };
    let stream = timeout(CONNECT_TIMEOUT, connected)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    configure_socket(&stream)?;
    Ok(stream)
}

async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    loop {
        match waiting.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let stagger = async {
            if waiting.len() == 0 {
                std::future::pending::<()>().await;
            }
            sleep(STAGGER).await;
        };
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = stagger => {}
        }
    }
}
