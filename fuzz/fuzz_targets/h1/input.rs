//! An input: a byte of options, the sizes of the pieces, and messages as text or as tokens.

use std::fmt::{Display, Formatter, Result};

const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "CONNECT"];

/// Texts that the bytes of an input stand for, if its options say so. Other bytes stand for
/// themselves.
const TOKENS: [&str; 96] = [
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "PUT http://a:80/b HTTP/1.0\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "CONNECT a:443 HTTP/1.1\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200\r\n",
    "HTTP/1.0 404 Not Found\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early\r\n",
    "HTTP/1.1 204 \r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1  799 odd\n",
    "Host: a\r\n",
    "Host: [::1]:80\r\n",
    "Host: ",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "content-length: ",
    "Content-Length",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: ",
    "transfer-encoding",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "connection: ",
    "Expect: 100-continue\r\n",
    "Expect: ",
    "Date: x\r\n",
    "Upgrade: websocket\r\n",
    "Trailer: X-A\r\n",
    "X-A: 1\r\n",
    "x-B: 2\r\n",
    "X-C",
    "Keep-Alive: 5\r\n",
    "Set-Cookie: a\r\n",
    "chunked",
    "gzip, ",
    "identity",
    "close, ",
    "keep-alive",
    "100-continue",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/",
    "http://",
    "\r\n\r\n",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    "\r\n ",
    "\n\t",
    ": ",
    ":",
    " ",
    "\t",
    ",",
    ";",
    ";a=b",
    ";a=\"b\\\"\"",
    "=",
    "\"",
    "\\",
    "0\r\n\r\n",
    "0\r\n",
    "3\r\nabc\r\n",
    "a\r\n0123456789\r\n",
    "1",
    "5",
    "10",
    "FFFFFFFFFFFFFFFF",
    "00000000",
    "9999999999999999999",
    "abc",
    "[",
    "]",
    "::",
    "%41",
    "%",
    "?",
    "#",
    "/",
    "@",
    "*",
    "_",
    "-",
    "+",
    "0x",
    "\0",
    "\x0b",
    "\x0c",
    "\x7f",
    "\u{e4}",
    "X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
    "A:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\n",
];
/// The byte that stands for the first token.
const FIRST_TOKEN: u8 = 0x80;

const MAX_BYTES: usize = 32 * 1024;

pub struct Input {
    /// Method of the request, if the message is a response.
    pub method: Option<&'static str>,
    /// The client to which a response is written speaks HTTP/1.0.
    pub http10: bool,
    pub keep_alive: bool,
    /// Sizes of the pieces, repeated to the end of the message.
    sizes: Vec<u8>,
    pub message: Vec<u8>,
}

impl Input {
    pub fn parse(bytes: &[u8]) -> Self {
        let (options, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let (count, rest) = rest.split_first().unwrap_or((&0, &[]));
        let (sizes, text) = rest.split_at(rest.len().min(usize::from(count % 6)));
        let bit = |bit: u8| options >> bit & 1 == 1;
        let mut message = Vec::new();
        for byte in text {
            let token = byte.checked_sub(FIRST_TOKEN).filter(|_| bit(1));
            match token.and_then(|token| TOKENS.get(usize::from(token))) {
                Some(token) => message.extend_from_slice(token.as_bytes()),
                None => message.push(*byte),
            }
        }
        message.truncate(MAX_BYTES);
        Self {
            method: bit(0).then(|| METHODS[usize::from(options >> 2 & 3)]),
            http10: bit(4),
            keep_alive: bit(5),
            sizes: sizes.to_vec(),
            message,
        }
    }

    /// Cuts the message. Without sizes each byte is a piece.
    pub fn pieces(&self) -> Vec<&[u8]> {
        let mut pieces = Vec::new();
        let mut rest = &self.message[..];
        let mut sizes = self.sizes.iter().cycle();
        while !rest.is_empty() {
            let size = sizes.next().map_or(1, |size| usize::from(*size) + 1);
            let (piece, after) = rest.split_at(size.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

impl Display for Input {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> Result {
        match self.method {
            None => write!(formatter, "requests")?,
            Some(method) => write!(formatter, "responses to {method}")?,
        }
        if self.http10 {
            write!(formatter, " of HTTP/1.0")?;
        }
        write!(
            formatter,
            ", pieces {:?}: {}",
            self.sizes,
            self.message.escape_ascii()
        )
    }
}
