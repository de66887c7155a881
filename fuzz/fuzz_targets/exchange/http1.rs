//! The HTTP/1.1 client: a connection per input, because malformed requests close it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::input::{Request, pieces, raw};
use super::responses::{self, End, Received};
use super::world::{READER, World};

/// Responses on loopback arrive much earlier. After it, an incomplete request counts as lost.
const SILENCE: Duration = Duration::from_millis(30);
/// The bastion closes the connection after the client has closed its side; only a very busy machine
/// takes longer.
const MAX_END: Duration = Duration::from_secs(30);

/// Returns what a client sends.
pub fn bytes(requests: &[Request], surplus: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = requests
        .iter()
        .flat_map(|request| request.http1.iter().copied())
        .collect();
    bytes.extend(raw(surplus));
    bytes
}

/// Sends the bytes of all requests, reads until the bastion ends the connection, and checks the
/// responses.
pub fn exchange(world: &World, requests: &[Request], bytes: &[u8], size: u8) -> Result<(), String> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut stream = TcpStream::connect(world.insecure).expect("the bastion accepts");
    let _ = stream.set_nodelay(true);
    // The bastion may have rejected the first bytes and closed already.
    let is_written = pieces(bytes, size)
        .into_iter()
        .all(|piece| stream.write_all(piece).is_ok());
    let mut answers = Vec::new();
    let end = receive(&mut stream, requests, &mut answers);
    let shown = |fault| {
        format!(
            "{fault}\nin what the client got: {}",
            answers.escape_ascii()
        )
    };
    let mut end = end.map_err(shown)?;
    if !is_written && end == End::Closed {
        // The write took the error of a reset, so that the reads saw the end only.
        end = End::Reset;
    }
    for response in responses::read(&answers, requests, end).map_err(shown)? {
        response
            .check(|number| world.backend.sent(number))
            .map_err(shown)?;
    }
    Ok(())
}

/// Reads to the end of the connection.
fn receive(
    stream: &mut TcpStream,
    requests: &[Request],
    answers: &mut Vec<u8>,
) -> Result<End, String> {
    let _ = stream.set_read_timeout(Some(SILENCE));
    let mut is_shut_down = false;
    loop {
        let mut buffer = [0; 4096];
        let is_over = match stream.read(&mut buffer) {
            Ok(0) => return Ok(End::Closed),
            Ok(length) => {
                answers.extend_from_slice(&buffer[..length]);
                let received = responses::read(answers, requests, End::Open)?;
                received.iter().any(Received::is_upgrade)
                    || received
                        .iter()
                        .filter(|response| response.is_complete())
                        .count()
                        >= requests.len()
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if is_shut_down {
                    return Err("the bastion holds a connection that its client has ended".into());
                }
                true
            }
            Err(_) => return Ok(End::Reset),
        };
        if is_over && !is_shut_down {
            is_shut_down = true;
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.set_read_timeout(Some(MAX_END));
        }
    }
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
