//! A backend that reads requests strictly, records violations, and sends the answers of the input.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard};

use super::answer::{Answer, Prediction, predict};
use super::input::{Request, pieces};
use super::strict::{self, Head};
use super::upload::Upload;
use crate::message::Framing;
use crate::reference;

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
    upload: Upload,
    answer: Answer,
    /// The answer as it was sent.
    sent: Option<Prediction>,
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

    /// Sets the requests of the next input and their bodies.
    pub fn expect(&self, requests: &[Request], uploads: impl Fn(&Request) -> Option<Upload>) {
        let expected = requests.iter().filter_map(|request| {
            let (reader, target) = request.expected.clone()?;
            Some(Expected {
                number: request.number,
                reader,
                method: request.method,
                target,
                attempts: MAX_ATTEMPTS,
                upload: uploads(request)?,
                answer: request.answer.clone(),
                sent: None,
            })
        });
        let mut state = self.state();
        for request in expected {
            state.expected.push_front(request);
        }
        state.expected.truncate(MAX_REMEMBERED);
    }

    /// Returns the final response that was sent for a request.
    pub fn sent(&self, number: u64) -> Option<Prediction> {
        let state = self.state();
        let expected = state
            .expected
            .iter()
            .find(|expected| expected.number == number);
        expected?.sent.clone()
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
            let (answer, upload) = self
                .check(&head, reader)
                .map_err(|fault| wrong(fault, &buffer))?;
            let mut is_kept = answer.early && self.answer(&mut stream, &head, &answer);
            let body = loop {
                match strict::body(&buffer[length..], head.framing)
                    .map_err(|fault| wrong(fault, &buffer))?
                {
                    Some(body) => break body,
                    None if read(&mut stream, &mut buffer) => {}
                    None => return Ok(()),
                }
            };
            check_upload(&upload, &buffer[length..length + body], head.framing)
                .map_err(|fault| wrong(fault, &buffer))?;
            // After an early answer the next request may follow already.
            if buffer.len() > length + body && !is_kept && head.upgrade.is_none() {
                return Err(wrong(
                    format!("{} bytes behind the request", buffer.len() - length - body),
                    &buffer,
                ));
            }
            buffer.drain(..length + body);
            if !answer.early {
                is_kept = self.answer(&mut stream, &head, &answer);
            }
            if !is_kept {
                // After a 101 the bytes belong to the tunnel; otherwise the bastion closes. Reading
                // to the end avoids a reset.
                while read(&mut stream, &mut Vec::new()) {}
                return Ok(());
            }
        }
    }

    /// Checks that the request was sent, to this target, and not more often than the bastion
    /// retries.
    fn check(&self, head: &Head, reader: bool) -> Result<(Answer, Upload), String> {
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
        Ok((sent.answer.clone(), sent.upload.clone()))
    }

    /// Sends an answer. Returns true if the connection stays open.
    fn answer(&self, stream: &mut TcpStream, head: &Head, answer: &Answer) -> bool {
        let bytes = answer.bytes(head.number, head.upgrade.as_deref());
        let sent = predict(&bytes, &head.method);
        let is_kept = answer.keep
            && sent
                .as_ref()
                .is_some_and(|sent| sent.is_complete && sent.is_delimited);
        if let Some(expected) = self
            .state()
            .expected
            .iter_mut()
            .find(|expected| expected.number == head.number)
        {
            expected.sent = sent;
        }
        for piece in pieces(&bytes, answer.pieces) {
            if stream.write_all(piece).is_err() {
                return false;
            }
        }
        if !is_kept {
            let _ = stream.shutdown(Shutdown::Write);
        }
        is_kept
    }
}

/// Checks a body that was received completely.
fn check_upload(upload: &Upload, bytes: &[u8], framing: strict::Framing) -> Result<(), String> {
    let framing = match framing {
        strict::Framing::None => Framing::Empty,
        strict::Framing::Length(length) => Framing::of_length(length as u64),
        strict::Framing::Chunked => Framing::Chunked,
    };
    let body = reference::body(bytes, framing, false).0.data;
    match upload {
        Upload::Unknown => Ok(()),
        Upload::Incomplete => Err("a complete body of one that is malformed or incomplete".into()),
        Upload::Complete(sent) if *sent == body => Ok(()),
        Upload::Complete(sent) => Err(format!(
            "the body {} of {}",
            body.escape_ascii(),
            sent.escape_ascii()
        )),
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
