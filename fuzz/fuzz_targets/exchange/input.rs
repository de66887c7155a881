//! An input: a few requests on one connection, and the answer of the backend to each.

use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use kube_bastion::model::Target;
use kube_bastion::model::path::SubPathDecoding;

use super::answer::Answer;
use super::world::{READER, TOKEN, WRITER};

/// Name and value of a header or trailer field.
type Pair = (Vec<u8>, Vec<u8>);

/// Maximum number of requests on one connection.
const MAX_REQUESTS: usize = 3;
/// Maximum number of fields of a request, so that its head fits into one HTTP/2 frame.
pub const MAX_FIELDS: usize = 40;
const MAX_RAW_BYTES: usize = 300;

const METHODS: [&str; 12] = [
    "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get",
    "PRI",
];
// Most choices are valid, so that most requests are read further.
const VERSIONS: [&str; 8] = [
    "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.0", "HTTP/2.0",
];
const ORIGINS: [&str; 12] = [
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "http://bastion.example",
    "HTTPS://[::1]:8443",
    "https://u:p@bastion.example",
    "http://bastion.example:99999",
    "http://[::1",
];
const HOSTS: [&str; 15] = [
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example",
    "bastion.example:8443",
    "[::1]:1",
    "",
    "a b",
    "u:p@bastion.example/x?y#z",
    "bastion.example:port",
];
const NAMES: [&str; 45] = [
    "Accept-Encoding",
    "Authorization",
    "Connection",
    "Content-Encoding",
    "Content-Length",
    "Content-Type",
    "Content_Length",
    "Cookie",
    "Date",
    "Expect",
    "HTTP2-Settings",
    "Host",
    "Impersonate-Extra-a",
    "Impersonate-Group",
    "Impersonate-User",
    "Impersonate_User",
    "Keep-Alive",
    "Keep_Alive",
    "Location",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Proxy_Authorization",
    "Range",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Version",
    "Set-Cookie",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Transfer_Encoding",
    "Upgrade",
    "X-A",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Uri",
    "X-Forwarded_Proto",
    "X-Remote-Extra-a",
    "X-Remote-Group",
    "X-Remote-Uid",
    "X-Remote-User",
    "X_Forwarded_For",
    "X_Remote_Extra_a",
    "X_Remote_User",
];
const VALUES: [&[u8]; 43] = [
    b"",
    b"0",
    b"1",
    b"5",
    b"+5",
    b"5, 5",
    b"5, 6",
    b"0x5",
    b"99999999999999999999",
    b"close",
    b"keep-alive",
    b"Upgrade",
    b"upgrade, close",
    b"Upgrade, HTTP2-Settings",
    b"upgrade, x-a, host, content-length",
    b"x-forwarded-for, x-remote-user",
    b"websocket",
    b"WebSocket",
    b"h2c",
    b"websocket, h2c",
    b"h2c, \xff",
    b"h2c, websocket",
    b"\xff, h2",
    b"HTTP/2.0",
    b"HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11",
    b"TLS/1.2",
    b"SPDY/3.1",
    b"chunked",
    b"Chunked",
    b"identity",
    b"identity, chunked",
    b"chunked, chunked",
    b"gzip, chunked",
    b"chunked\x0b",
    b"trailers",
    b"100-continue",
    b"system:masters",
    b"content-length, x-a",
    b"\xe4\xf6\xfc",
    b"13",
    b"5, 5, 5",
    b"/a",
    b"text/html",
];
const SEPARATORS: [&str; 8] = [": ", ": ", ": ", ":", " : ", "\t: ", ":\r\n ", ":\n\t"];
pub const LINE_ENDS: [&str; 7] = ["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n", "\0\r\n"];
const CHUNK_SUFFIXES: [&str; 17] = [
    "",
    "",
    "",
    ";a",
    ";a=b",
    " ;\ta = b;c",
    ";a=\"b\\\"\"",
    ";a=\"\r\n\"",
    ";",
    ";a=",
    ";a b",
    " ",
    "\t",
    ";\n",
    "g",
    "\r",
    "\x0b",
];
const CHUNK_PREFIXES: [&str; 6] = ["", "", "0", "+", "0x", "0000000000000000"];

#[derive(Arbitrary, Clone, Debug)]
pub struct Case {
    pub http2: bool,
    list: Vec<RequestInput>,
    /// Bytes after the last HTTP/1.1 request.
    pub surplus: Vec<u8>,
    /// Size of the pieces in which the client sends; 0 for one piece.
    pub pieces: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct RequestInput {
    reader: bool,
    service: bool,
    method: u8,
    version: u8,
    origin: u8,
    host: u8,
    suffix: Vec<u8>,
    fields: Vec<Field>,
    body: Body,
    /// For HTTP/2: a bit each for `:scheme`, `:authority`, a second `:path`, `:protocol`.
    pseudo: u8,
    answer: Answer,
}

/// A header or trailer field.
#[derive(Arbitrary, Clone, Debug)]
pub enum Field {
    Known {
        name: u8,
        value: u8,
    },
    Odd {
        name: u8,
        value: u8,
        separator: u8,
        end: u8,
    },
    Value {
        name: u8,
        value: Vec<u8>,
    },
    Raw {
        name: Vec<u8>,
        value: Vec<u8>,
    },
}

#[derive(Arbitrary, Clone, Debug)]
pub enum Body {
    None,
    /// With a length that may be wrong.
    Length {
        bytes: Vec<u8>,
        wrong_by: Option<i8>,
    },
    Chunked {
        chunks: Vec<Chunk>,
        last: bool,
        trailers: Vec<Field>,
    },
    /// Without framing other than by the fields.
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Clone, Debug)]
pub struct Chunk {
    bytes: Vec<u8>,
    prefix: u8,
    suffix: u8,
    /// Ends of the line with the size and of the data.
    ends: Option<(u8, u8)>,
    wrong_by: Option<i8>,
}

/// One request, ready to be sent in either version.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number in its `X-Case` field, which identifies it at the backend, and in its `Audit-Id`,
    /// which the bastion returns.
    pub number: u64,
    pub method: &'static str,
    /// Raw bytes before the request may change its method.
    pub is_head: bool,
    pub is_http10: bool,
    pub offers_upgrade: bool,
    pub answer: Answer,
    /// The request that the backend may receive, if any: true for the port of the reader, and the
    /// request target.
    pub expected: Option<(bool, String)>,
    pub http1: Vec<u8>,
    pub http2: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Case {
    /// Assigns each request a number that is unique among all inputs.
    pub fn requests(&self) -> Vec<Request> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = || NEXT.fetch_add(1, Ordering::Relaxed);
        self.list
            .iter()
            .take(MAX_REQUESTS)
            .map(|request| request.request(number()))
            .collect()
    }
}

impl Field {
    fn parts(&self) -> (Vec<u8>, Vec<u8>, &'static str, &'static str) {
        match self {
            Self::Known { name, value } => (
                pick(&NAMES, *name).into(),
                pick(&VALUES, *value).into(),
                ": ",
                "\r\n",
            ),
            Self::Odd {
                name,
                value,
                separator,
                end,
            } => (
                pick(&NAMES, *name).into(),
                pick(&VALUES, *value).into(),
                pick(&SEPARATORS, *separator),
                pick(&LINE_ENDS, *end),
            ),
            Self::Value { name, value } => (pick(&NAMES, *name).into(), raw(value), ": ", "\r\n"),
            Self::Raw { name, value } => (raw(name), raw(value), ": ", "\r\n"),
        }
    }

    pub fn line(&self) -> Vec<u8> {
        let (name, value, separator, end) = self.parts();
        [&name[..], separator.as_bytes(), &value, end.as_bytes()].concat()
    }

    /// HTTP/2 has lower-case names; a raw name is not changed.
    fn pair(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut name, value, ..) = self.parts();
        if !matches!(self, Self::Raw { .. }) {
            name.make_ascii_lowercase();
        }
        (name, value)
    }
}

impl RequestInput {
    fn request(&self, number: u64) -> Request {
        let method = pick(&METHODS, self.method);
        let token = if self.reader { READER } else { WRITER };
        let target = match (self.reader, self.service) {
            (true, _) => "pods/r",
            (false, false) => "pods/w",
            (false, true) => "services/w",
        };
        let prefix = format!("/api/v1/namespaces/default/{target}/proxy/").into_bytes();
        let mut suffix = raw(&self.suffix);
        // A line feed in the path would give the token to a request line of the input.
        suffix
            .iter_mut()
            .filter(|byte| **byte == b'\n')
            .for_each(|byte| *byte = 0x0b);
        let path = [&prefix[..], &suffix].concat();
        let expected = expected(&path).map(|target| (self.reader, target));
        let authorization = format!("Bearer {token}").into_bytes();
        let host = pick(&HOSTS, self.host);

        let mut http1 = [
            method.as_bytes(),
            b" ",
            pick(&ORIGINS, self.origin).as_bytes(),
            &path,
            b" ",
        ]
        .concat();
        http1.extend(
            [
                pick(&VERSIONS, self.version),
                "\r\nHost: ",
                host,
                "\r\nAuthorization: ",
            ]
            .concat()
            .bytes(),
        );
        http1.extend_from_slice(&authorization);
        http1.extend(format!("\r\nX-Case: {number}\r\nAudit-Id: {number}\r\n").bytes());
        for field in self.fields.iter().take(MAX_FIELDS) {
            http1.extend(field.line());
        }
        let head = http1.to_ascii_lowercase();
        self.body.write(&mut http1, b"");

        let mut http2: Vec<(Vec<u8>, Vec<u8>)> =
            vec![(b":method".into(), method.into()), (b":path".into(), path)];
        let bit = |bit: u8| self.pseudo >> bit & 1 == 1;
        http2.extend((!bit(0)).then(|| (b":scheme".into(), b"https".into())));
        http2.extend((!bit(1)).then(|| (b":authority".into(), host.into())));
        http2.extend((bit(2) && bit(3)).then(|| (b":path".into(), b"/smuggled".into())));
        http2.extend((bit(4) && bit(5)).then(|| (b":protocol".into(), b"websocket".into())));
        http2.push((b"authorization".into(), authorization));
        http2.push((b"x-case".into(), number.to_string().into()));
        http2.extend(self.fields.iter().take(MAX_FIELDS).map(Field::pair));
        let (body, trailers) = self.body.plain();
        Request {
            number,
            method,
            is_head: method == "HEAD",
            is_http10: pick(&VERSIONS, self.version) == "HTTP/1.0",
            offers_upgrade: find(&head, b"upgrade").is_some(),
            answer: self.answer.clone(),
            expected,
            http1,
            http2,
            body,
            trailers,
        }
    }
}

impl Body {
    /// The framing fields, the end of the head, and the body, which begins with `tag`.
    pub fn write(&self, out: &mut Vec<u8>, tag: &[u8]) {
        match self {
            Self::None => out.extend(b"\r\n"),
            Self::Length { bytes, wrong_by } => {
                let bytes = [tag, &raw(bytes)].concat();
                out.extend(
                    format!("Content-Length: {}\r\n\r\n", length(&bytes, *wrong_by)).bytes(),
                );
                out.extend(bytes);
            }
            Self::Chunked {
                chunks,
                last,
                trailers,
            } => {
                out.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                if !tag.is_empty() {
                    out.extend(format!("{:x}\r\n", tag.len()).bytes());
                    out.extend([tag, b"\r\n"].concat());
                }
                for chunk in chunks.iter().take(8) {
                    chunk.write(out);
                }
                if *last {
                    out.extend(b"0\r\n");
                    out.extend(trailers.iter().take(MAX_FIELDS).flat_map(Field::line));
                    out.extend(b"\r\n");
                }
            }
            Self::Raw(bytes) => {
                out.extend([b"\r\n", tag, &raw(bytes)].concat());
            }
        }
    }

    /// Body for HTTP/2, whose frames delimit it.
    fn plain(&self) -> (Vec<u8>, Vec<Pair>) {
        match self {
            Self::None => (Vec::new(), Vec::new()),
            Self::Length { bytes, .. } | Self::Raw(bytes) => (raw(bytes), Vec::new()),
            Self::Chunked {
                chunks, trailers, ..
            } => (
                chunks
                    .iter()
                    .take(8)
                    .flat_map(|chunk| raw(&chunk.bytes))
                    .collect(),
                trailers.iter().take(MAX_FIELDS).map(Field::pair).collect(),
            ),
        }
    }
}

impl Chunk {
    fn write(&self, out: &mut Vec<u8>) {
        let bytes = raw(&self.bytes);
        let size = length(&bytes, self.wrong_by);
        let (prefix, suffix) = (
            pick(&CHUNK_PREFIXES, self.prefix),
            pick(&CHUNK_SUFFIXES, self.suffix),
        );
        let (size_end, data_end) = self.ends.map_or(("\r\n", "\r\n"), |(size, data)| {
            (pick(&LINE_ENDS, size), pick(&LINE_ENDS, data))
        });
        out.extend(format!("{prefix}{size:x}{suffix}{size_end}").bytes());
        out.extend(bytes);
        out.extend(data_end.bytes());
    }
}

/// Returns the request target that a backend may receive for a path with its query. It uses the
/// path parser of the bastion, which has a separate fuzz target.
fn expected(path: &[u8]) -> Option<String> {
    // Fragments are not forwarded.
    let sent = path.split(|byte| *byte == b'#').next()?;
    let path = std::str::from_utf8(sent.split(|byte| *byte == b'?').next()?).ok()?;
    let query = sent.get(path.len() + 1..).map(String::from_utf8_lossy);
    let backend = Target::parse(path)
        .ok()?
        .sub_path(SubPathDecoding::default())
        .into_owned();
    Some(query.map_or_else(|| backend.clone(), |query| format!("{backend}?{query}")))
}

fn length(bytes: &[u8], wrong_by: Option<i8>) -> usize {
    bytes
        .len()
        .saturating_add_signed(wrong_by.unwrap_or_default().into())
}

pub fn pick<T: Copy>(list: &[T], index: u8) -> T {
    list[usize::from(index) % list.len()]
}

/// Returns bytes of the input without some texts: the token, because a backend that receives it
/// must have it from the bastion; the version of a request line, because raw bytes with a complete
/// request line could take the token of the next request; and the names of the fields with a
/// number, which `Connection` must not remove.
pub fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes[..bytes.len().min(MAX_RAW_BYTES)].to_vec();
    for text in [
        TOKEN.as_bytes(),
        b"HTTP/1.",
        b"x-case",
        b"x-answer",
        b"audit-id",
    ] {
        while let Some(at) = bytes
            .windows(text.len())
            .position(|window| window.eq_ignore_ascii_case(text))
        {
            bytes[at] = b'.';
        }
    }
    bytes
}

/// Cuts bytes into pieces of this size, or into one if it is 0. There are few pieces: the last is
/// longer.
pub fn pieces(bytes: &[u8], size: u8) -> Vec<&[u8]> {
    const MAX_PIECES: usize = 16;
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while size > 0 && rest.len() > usize::from(size) && pieces.len() < MAX_PIECES {
        let (piece, after) = rest.split_at(usize::from(size));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

pub fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
