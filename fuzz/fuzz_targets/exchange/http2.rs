//! The HTTP/2 client, frame by frame, because a library does not send malformed frames (RFC 9113,
//! RFC 7541).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use super::answer::tag_of;
use super::input::Request;
use super::responses;
use super::world::World;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Maximum number of inputs on one connection, so that its windows are not exhausted.
const MAX_USES: u32 = 500;
/// Responses on loopback arrive much earlier. After it, a stream is reset.
const SILENCE: Duration = Duration::from_millis(30);
/// The bastion acknowledges a PING; only a very busy machine takes longer.
const END: Duration = Duration::from_secs(30);

pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    next: u32,
    uses: u32,
    read: Vec<u8>,
}

/// Body of a response.
#[derive(Default)]
struct Received {
    number: u64,
    body: Vec<u8>,
    /// The stream ended without an error.
    is_complete: bool,
}

/// Sends all requests as streams of one connection, reads until each is over, and checks the
/// bodies of the responses.
pub fn exchange(world: &World, requests: &[Request]) -> std::result::Result<(), String> {
    let mut kept = world.http2.lock().expect("a panic ends the process");
    let mut connection = match kept.take().filter(|connection| connection.uses < MAX_USES) {
        Some(connection) => connection,
        None => Connection::open(world).expect("the bastion speaks HTTP/2"),
    };
    connection.uses += 1;
    // A connection error of the input closes the connection; the next input opens another.
    let mut received = BTreeMap::new();
    if connection.exchange(requests, &mut received).is_ok() {
        *kept = Some(connection);
    }
    received
        .values()
        .try_for_each(|received| check(world, requests, received))
}

/// Heads are compressed and not read: a response is recognized by the tag in its body.
fn check(
    world: &World,
    requests: &[Request],
    received: &Received,
) -> std::result::Result<(), String> {
    let Some(tag) = tag_of(&received.body) else {
        return Ok(());
    };
    if tag != received.number {
        return Err(format!("the body of {tag} for {}", received.number));
    }
    let sent = world
        .backend
        .sent(tag)
        .ok_or("a response that the backend did not send, or malformed")?;
    let is_tunnel = sent.status == 101
        && requests
            .iter()
            .any(|request| request.number == tag && request.method == "CONNECT");
    if is_tunnel {
        return Ok(());
    }
    responses::check_body(&received.body, received.is_complete, &sent)
}

impl Connection {
    fn open(world: &World) -> Result<Self> {
        let socket = TcpStream::connect(world.secure)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(END))?;
        let name = "localhost".try_into().expect("a name");
        let tls = ClientConnection::new(world.tls.clone(), name).map_err(Error::other)?;
        let mut connection = Self {
            stream: StreamOwned::new(tls, socket),
            next: 1,
            uses: 0,
            read: Vec::new(),
        };
        connection
            .stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        connection.send(SETTINGS, 0, 0, &[])?;
        connection.stream.flush()?;
        connection.stream.sock.set_read_timeout(Some(SILENCE))?;
        Ok(connection)
    }

    fn exchange(
        &mut self,
        requests: &[Request],
        received: &mut BTreeMap<u32, Received>,
    ) -> Result<()> {
        let mut open = BTreeSet::new();
        for request in requests {
            open.insert(self.next);
            received.insert(
                self.next,
                Received {
                    number: request.number,
                    ..Received::default()
                },
            );
            self.request(self.next, request)?;
            self.next += 2;
        }
        self.stream.flush()?;
        let mut deadline = Instant::now() + SILENCE;
        while !open.is_empty() && Instant::now() < deadline {
            match self.frame() {
                Ok((kind, flags, id, payload)) => {
                    deadline = Instant::now() + SILENCE;
                    let ends = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
                    if let Some(received) = received.get_mut(&id) {
                        if kind == DATA {
                            received.body.extend_from_slice(&payload);
                        }
                        received.is_complete |= ends;
                    }
                    if kind == RST_STREAM || ends {
                        open.remove(&id);
                    }
                    self.handle(kind, flags, &payload)?;
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        for id in open {
            // CANCEL
            self.send(RST_STREAM, 0, id, &8u32.to_be_bytes())?;
        }
        // After the acknowledgment, the bastion has read all frames of the input.
        self.send(PING, 0, 0, &u64::from(self.uses).to_be_bytes())?;
        self.stream.flush()?;
        let deadline = Instant::now() + END;
        loop {
            assert!(
                Instant::now() < deadline,
                "the bastion does not answer a PING"
            );
            match self.frame() {
                Ok((PING, flags, _, _)) if flags & ACK != 0 => return Ok(()),
                Ok((kind, flags, _, payload)) => self.handle(kind, flags, &payload)?,
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn request(&mut self, id: u32, request: &Request) -> Result<()> {
        let end = |last: bool| if last { END_STREAM } else { 0 };
        let (body, trailers) = (&request.body, &request.trailers);
        let last = body.is_empty() && trailers.is_empty();
        self.send(HEADERS, END_HEADERS | end(last), id, &block(&request.http2))?;
        if !body.is_empty() {
            self.send(DATA, end(trailers.is_empty()), id, body)?;
        }
        if !trailers.is_empty() {
            self.send(HEADERS, END_HEADERS | END_STREAM, id, &block(trailers))?;
        }
        Ok(())
    }

    fn send(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())
            .expect("a frame is small")
            .to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(id.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame)
    }

    /// Reads the next frame: type, flags, stream and payload.
    fn frame(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let [a, b, c, kind, flags, id @ ..] = &self.read[..]
                && let Some((id, rest)) = id.split_first_chunk()
                && let Some(payload) = rest.get(..u32::from_be_bytes([0, *a, *b, *c]) as usize)
            {
                let frame = (
                    *kind,
                    *flags,
                    u32::from_be_bytes(*id) & 0x7fff_ffff,
                    payload.to_vec(),
                );
                self.read.drain(..9 + frame.3.len());
                return Ok(frame);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => self.read.extend_from_slice(&bytes[..length]),
            }
        }
    }

    fn handle(&mut self, kind: u8, flags: u8, payload: &[u8]) -> Result<()> {
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let payload = if kind == PING { payload } else { &[] };
                self.send(kind, ACK, 0, payload)?;
            }
            DATA if !payload.is_empty() => {
                let length = u32::try_from(payload.len()).expect("a frame is small");
                self.send(WINDOW_UPDATE, 0, 0, &length.to_be_bytes())?;
            }
            GOAWAY => return Err(ErrorKind::ConnectionAborted.into()),
            _ => {}
        }
        self.stream.flush()
    }
}

fn is_timeout(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Encodes a header block of literal fields without indexing, so that neither side has state (RFC
/// 7541 section 6.2.2).
fn block(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    /// The initial `SETTINGS_MAX_FRAME_SIZE` (RFC 9113 section 6.5.2), in bytes.
    const MAX_FRAME: usize = 16_384;
    let mut block = Vec::new();
    for (name, value) in fields {
        let before = block.len();
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
        if block.len() > MAX_FRAME {
            block.truncate(before);
            break;
        }
    }
    block
}

/// Encodes a string without Huffman coding (RFC 7541 section 5.2).
fn string(block: &mut Vec<u8>, text: &[u8]) {
    const PREFIX: usize = 0x7f;
    if text.len() < PREFIX {
        block.push(u8::try_from(text.len()).expect("it is smaller than the prefix"));
    } else {
        block.push(0x7f);
        let mut rest = text.len() - PREFIX;
        while rest >= 0x80 {
            block.push(0x80 | u8::try_from(rest & 0x7f).expect("seven bits"));
            rest >>= 7;
        }
        block.push(u8::try_from(rest).expect("seven bits"));
    }
    block.extend_from_slice(text);
}
