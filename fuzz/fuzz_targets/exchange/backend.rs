//! A backend that reads requests strictly, records violations, and sends the responses of the
//! input.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard};

use super::input::{Answer, Case, Request, raw};
use super::strict::{self, Head};

/// A request that was cut may reach the backend while other inputs run; on a busy machine many do.
const MAX_REMEMBERED: usize = 10_000;
/// The number of times that the bastion may send one request: it retries when a connection breaks.
const MAX_ATTEMPTS: u8 = 3;

pub struct Backend {
    pub reader_port: u16,
    pub writer_port: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    answer: Option<Answer>,
    /// Newest first.
    expected: VecDeque<Expected>,
    violations: Vec<String>,
}

/// A request that the input was authorized to send.
struct Expected {
    number: u64,
    reader: bool,
    method: &'static str,
    target: String,
    attempts: u8,
}

impl Backend {
    /// Listens on a port for each pod.
    pub fn start() -> &'static Self {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
        let (reader, writer) = (bind(), bind());
        let (reader_port, writer_port) = (port(&reader), port(&writer));
        let backend: &'static Self = Box::leak(Box::new(Self {
            reader_port,
            writer_port,
            state: Mutex::default(),
        }));
        for (listener, is_reader) in [(reader, true), (writer, false)] {
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || {
                        if let Err(violation) = backend.serve(stream, is_reader) {
                            backend.state().violations.push(violation);
                        }
                    });
                }
            });
        }
        backend
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic ends the process")
    }

    /// Sets the requests and the responses of the next input.
    pub fn expect(&self, case: &Case, requests: &[Request]) {
        let expected = requests.iter().filter_map(|request| {
            let (reader, target) = request.expected.clone()?;
            Some(Expected {
                number: request.number,
                reader,
                method: request.method,
                target,
                attempts: MAX_ATTEMPTS,
            })
        });
        let mut state = self.state();
        state.answer = Some(case.answer.clone());
        for request in expected {
            state.expected.push_front(request);
        }
        state.expected.truncate(MAX_REMEMBERED);
    }

    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().violations)
    }

    /// Serves one connection to its end.
    fn serve(&self, mut stream: TcpStream, reader: bool) -> Result<(), String> {
        let _ = stream.set_nodelay(true);
        let mut buffer = Vec::new();
        loop {
            let wrong = |fault: String, buffer: &[u8]| {
                format!(
                    "{fault}\nin what the backend got: {:?}",
                    String::from_utf8_lossy(buffer)
                )
            };
            let (head, length) = loop {
                match strict::head(&buffer).map_err(|fault| wrong(fault, &buffer))? {
                    Some(head) => break head,
                    None if read(&mut stream, &mut buffer) => {}
                    None => return Ok(()),
                }
            };
            self.check(&head, reader)
                .map_err(|fault| wrong(fault, &buffer))?;
            let length = loop {
                match strict::body(&buffer[length..], head.framing)
                    .map_err(|fault| wrong(fault, &buffer))?
                {
                    Some(body) => break length + body,
                    None if read(&mut stream, &mut buffer) => {}
                    None => return Ok(()),
                }
            };
            if buffer.len() > length {
                return Err(wrong(
                    format!("{} bytes behind the request", buffer.len() - length),
                    &buffer,
                ));
            }
            buffer.clear();
            if !self.answer(&mut stream, &head) {
                return Ok(());
            }
        }
    }

    /// Checks that the request was sent, to this target, and not more often than the bastion
    /// retries.
    fn check(&self, head: &Head, reader: bool) -> Result<(), String> {
        if reader && !matches!(&*head.method, "GET" | "HEAD") {
            return Err(format!("{} by a caller that may only get", head.method));
        }
        let mut state = self.state();
        let Some(sent) = state
            .expected
            .iter_mut()
            .find(|expected| expected.number == head.number)
        else {
            return Err(format!(
                "{} {}, which no backend may get",
                head.method, head.target
            ));
        };
        // An extended CONNECT is forwarded as a GET (RFC 8441).
        let method =
            sent.method == head.method || (sent.method == "CONNECT" && head.method == "GET");
        if sent.reader != reader || !method || sent.target != head.target {
            return Err(format!(
                "{} {} of {} {}",
                head.method, head.target, sent.method, sent.target
            ));
        }
        sent.attempts = sent
            .attempts
            .checked_sub(1)
            .ok_or("a request is sent too often")?;
        Ok(())
    }

    /// Sends a response. Returns true if the connection stays open.
    fn answer(&self, stream: &mut TcpStream, head: &Head) -> bool {
        let answer = self.state().answer.clone();
        let ok = "HTTP/1.1 200 OK\r\n";
        let (begin, end, goes_on): (String, &str, bool) = match answer {
            None | Some(Answer::Length) => (format!("{ok}Content-Length: 2\r\n\r\n"), "ok", true),
            Some(Answer::Chunked) => {
                let begin = format!("{ok}Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n");
                (begin, "2\r\nok\r\n0\r\nX-T: t\r\n\r\n", true)
            }
            Some(Answer::UntilClose) => (format!("{ok}\r\n"), "ok", false),
            Some(Answer::Early) => {
                let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
                (format!("{early}{ok}Content-Length: 2\r\n\r\n"), "ok", true)
            }
            Some(Answer::Redirect) => (
                "HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n".into(),
                "",
                true,
            ),
            Some(Answer::Page) => {
                let page = "<a href=/a>a</a>";
                (
                    format!(
                        "{ok}Content-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                        page.len()
                    ),
                    page,
                    true,
                )
            }
            Some(Answer::Switch) => {
                let protocol = head.upgrade.as_deref().unwrap_or("websocket");
                let begin = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ";
                (format!("{begin}{protocol}\r\n\r\n"), "hello", false)
            }
            Some(Answer::Nothing) => (String::new(), "", false),
            Some(Answer::Raw(bytes)) => {
                let _ = stream.write_all(&raw(&bytes));
                (String::new(), "", false)
            }
        };
        // A response to HEAD has no body: its bytes would be the next response.
        let end = if head.method == "HEAD" { "" } else { end };
        let sent = stream.write_all([&begin, end].concat().as_bytes()).is_ok();
        if !goes_on {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // After a 101 the bytes belong to the tunnel; otherwise the bastion closes. Reading to
            // the end avoids a reset.
            while read(stream, &mut Vec::new()) {}
        }
        sent && goes_on
    }
}

/// Returns false at the end of the connection.
fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(length @ 1..) => {
            buffer.extend_from_slice(&bytes[..length]);
            true
        }
        _ => false,
    }
}
