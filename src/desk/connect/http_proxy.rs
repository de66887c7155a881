//! Tunnels by CONNECT (RFC 9110 section 9.3.6).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::host_port;
use super::proxy::{ProxyError, ProxyUrl};

/// Maximum size of the head of a response.
const MAX_HEAD: usize = 16 * 1024;
/// Maximum length of a reason phrase in an error.
const MAX_REASON: usize = 80;

/// Opens a tunnel to a host.
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &ProxyUrl,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    let target = host_port(host, port);
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some((user, password)) = &proxy.credentials {
        let credentials = STANDARD.encode(format!("{user}:{}", password.expose()));
        request += &format!("Proxy-Authorization: Basic {credentials}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await?;
    // A TLS session may keep what it could not write yet.
    stream.flush().await?;
    loop {
        let (status, reason) = parse_status(&read_head(stream).await?)?;
        match status {
            100..=199 => {}
            200..=299 => return Ok(()),
            407 if proxy.credentials.is_some() => return Err(ProxyError::Credentials),
            407 => return Err(ProxyError::NoCredentials),
            _ => return Err(ProxyError::Status { status, reason }),
        }
    }
}

/// Reads the head of a response, and nothing behind it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ProxyError> {
    let mut head = Vec::new();
    // Byte by byte: the head is short, and what follows belongs to the tunnel.
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() == MAX_HEAD {
            return Err(ProxyError::Protocol);
        }
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(ProxyError::Protocol);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(head)
}

fn parse_status(head: &[u8]) -> Result<(u16, String), ProxyError> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut parts = line.trim_end().splitn(3, ' ');
    let version = parts.next().unwrap_or_default();
    let status = parts.next().filter(|status| status.len() == 3);
    let status = status.and_then(|status| status.parse().ok());
    let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
        return Err(ProxyError::Protocol);
    };
    // For a terminal, so without control characters.
    let reason = parts.next().unwrap_or_default().chars();
    let reason = reason.filter(|c| !c.is_control()).take(MAX_REASON);
    Ok((status, reason.collect()))
}
