//! A server that responds with the request that it received, in place of an API server.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};

use crate::support::raw::{Head, Wire, websocket_accept};

/// First line of the body of a response that has a request.
pub const START: &str = "request\n";
/// Last line of the bytes in a tunnel.
pub const TUNNEL_END: &[u8] = b"\nend of the tunnel\n";

pub struct EchoServer {
    pub address: SocketAddr,
}

impl EchoServer {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // The client sees a failure as a missing response.
                    let _ = serve(stream).await;
                });
            }
        });
        Ok(Self { address })
    }
}

async fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        let mut body = Vec::new();
        if head.value("expect").is_some() {
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let trailers = wire
            .body(&head, |bytes| body.extend_from_slice(bytes))
            .await?;
        let mut echoed = echo(&head, &body);
        for trailer in trailers {
            echoed.push_str(&format!(
                "trailer {}: {}\n",
                trailer.name.to_lowercase(),
                trailer.value
            ));
        }
        let path = head.line.split(' ').nth(1).unwrap_or_default();
        let name = path.split('?').next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        let is_head = head.line.starts_with("HEAD ");
        match name {
            "switch" => {
                let protocol = head.value("upgrade").unwrap_or_default();
                let accept = websocket_accept(head.value("sec-websocket-key").unwrap_or_default());
                let switched = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: {protocol}\r\nSec-WebSocket-Accept: {accept}\r\nX-Kept: 1\r\n\r\n"
                );
                wire.send(switched.as_bytes()).await?;
                wire.send(echoed.as_bytes()).await?;
                return wire.send(TUNNEL_END).await;
            }
            "refuse" => {
                let body = "refused";
                let refused = format!(
                    "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nX-Why: test\r\n\r\n{body}",
                    body.len()
                );
                wire.send(refused.as_bytes()).await?;
            }
            _ => wire.send(&response(name, &echoed, is_head)).await?,
        }
    }
    Ok(())
}

/// Returns a response by the last segment of the path. Those without a length have a type: kubectl
/// guesses one only if its first write precedes its first flush.
fn response(name: &str, echoed: &str, is_head: bool) -> Vec<u8> {
    let fixed: &[u8] = match name {
        "no-content" => b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
        "not-modified" => b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
        "redirect" => {
            b"HTTP/1.1 302 Found\r\nLocation: /elsewhere?a=b\r\nContent-Length: 0\r\n\r\n"
        }
        "absolute-redirect" => {
            b"HTTP/1.1 301 Moved Permanently\r\nLocation: http://localhost/x\r\nContent-Length: 0\r\n\r\n"
        }
        "error" => b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\nfail",
        "teapot" => b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 3\r\n\r\ntea",
        "retry" => b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
        "early" => {
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
              HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        }
        "trailers" => {
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTrailer: X-End\r\n\
              Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-End: 1\r\n\r\n"
        }
        "chunks" => {
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n\
              1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        }
        "cookies" => {
            b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
              Access-Control-Allow-Origin: *\r\nStrict-Transport-Security: max-age=1\r\n\
              Content-Length: 2\r\n\r\nok"
        }
        "hops" => {
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
              Proxy-Authenticate: Basic\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok"
        }
        "page" => {
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 18\r\n\r\n<a href=\"/a\">a</a>"
        }
        _ => b"",
    };
    if !fixed.is_empty() {
        return fixed.to_vec();
    }
    let body = if name == "big" {
        "0123456789abcdef".repeat(1 << 16)
    } else {
        echoed.to_owned()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    if is_head {
        return head.into_bytes();
    }
    [head, body].concat().into_bytes()
}

/// Describes a request: its line, its fields by name, and its body or the length of a long one.
fn echo(head: &Head, body: &[u8]) -> String {
    let mut fields: Vec<String> = head
        .fields
        .iter()
        .map(|field| format!("{}: {}", field.name.to_lowercase(), field.value))
        .collect();
    fields.sort();
    let body = if body.len() > 1024 {
        format!("{} bytes", body.len())
    } else {
        String::from_utf8_lossy(body).into_owned()
    };
    format!(
        "{START}{}\n{}\nbody: {body}\n",
        head.line,
        fields.join("\n")
    )
}
