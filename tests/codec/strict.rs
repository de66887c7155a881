//! A strict incremental parser of HTTP/1.1 messages (RFC 9112), for both directions.

use tokio::io::{AsyncRead, AsyncReadExt};

/// Maximum number of bytes in a head; larger ones are errors.
const MAX_HEAD_BYTES: usize = 4 << 20;

/// Name as spelled, and value without the whitespace around it.
pub type Field = (String, Vec<u8>);

/// Direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    /// Response to a request of HTTP/1.1.
    Response,
    /// Response to a request of HTTP/1.0: never chunked or interim.
    OldResponse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    /// The end of the connection delimits the body.
    Close,
}

/// First line and fields.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub line: Vec<u8>,
    pub fields: Vec<Field>,
}

/// Body and trailers, as far as received.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
}

/// Reason why a message could not be read to its end.
#[derive(Debug)]
pub enum Fault {
    /// The stream ended inside the message.
    Truncated,
    Malformed(String),
}

impl Head {
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |(it, _)| it.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
    }

    /// Status code of a response.
    pub fn status(&self) -> u16 {
        String::from_utf8_lossy(&self.line[9..12])
            .parse()
            .unwrap_or_default()
    }

    fn parse(bytes: &[u8], kind: Kind) -> Result<Self, String> {
        let mut lines = split_lines(bytes).into_iter();
        let line = lines.next().unwrap_or_default().to_vec();
        match kind {
            Kind::Request => check_request_line(&line)?,
            Kind::Response | Kind::OldResponse => check_status_line(&line, kind)?,
        }
        let fields = lines.map(field).collect::<Result<_, _>>()?;
        let head = Self { line, fields };
        if kind == Kind::Request && head.values("host").count() != 1 {
            return Err(format!("{} Host fields", head.values("host").count()));
        }
        Ok(head)
    }

    /// Framing of a request.
    pub fn request_framing(&self) -> Result<Framing, String> {
        Ok(self.declared()?.unwrap_or(Framing::None))
    }

    /// Framing of a response to a request with a method.
    pub fn response_framing(&self, method: &[u8], kind: Kind) -> Result<Framing, String> {
        let declared = self.declared()?;
        let status = self.status();
        if declared == Some(Framing::Chunked)
            && (kind == Kind::OldResponse || status < 200 || status == 204)
        {
            return Err(format!("Transfer-Encoding in this response: {status}"));
        }
        if matches!(declared, Some(Framing::Length(_))) && (status < 200 || status == 204) {
            return Err(format!("Content-Length in a response with {status}"));
        }
        if method == b"HEAD" || status < 200 || status == 204 || status == 304 {
            return Ok(Framing::None);
        }
        match declared {
            Some(framing) => Ok(framing),
            None if kind == Kind::OldResponse => Ok(Framing::Close),
            None => Err("a response of HTTP/1.1 without a length".into()),
        }
    }

    fn declared(&self) -> Result<Option<Framing>, String> {
        let codings: Vec<&[u8]> = self.values("transfer-encoding").collect();
        let lengths: Vec<&[u8]> = self.values("content-length").collect();
        match (&codings[..], &lengths[..]) {
            ([], []) => Ok(None),
            ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
            ([], [length]) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
                let length = String::from_utf8_lossy(length).parse();
                length
                    .map(|length| Some(Framing::Length(length)))
                    .map_err(|error| error.to_string())
            }
            _ => Err(format!("the framing of {}", show(&self.fields))),
        }
    }
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Reader<S> {
    pub stream: S,
    pub buffer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Reads more bytes. Returns false at the end of the stream, clean or not.
    pub async fn fill(&mut self) -> bool {
        self.buffer.reserve(64 << 10);
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) > 0
    }

    /// Reads a head. Returns `None` if the stream ends before its first byte.
    pub async fn head(&mut self, kind: Kind) -> Result<Option<Head>, Fault> {
        let mut scanned = 0;
        loop {
            for at in scanned..self.buffer.len() {
                if self.buffer[at] != b'\n' {
                    continue;
                }
                if at == 0 || self.buffer[at - 1] != b'\r' {
                    return Err(self.malformed("a bare line feed in a head"));
                }
                if self.buffer[..at].ends_with(b"\r\n\r") {
                    let bytes: Vec<u8> = self.buffer.drain(..=at).collect();
                    return Head::parse(&bytes[..bytes.len() - 4], kind)
                        .map(Some)
                        .map_err(Fault::Malformed);
                }
            }
            scanned = self.buffer.len();
            if scanned > MAX_HEAD_BYTES {
                return Err(Fault::Malformed("a head without end".into()));
            }
            if !self.fill().await {
                return if scanned == 0 {
                    Ok(None)
                } else {
                    Err(Fault::Truncated)
                };
            }
        }
    }

    /// Reads a body into `content`, which has the received part after an error, too.
    pub async fn body(&mut self, framing: Framing, content: &mut Content) -> Result<(), Fault> {
        match framing {
            Framing::None => Ok(()),
            Framing::Length(length) => self.take(length, content).await,
            Framing::Close => {
                while self.fill().await {}
                content.body.append(&mut self.buffer);
                Ok(())
            }
            Framing::Chunked => loop {
                let size = self.line().await?;
                let digits = !size.is_empty() && size.len() <= 8;
                if !digits || !size.iter().all(u8::is_ascii_hexdigit) {
                    return Err(Fault::Malformed(format!(
                        "the chunk size {}",
                        size.escape_ascii()
                    )));
                }
                let size = usize::from_str_radix(&String::from_utf8_lossy(&size), 16)
                    .map_err(|error| Fault::Malformed(error.to_string()))?;
                if size == 0 {
                    loop {
                        let line = self.line().await?;
                        if line.is_empty() {
                            return Ok(());
                        }
                        content
                            .trailers
                            .push(field(&line).map_err(Fault::Malformed)?);
                    }
                }
                self.take(size, content).await?;
                if !self.line().await?.is_empty() {
                    return Err(Fault::Malformed(
                        "a chunk that does not end with CRLF".into(),
                    ));
                }
            },
        }
    }

    async fn take(&mut self, length: usize, content: &mut Content) -> Result<(), Fault> {
        let mut missing = length;
        loop {
            let part = self.buffer.len().min(missing);
            content.body.extend(self.buffer.drain(..part));
            missing -= part;
            if missing == 0 {
                return Ok(());
            }
            if !self.fill().await {
                return Err(Fault::Truncated);
            }
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, Fault> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                if line.pop() != Some(b'\r') || line.contains(&b'\r') {
                    return Err(self.malformed("a line with a bare LF or CR in a chunked body"));
                }
                return Ok(line);
            }
            if !self.fill().await {
                return Err(Fault::Truncated);
            }
        }
    }

    fn malformed(&self, what: &str) -> Fault {
        let start = &self.buffer[..self.buffer.len().min(200)];
        Fault::Malformed(format!("{what} near {}", start.escape_ascii()))
    }
}

fn split_lines(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        lines.push(&bytes[..end - 1]);
        bytes = &bytes[end + 1..];
    }
    lines.push(bytes);
    lines
}

fn check_request_line(line: &[u8]) -> Result<(), String> {
    let error = || Err(format!("the request line {}", line.escape_ascii()));
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = *parts else {
        return error();
    };
    let is_target = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#' || *byte >= 0x80;
    let is_form = target.starts_with(b"/") || (method == b"OPTIONS" && target == b"*");
    if !is_token(method) || !is_form || !target.iter().all(is_target) {
        return error();
    }
    let path = target
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default();
    let is_escape = |piece: &[u8]| piece.len() >= 2 && piece[..2].iter().all(u8::is_ascii_hexdigit);
    if !path.split(|byte| *byte == b'%').skip(1).all(is_escape) || str::from_utf8(target).is_err() {
        return error();
    }
    Ok(())
}

fn check_status_line(line: &[u8], kind: Kind) -> Result<(), String> {
    let version = line.starts_with(b"HTTP/1.1 ")
        || (kind == Kind::OldResponse && line.starts_with(b"HTTP/1.0 "));
    let code = line.get(9..12).unwrap_or_default();
    let digits = code.len() == 3 && code.iter().all(u8::is_ascii_digit) && code[0] != b'0';
    if !version || !digits || line.get(12) != Some(&b' ') || !is_text(&line[12..]) {
        return Err(format!("the status line {}", line.escape_ascii()));
    }
    Ok(())
}

fn field(line: &[u8]) -> Result<Field, String> {
    let error = || format!("the field line {}", line.escape_ascii());
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or_else(error)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if !is_token(name) || !is_text(value) {
        return Err(error());
    }
    Ok((String::from_utf8_lossy(name).into_owned(), value.to_vec()))
}

fn is_token(bytes: &[u8]) -> bool {
    let is = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|byte| !byte.is_ascii_control() || *byte == b'\t')
}

/// Text of fields for messages.
pub fn show(fields: &[Field]) -> String {
    let lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.escape_ascii()))
        .collect();
    format!("{lines:?}")
}
