//! Framing of bodies (RFC 9112 section 6): the fields that delimit a message, and their rules.

use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use crate::http::tokens;

/// Delimiter of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    Empty,
    /// `Content-Length`, in bytes.
    Length(u64),
    Chunked,
    /// The end of the connection. Responses only.
    UntilClose,
}

/// Reason why the framing of a message is invalid or not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("both Content-Length and Transfer-Encoding are present")]
    Both,
    #[error("more than one Content-Length")]
    RepeatedLength,
    #[error("invalid Content-Length")]
    Length,
    #[error("invalid Transfer-Encoding: only a single chunked is accepted")]
    Encoding,
    #[error("unsupported transfer coding in Transfer-Encoding: only chunked is accepted")]
    UnsupportedCoding,
    #[error("Transfer-Encoding in an HTTP/1.0 message")]
    EncodingInHttp10,
    /// RFC 9110 section 9.3.6.
    #[error("CONNECT with Content-Length or Transfer-Encoding: it has no content")]
    ConnectContent,
}

/// Fields that frame a message and manage its connection, collected while the head is parsed. They
/// belong to the codec and leave the header map, except `Content-Length`, and `Connection` with
/// options other than `close` and `keep-alive`.
#[derive(Debug, Default)]
pub(super) struct FramingFields {
    /// The first `Content-Length`.
    length: Option<HeaderValue>,
    lengths: usize,
    /// A further `Content-Length` differs from the first one.
    lengths_differ: bool,
    encoding: Option<HeaderValue>,
    encodings: usize,
    /// `Connection` has the option.
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

impl FramingFields {
    /// Visits a field of the head. Returns false if it does not belong into the header map.
    pub fn visit(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        if *name == header::CONTENT_LENGTH {
            self.lengths += 1;
            match &self.length {
                None => self.length = Some(value.clone()),
                Some(first) => {
                    self.lengths_differ |= equal_lengths(first) != equal_lengths(value);
                }
            }
            // A repetition is an error or collapses to the first one.
            return self.lengths == 1;
        }
        if *name == header::TRANSFER_ENCODING {
            self.encodings += 1;
            self.encoding = Some(value.clone());
            return false;
        }
        if *name == header::CONNECTION {
            let mut others = false;
            for option in tokens(value) {
                if option.eq_ignore_ascii_case(b"close") {
                    self.close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    self.keep_alive = true;
                } else {
                    self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                    others = true;
                }
            }
            return others;
        }
        true
    }

    /// Returns the framing of a request (RFC 9112 section 6.3). Any doubt is an error: an endpoint
    /// that resolves it differently would find another request in the body.
    pub fn of_request(&self, http11: bool) -> Result<Framing, FramingError> {
        match (self.encodings, self.lengths) {
            (0, 0) => Ok(Framing::Empty),
            (0, 1) => {
                let length = self.length.as_ref().and_then(length);
                Ok(match length.ok_or(FramingError::Length)? {
                    0 => Framing::Empty,
                    length => Framing::Length(length),
                })
            }
            (0, _) => Err(FramingError::RepeatedLength),
            _ if !http11 => Err(FramingError::EncodingInHttp10),
            (1, 0) => self.chunked(),
            (_, 0) => Err(FramingError::Encoding),
            _ => Err(FramingError::Both),
        }
    }

    /// Returns the framing of the response to a request with `method`. Equal repeated lengths count
    /// once, and `Transfer-Encoding` overrides `Content-Length`.
    ///
    /// The second value is the only valid `Content-Length` if the header map must get it: the map
    /// holds the first field, which may be a list.
    pub fn of_response(
        &self,
        http11: bool,
        method: &Method,
        status: StatusCode,
    ) -> Result<(Framing, Option<u64>), FramingError> {
        if self.encodings > 0 {
            if !http11 {
                return Err(FramingError::EncodingInHttp10);
            }
            if self.encodings > 1 {
                return Err(FramingError::Encoding);
            }
            let framing = self.chunked()?;
            return Ok((
                if has_no_body(method, status) {
                    Framing::Empty
                } else {
                    framing
                },
                None,
            ));
        }
        if self.lengths_differ {
            return Err(FramingError::RepeatedLength);
        }
        let length = match &self.length {
            None => None,
            Some(value) => Some(equal_lengths(value).ok_or(FramingError::Length)?),
        };
        let framing = match length {
            _ if has_no_body(method, status) => Framing::Empty,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        };
        Ok((framing, length))
    }

    fn chunked(&self) -> Result<Framing, FramingError> {
        let value = self
            .encoding
            .as_ref()
            .map_or(&b""[..], HeaderValue::as_bytes);
        if value.eq_ignore_ascii_case(b"chunked") {
            return Ok(Framing::Chunked);
        }
        let codings: Vec<&[u8]> = value
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .collect();
        match codings.split_last() {
            // A coding under a single final `chunked` is valid and not implemented.
            Some((last, others))
                if last.eq_ignore_ascii_case(b"chunked")
                    && others.iter().all(|coding| is_other_coding(coding)) =>
            {
                Err(FramingError::UnsupportedCoding)
            }
            _ => Err(FramingError::Encoding),
        }
    }
}

/// Returns true for a transfer coding other than `chunked` and the withdrawn `identity`.
fn is_other_coding(coding: &[u8]) -> bool {
    !coding.is_empty()
        && !coding.eq_ignore_ascii_case(b"chunked")
        && !coding.eq_ignore_ascii_case(b"identity")
        && coding.iter().all(u8::is_ascii_graphic)
}

/// Returns true for responses without a body, whatever their fields (RFC 9112 section 6.3).
pub fn has_no_body(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || *method == Method::CONNECT && status.is_success()
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Parses `Content-Length`: `1*DIGIT` of at most 19 digits, which always fit.
pub fn length(value: &HeaderValue) -> Option<u64> {
    digits(value.as_bytes())
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0_u64, |length, digit| {
        digit
            .is_ascii_digit()
            .then(|| length * 10 + u64::from(digit - b'0'))
    })
}

/// Parses a length, or a list of equal lengths (RFC 9110 section 8.6).
fn equal_lengths(value: &HeaderValue) -> Option<u64> {
    let mut lengths = value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(|length| digits(length.trim_ascii()));
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &'static str)]) -> FramingFields {
        let mut fields = FramingFields::default();
        for (name, value) in lines {
            let name = HeaderName::try_from(*name).unwrap();
            fields.visit(&name, &HeaderValue::from_static(value));
        }
        fields
    }

    const CL: &str = "content-length";
    const TE: &str = "transfer-encoding";

    #[test]
    fn accepts_exactly_one_framing_of_a_request() {
        use FramingError::{Both, Encoding, Length, RepeatedLength, UnsupportedCoding};
        for (lines, expected) in [
            (&[][..], Ok(Framing::Empty)),
            (&[(CL, "0")], Ok(Framing::Empty)),
            (&[(CL, "0005")], Ok(Framing::Length(5))),
            (
                &[(CL, "9999999999999999999")],
                Ok(Framing::Length(9_999_999_999_999_999_999)),
            ),
            (&[(CL, "10000000000000000000")], Err(Length)),
            (&[(CL, "")], Err(Length)),
            (&[(CL, "+5")], Err(Length)),
            (&[(CL, "-5")], Err(Length)),
            (&[(CL, "0x5")], Err(Length)),
            (&[(CL, "5,5")], Err(Length)),
            (&[(CL, "5"), (CL, "5")], Err(RepeatedLength)),
            (&[(CL, "5"), (CL, "6")], Err(RepeatedLength)),
            (&[(TE, "chunked")], Ok(Framing::Chunked)),
            (&[(TE, "Chunked")], Ok(Framing::Chunked)),
            (&[(TE, "gzip, chunked")], Err(UnsupportedCoding)),
            (&[(TE, "gzip")], Err(Encoding)),
            (&[(TE, "")], Err(Encoding)),
            (&[(TE, "identity")], Err(Encoding)),
            (&[(TE, "identity, chunked")], Err(Encoding)),
            (&[(TE, "chunked, chunked")], Err(Encoding)),
            (&[(TE, "chunked, gzip")], Err(Encoding)),
            (&[(TE, ", chunked")], Err(Encoding)),
            (&[(TE, "\"chunked\"")], Err(Encoding)),
            (&[(TE, "chunked"), (TE, "chunked")], Err(Encoding)),
            (&[(TE, "chunked"), (CL, "5")], Err(Both)),
            (&[(CL, "5"), (TE, "identity")], Err(Both)),
        ] {
            assert_eq!(fields(lines).of_request(true), expected, "{lines:?}");
        }
        let http10 = fields(&[(TE, "chunked")]).of_request(false);
        assert_eq!(http10, Err(FramingError::EncodingInHttp10));
    }

    #[test]
    fn frames_responses_by_status_method_and_fields() {
        let of = |lines, method, status: u16| {
            fields(lines).of_response(true, &method, StatusCode::from_u16(status).unwrap())
        };
        for (lines, method, status, expected) in [
            (&[][..], Method::GET, 200, Ok((Framing::UntilClose, None))),
            (
                &[(CL, "5")],
                Method::GET,
                200,
                Ok((Framing::Length(5), Some(5))),
            ),
            (
                &[(CL, "5"), (CL, "5")],
                Method::GET,
                200,
                Ok((Framing::Length(5), Some(5))),
            ),
            (
                &[(CL, "5, 5")],
                Method::GET,
                200,
                Ok((Framing::Length(5), Some(5))),
            ),
            (
                &[(CL, "5, 5"), (CL, "5")],
                Method::GET,
                200,
                Ok((Framing::Length(5), Some(5))),
            ),
            (&[(CL, "5, 6")], Method::GET, 200, Err(FramingError::Length)),
            (
                &[(CL, "5"), (CL, "6")],
                Method::GET,
                200,
                Err(FramingError::RepeatedLength),
            ),
            (
                &[(CL, "5")],
                Method::HEAD,
                200,
                Ok((Framing::Empty, Some(5))),
            ),
            (
                &[(CL, "5")],
                Method::GET,
                304,
                Ok((Framing::Empty, Some(5))),
            ),
            (
                &[(TE, "chunked")],
                Method::GET,
                204,
                Ok((Framing::Empty, None)),
            ),
            (
                &[(TE, "chunked"), (CL, "5")],
                Method::GET,
                200,
                Ok((Framing::Chunked, None)),
            ),
            (
                &[(TE, "gzip")],
                Method::GET,
                200,
                Err(FramingError::Encoding),
            ),
        ] {
            assert_eq!(of(lines, method, status), expected, "{lines:?} {status}");
        }
    }

    #[test]
    fn takes_connection_management_out_of_the_header_map() {
        let connection = |value| {
            let mut fields = FramingFields::default();
            let kept = fields.visit(&header::CONNECTION, &HeaderValue::from_static(value));
            (kept, fields.close, fields.keep_alive)
        };
        assert_eq!(connection("close"), (false, true, false));
        assert_eq!(connection("Keep-Alive"), (false, false, true));
        assert_eq!(connection("keep-alive, Upgrade"), (true, false, true));
        assert_eq!(connection("x-secret, close"), (true, true, false));
    }
}
