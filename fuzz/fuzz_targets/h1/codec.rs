//! The codec, driven as its connections drive it: input arrives in pieces.

use bytes::BytesMut;
use http::{HeaderMap, Method, Version};
use kube_bastion::http::h1::{
    self, Decoded, Decoder, Mode, ParsedRequest, ParsedResponse, find_head_end, parse_request,
    parse_response,
};

use super::message::{Body, Ending, Field, Framing, Head, Line, Message, Transcript, by_name};

pub enum Parsed {
    Request(ParsedRequest),
    Response(ParsedResponse),
}

pub struct Reader {
    /// Method of the request, if responses are read.
    method: Option<Method>,
    most: usize,
    input: BytesMut,
    scanned: usize,
    decoder: Option<Decoder>,
    messages: Vec<Message>,
    parsed: Vec<Parsed>,
    ending: Option<Ending>,
}

impl Reader {
    pub fn new(method: Option<Method>, most: usize) -> Self {
        Self {
            method,
            most,
            input: BytesMut::new(),
            scanned: 0,
            decoder: None,
            messages: Vec::new(),
            parsed: Vec::new(),
            ending: None,
        }
    }

    pub fn feed(&mut self, piece: &[u8]) {
        self.input.extend_from_slice(piece);
        while self.ending.is_none() {
            let advanced = if self.decoder.is_some() {
                self.decode()
            } else {
                self.messages.len() < self.most && self.parse()
            };
            if !advanced {
                return;
            }
        }
    }

    /// Ends the input.
    pub fn finish(mut self) -> (Transcript, Vec<Parsed>) {
        let ending = self.ending.unwrap_or_else(|| match &mut self.decoder {
            None => Ending::Rest(self.input.to_vec()),
            Some(decoder) => {
                if decoder.end_of_input().is_ok() {
                    assert!(decoder.is_done());
                    Ending::Rest(Vec::new())
                } else {
                    Ending::InBody
                }
            }
        });
        let transcript = Transcript {
            messages: self.messages,
            ending,
        };
        (transcript, self.parsed)
    }

    /// Returns false if more input is needed.
    fn parse(&mut self) -> bool {
        let Some(end) = find_head_end(&self.input, self.scanned) else {
            self.scanned = self.input.len();
            return false;
        };
        self.scanned = 0;
        let head = self.input.split_to(end).freeze();
        let parsed = match &self.method {
            None => parse_request(&head).ok().map(Parsed::Request),
            Some(method) => parse_response(&head, method).ok().map(Parsed::Response),
        };
        let Some(parsed) = parsed else {
            self.ending = Some(Ending::Rejected);
            return true;
        };
        let (framing, mode) = match &parsed {
            Parsed::Request(request) => (request.framing, Mode::Strict),
            Parsed::Response(response) => (response.framing, Mode::Tolerant),
        };
        let decoder = Decoder::new(framing, mode);
        assert_eq!(decoder.is_done(), framing == h1::Framing::Empty);
        self.decoder = Some(decoder);
        self.messages.push(Message {
            head: head_of(&parsed),
            body: Body::default(),
        });
        self.parsed.push(parsed);
        true
    }

    /// Returns false if more input is needed.
    fn decode(&mut self) -> bool {
        let decoder = self.decoder.as_mut().expect("a body is being read");
        let body = &mut self.messages.last_mut().expect("it has a head").body;
        let remaining = decoder.remaining();
        match decoder.decode(&mut self.input) {
            Ok(Decoded::Data(data)) => {
                assert!(!data.is_empty(), "a part of a body without bytes");
                let left = remaining.map(|remaining| remaining - data.len() as u64);
                assert_eq!(decoder.remaining(), left);
                body.data.extend_from_slice(&data);
            }
            Ok(Decoded::Trailers(trailers)) => {
                assert!(decoder.is_done());
                body.trailers = by_name(&pairs(&trailers));
            }
            Ok(Decoded::End) => {
                assert!(decoder.is_done());
                self.decoder = None;
            }
            Ok(Decoded::NeedsInput) => {
                assert!(!decoder.is_done());
                return false;
            }
            Err(_) => {
                // What follows cannot be separated from the body.
                self.input.extend_from_slice(b"\r\n\r\n0\r\n\r\n");
                let again = decoder.decode(&mut self.input);
                assert!(again.is_err(), "{again:?} behind a malformed body");
                self.ending = Some(Ending::InBody);
            }
        }
        true
    }
}

fn head_of(parsed: &Parsed) -> Head {
    match parsed {
        Parsed::Request(request) => {
            let head = &request.head;
            Head {
                line: Line::Request {
                    method: head.method.as_str().into(),
                    authority: head.target.authority().map(Into::into),
                    target: head.target.path_and_query().into(),
                    http11: head.version == Version::HTTP_11,
                },
                fields: spelled(&head.headers, head.names.iter()),
                framing: framing(request.framing),
                keep_alive: request.keep_alive,
                expects_continue: request.expects_continue,
                dropped: 0,
            }
        }
        Parsed::Response(response) => Head {
            line: Line::Response {
                status: response.status.as_u16(),
                reason: match &response.reason {
                    Some(reason) => reason.as_bytes().to_vec(),
                    None => Vec::new(),
                },
            },
            fields: pairs(&response.headers),
            framing: framing(response.framing),
            keep_alive: response.keep_alive,
            expects_continue: false,
            dropped: response.dropped,
        },
    }
}

fn framing(framing: h1::Framing) -> Framing {
    match framing {
        h1::Framing::Empty => Framing::Empty,
        h1::Framing::Length(length) => Framing::Length(length),
        h1::Framing::Chunked => Framing::Chunked,
        h1::Framing::UntilClose => Framing::UntilClose,
    }
}

/// Returns the fields in the order of the map, with names in lower case.
fn pairs(headers: &HeaderMap) -> Vec<Field> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_bytes().into()))
        .collect()
}

/// Returns the fields in the order and spelling of `names`, which must be those of the map.
fn spelled<'n>(headers: &HeaderMap, names: impl Iterator<Item = &'n [u8]>) -> Vec<Field> {
    let mut remaining = pairs(headers);
    let mut fields = Vec::new();
    for name in names {
        let found = remaining
            .iter()
            .position(|(other, _)| other.eq_ignore_ascii_case(name))
            .expect("each name has a value");
        fields.push((name.to_vec(), remaining.remove(found).1));
    }
    assert!(
        remaining.is_empty(),
        "a value without a name: {remaining:?}"
    );
    fields
}
