//! Cases: input of the client or of the endpoint, and the expected outcome.
//!
//! Placeholders in bytes: `@P` is the path of the pod, `@H` a `Host` line, `@T` the line with the
//! token, `@A` both lines, `@C` the IP address of the client and `@E` the address of the endpoint.

use super::endpoint::Script;

/// Request that the endpoint must receive.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Method and target.
    pub line: Vec<u8>,
    pub host: Vec<u8>,
    /// All fields that the bastion does not set, in order: `Name: value`.
    pub fields: Vec<Vec<u8>>,
    /// Fields that the bastion sets, in any spelling of the name.
    pub own: Vec<&'static str>,
    pub absent: Vec<&'static str>,
    pub body: Vec<u8>,
    pub trailers: Vec<Vec<u8>>,
    /// Names are compared in lower case.
    pub any_spelling: bool,
}

/// Response that the client must receive.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub reason: Option<&'static str>,
    pub fields: Option<Vec<Vec<u8>>>,
    pub own: Vec<&'static str>,
    pub absent: Vec<&'static str>,
    pub body: Vec<u8>,
    pub trailers: Vec<Vec<u8>>,
    pub interim: Vec<u16>,
    /// The body is cut after a part of `body`.
    pub cut: bool,
    /// The connection to the endpoint serves the next request.
    pub reuse: Option<bool>,
}

/// Outcome of a case.
#[derive(Clone, Debug)]
pub enum Want {
    /// A `Status` with one of the codes, and the end of the connection.
    Reject(Vec<u16>),
    /// A `Status` with one of the codes. The connection may stay open.
    Status(Vec<u16>),
    /// The endpoint receives no complete request, and the connection ends, perhaps after a 400.
    Cut,
    Pass,
    Answer(Box<Answer>),
    /// A 503 whose message contains the text.
    BadGateway(&'static str),
    /// A `Status` with the code, for a response of the endpoint.
    Failure(u16),
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// Parts of the input. The client waits for an interim response before each but the first.
    pub parts: Vec<Vec<u8>>,
    pub want: Want,
    /// Requests that the endpoint must receive.
    pub requests: Vec<Expected>,
    /// The client's connection ends after the responses.
    pub closes: bool,
    /// Each byte is written alone.
    pub dripped: bool,
    /// The client closes its side after the input.
    pub ends: bool,
    pub script: Option<Script>,
}

fn case(name: impl Into<String>, input: impl AsRef<[u8]>, want: Want) -> Case {
    Case {
        name: name.into(),
        parts: vec![input.as_ref().to_vec()],
        want,
        requests: Vec::new(),
        closes: false,
        dripped: false,
        ends: false,
        script: None,
    }
}

/// Input that must be rejected with a `Status`.
pub fn reject(name: impl Into<String>, input: impl AsRef<[u8]>, code: u16) -> Case {
    case(name, input, Want::Reject(vec![code]))
}

/// As [`reject`], with any of the codes.
pub fn reject_any(name: impl Into<String>, input: impl AsRef<[u8]>, codes: &[u16]) -> Case {
    case(name, input, Want::Reject(codes.to_vec()))
}

/// A well-formed request that gets a `Status` and is not forwarded.
pub fn status(name: impl Into<String>, input: impl AsRef<[u8]>, codes: &[u16]) -> Case {
    case(name, input, Want::Status(codes.to_vec()))
}

/// A request whose body must not complete.
pub fn cut(name: impl Into<String>, input: impl AsRef<[u8]>) -> Case {
    case(name, input, Want::Cut)
}

/// Input of which the endpoint must receive a request with the method and target `line`.
pub fn pass(name: impl Into<String>, input: impl AsRef<[u8]>, line: impl AsRef<[u8]>) -> Case {
    case(name, input, Want::Pass).and(line)
}

/// A GET to which the endpoint sends `response`, and the status that the client must receive.
pub fn answer(name: impl Into<String>, response: impl AsRef<[u8]>, status: u16) -> Case {
    let answer = Answer {
        status,
        ..Answer::default()
    };
    answered(name, response, Want::Answer(Box::new(answer)))
}

/// A GET to which the endpoint sends an invalid response. `text` is in the message of the 503.
pub fn bad_gateway(
    name: impl Into<String>,
    response: impl AsRef<[u8]>,
    text: &'static str,
) -> Case {
    answered(name, response, Want::BadGateway(text))
}

/// A GET to which the endpoint sends `response`. The client gets a `Status`.
pub fn failure(name: impl Into<String>, response: impl AsRef<[u8]>, code: u16) -> Case {
    answered(name, response, Want::Failure(code))
}

fn answered(name: impl Into<String>, response: impl AsRef<[u8]>, want: Want) -> Case {
    let mut case = case(name, "GET @P/x HTTP/1.1\r\n@A\r\n", want);
    case.script = Some(Script {
        bytes: response.as_ref().to_vec(),
        closes: false,
    });
    case
}

/// A GET of `/x` with further field lines.
pub fn get(fields: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET @P/x HTTP/1.1\r\n@A", fields.as_ref(), b"\r\n"].concat()
}

/// A POST of `/x` with further field lines and the bytes after the head.
pub fn post(fields: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Vec<u8> {
    let head = [b"POST @P/x HTTP/1.1\r\n@A", fields.as_ref(), b"\r\n"].concat();
    [&head, body.as_ref()].concat()
}

fn lines<L: AsRef<[u8]>>(lines: &[L]) -> Vec<Vec<u8>> {
    lines.iter().map(|line| line.as_ref().to_vec()).collect()
}

impl Case {
    /// Adds a request that the endpoint must receive.
    pub fn and(mut self, line: impl AsRef<[u8]>) -> Self {
        self.requests.push(Expected {
            line: line.as_ref().to_vec(),
            host: b"h".to_vec(),
            fields: Vec::new(),
            own: Vec::new(),
            absent: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            any_spelling: false,
        });
        self
    }

    fn last(&mut self) -> &mut Expected {
        self.requests
            .last_mut()
            .expect("a case that passes has a request")
    }

    fn response(&mut self) -> &mut Answer {
        match &mut self.want {
            Want::Answer(answer) => answer,
            _ => panic!("{} expects no response", self.name),
        }
    }

    pub fn host(mut self, host: impl AsRef<[u8]>) -> Self {
        self.last().host = host.as_ref().to_vec();
        self
    }

    /// Sets the fields that must pass, in order.
    pub fn fields<L: AsRef<[u8]>>(mut self, fields: &[L]) -> Self {
        match &mut self.want {
            Want::Answer(answer) => answer.fields = Some(lines(fields)),
            _ => self.last().fields = lines(fields),
        }
        self
    }

    /// Sets fields of the bastion or of framing that must be present once.
    pub fn own(mut self, fields: &[&'static str]) -> Self {
        match &mut self.want {
            Want::Answer(answer) => answer.own = fields.to_vec(),
            _ => self.last().own = fields.to_vec(),
        }
        self
    }

    pub fn absent(mut self, names: &[&'static str]) -> Self {
        match &mut self.want {
            Want::Answer(answer) => answer.absent = names.to_vec(),
            _ => self.last().absent = names.to_vec(),
        }
        self
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        match &mut self.want {
            Want::Answer(answer) => answer.body = body.as_ref().to_vec(),
            _ => self.last().body = body.as_ref().to_vec(),
        }
        self
    }

    pub fn trailers<L: AsRef<[u8]>>(mut self, trailers: &[L]) -> Self {
        match &mut self.want {
            Want::Answer(answer) => answer.trailers = lines(trailers),
            _ => self.last().trailers = lines(trailers),
        }
        self
    }

    /// Names may have another spelling: those of HTTP/2 have none of their own.
    pub fn any_spelling(mut self) -> Self {
        for request in &mut self.requests {
            request.any_spelling = true;
        }
        self
    }

    /// Sends a further part after an interim response.
    pub fn then(mut self, part: impl AsRef<[u8]>) -> Self {
        self.parts.push(part.as_ref().to_vec());
        self
    }

    /// The bastion closes the connection after the responses.
    pub fn closes(mut self) -> Self {
        self.closes = true;
        self
    }

    /// After the requests that pass, the rest of the input is rejected.
    pub fn then_rejects(mut self, code: u16) -> Self {
        self.want = Want::Reject(vec![code]);
        self
    }

    pub fn dripped(mut self) -> Self {
        self.dripped = true;
        self
    }

    /// The client closes its side after the input.
    pub fn client_ends(mut self) -> Self {
        self.ends = true;
        self
    }

    /// Replaces the request of a case about a response.
    pub fn to(mut self, request: impl AsRef<[u8]>) -> Self {
        self.parts = vec![request.as_ref().to_vec()];
        self
    }

    /// The endpoint closes its connection after the response.
    pub fn endpoint_closes(mut self) -> Self {
        if let Some(script) = &mut self.script {
            script.closes = true;
        }
        self
    }

    pub fn reason(mut self, reason: &'static str) -> Self {
        self.response().reason = Some(reason);
        self
    }

    pub fn interim(mut self, codes: &[u16]) -> Self {
        self.response().interim = codes.to_vec();
        self
    }

    pub fn cut(mut self) -> Self {
        self.response().cut = true;
        self
    }

    pub fn reuse(mut self, reuse: bool) -> Self {
        self.response().reuse = Some(reuse);
        self
    }
}

impl Case {
    /// Text of the expected outcome.
    pub fn summary(&self) -> String {
        match &self.want {
            Want::Reject(codes) => format!("a rejection with {codes:?}"),
            Want::Status(codes) => format!("a Status with {codes:?}"),
            Want::Cut => "a cut".into(),
            Want::Pass => {
                let lines: Vec<String> = self
                    .requests
                    .iter()
                    .map(|request| format!("{:.100}", request.line.escape_ascii().to_string()))
                    .collect();
                lines.join(" | ")
            }
            Want::Answer(answer) if answer.cut => format!("{} and a cut", answer.status),
            Want::Answer(answer) => format!("{}", answer.status),
            Want::BadGateway(text) => format!("a 503 that names {text:?}"),
            Want::Failure(code) => format!("a {code}"),
        }
    }
}
