//! Tunnels by SOCKS5 (RFC 1928, RFC 1929). The proxy looks names up.

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::proxy::{ProxyError, ProxyUrl};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const PASSWORD: u8 = 2;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Opens a tunnel to a host.
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &ProxyUrl,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    let greeting: &[u8] = if proxy.credentials.is_some() {
        &[VERSION, 2, NO_AUTHENTICATION, PASSWORD]
    } else {
        &[VERSION, 1, NO_AUTHENTICATION]
    };
    stream.write_all(greeting).await?;
    match (read::<2>(stream).await?, &proxy.credentials) {
        ([VERSION, NO_AUTHENTICATION], _) => {}
        ([VERSION, PASSWORD], Some((user, password))) => {
            let mut request = vec![1];
            push(&mut request, user.as_bytes())?;
            push(&mut request, password.expose().as_bytes())?;
            stream.write_all(&request).await?;
            let [_, status] = read::<2>(stream).await?;
            if status != 0 {
                return Err(ProxyError::Credentials);
            }
        }
        ([VERSION, _], Some(_)) => return Err(ProxyError::Credentials),
        ([VERSION, _], None) => return Err(ProxyError::NoCredentials),
        _ => return Err(ProxyError::Protocol),
    }
    let mut request = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(IPV4);
            request.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(IPV6);
            request.extend(address.octets());
        }
        Err(_) => {
            request.push(NAME);
            push(&mut request, host.as_bytes())?;
        }
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await?;
    read_reply(stream).await
}

async fn read_reply(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), ProxyError> {
    let [version, reply, _, kind] = read::<4>(stream).await?;
    if version != VERSION {
        return Err(ProxyError::Protocol);
    }
    match reply {
        0 => {}
        1 => return Err(ProxyError::Refused("general failure")),
        2 => return Err(ProxyError::Refused("not allowed by its rules")),
        3 => {
            return Err(ProxyError::Refused(
                "the network of the server is unreachable",
            ));
        }
        4 => {
            return Err(ProxyError::Refused(
                "the server is unreachable, or its name unknown",
            ));
        }
        5 => return Err(ProxyError::Refused("the server refused the connection")),
        6 => return Err(ProxyError::Refused("the server did not respond in time")),
        7 => return Err(ProxyError::Refused("it does not support tunnels")),
        8 => {
            return Err(ProxyError::Refused(
                "it does not support this kind of address",
            ));
        }
        _ => return Err(ProxyError::Refused("unknown reason")),
    }
    // The address that the proxy connects from, which has no use here.
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => stream.read_u8().await?.into(),
        _ => return Err(ProxyError::Protocol),
    };
    let mut address = vec![0; length + 2];
    stream.read_exact(&mut address).await?;
    Ok(())
}

async fn read<const N: usize>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<[u8; N], ProxyError> {
    let mut bytes = [0; N];
    match stream.read_exact(&mut bytes).await {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(ProxyError::Protocol)
        }
        Err(error) => Err(error.into()),
    }
}

/// Appends a text of at most 255 bytes with its length.
fn push(request: &mut Vec<u8>, text: &[u8]) -> Result<(), ProxyError> {
    let length = u8::try_from(text.len());
    request.push(length.map_err(|_| ProxyError::Refused("a name is longer than 255 bytes"))?);
    request.extend(text);
    Ok(())
}
