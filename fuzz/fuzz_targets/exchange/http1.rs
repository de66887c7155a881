//! The HTTP/1.1 client: a connection per input, because malformed requests close it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::input::{Request, find, raw};
use super::world::{READER, World};

/// Responses on loopback arrive much earlier. After it, an incomplete request counts as lost.
const SILENCE: Duration = Duration::from_millis(30);
/// The bastion closes the connection after the client has closed its side; only a very busy machine
/// takes longer.
const END: Duration = Duration::from_secs(30);

/// Sends all requests and reads until the bastion ends the connection.
pub fn exchange(world: &World, requests: &[Request], surplus: &[u8]) {
    let mut bytes = requests
        .iter()
        .flat_map(|request| request.http1.iter().copied())
        .collect::<Vec<u8>>();
    bytes.extend(raw(surplus));
    if bytes.is_empty() {
        return;
    }
    let methods: Vec<&str> = requests.iter().map(|request| request.method).collect();
    let mut stream = TcpStream::connect(world.insecure).expect("the bastion accepts");
    let _ = stream.set_nodelay(true);
    // The bastion may have rejected the first bytes and closed already.
    let _ = stream.write_all(&bytes);
    let _ = stream.set_read_timeout(Some(SILENCE));
    let mut answers = Vec::new();
    let mut ended = false;
    loop {
        let mut buffer = [0; 4096];
        let over = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                answers.extend_from_slice(&buffer[..length]);
                count(&answers, &methods) >= requests.len()
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(
                    !ended,
                    "the bastion holds a connection that its client has ended: {bytes:?}"
                );
                true
            }
            Err(_) => return,
        };
        if over && !ended {
            ended = true;
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.set_read_timeout(Some(END));
        }
    }
}

/// Number of complete responses, to know when to stop reading.
fn count(mut bytes: &[u8], methods: &[&str]) -> usize {
    let mut count = 0;
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        bytes = &bytes[end + 4..];
        // A body of the input may contain bytes that resemble its end.
        let status: Option<u16> = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let Some(status) = status else { return count };
        if status == 101 {
            // Only the tunnel follows.
            return usize::MAX;
        }
        if status < 200 {
            continue;
        }
        let value = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let length = if methods.get(count) == Some(&"HEAD") || matches!(status, 204 | 304) {
            Some(0)
        } else if value("transfer-encoding").is_some() {
            find(bytes, b"0\r\n").and_then(|at| Some(at + find(&bytes[at..], b"\r\n\r\n")? + 4))
        } else {
            // Without a length it ends with the connection.
            value("content-length")
                .and_then(|length| length.parse().ok())
                .filter(|length| *length <= bytes.len())
        };
        let Some(length) = length else { return count };
        bytes = &bytes[length..];
        count += 1;
    }
    count
}

/// Sends requests until the bastion has loaded the objects.
pub fn wait_until_ready(world: &World) {
    for _ in 0..10_000 {
        let mut stream = TcpStream::connect(world.insecure).expect("the bastion accepts");
        // A redirect, which reaches no backend.
        let head = format!(
            "GET /api/v1/namespaces/default/pods/r/proxy HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {READER}\r\n\
             Connection: close\r\n\r\n"
        );
        stream
            .write_all(head.as_bytes())
            .expect("the bastion reads");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        if answer.starts_with("HTTP/1.1 301 ") {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the bastion does not become ready");
}
