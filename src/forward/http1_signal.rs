//! Detection of endpoints that require HTTP/1.1 on an HTTP/2 connection, from the bytes that they
//! send.
//!
//! hyper does not report a GOAWAY to requests that it may still answer, nor the reason of one that
//! closes an idle connection.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::http::ReadObserver;

/// Length of the head of a frame (RFC 9113 section 4.1), and of a GOAWAY up to its error code
/// (section 6.8).
const FRAME_HEAD: usize = 9;
const GOAWAY_HEAD: usize = FRAME_HEAD + 8;

const GOAWAY: u8 = 7;
const HTTP_1_1_REQUIRED: [u8; 4] = 0x0d_u32.to_be_bytes();

/// Sign that an endpoint requires HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http1Reason {
    /// GOAWAY with `HTTP_1_1_REQUIRED` (RFC 9113 section 7). Requests up to its last stream may
    /// have been processed.
    GoAway,
    /// The first bytes are a response of HTTP/1.1, so that no request was processed. Some servers
    /// select the first protocol of ALPN that is offered, whatever they speak.
    Response,
}

/// Signal from the stream of a connection to its requests.
#[derive(Debug, Default)]
pub(super) struct Http1Signal {
    reason: Cell<Option<Http1Reason>>,
    raised: Notify,
}

impl Http1Signal {
    pub fn reason(&self) -> Option<Http1Reason> {
        self.reason.get()
    }

    /// Waits until the endpoint requires HTTP/1.1.
    pub async fn raised(&self) {
        // No other task runs between the check and the first poll of the notification.
        if self.reason.get().is_none() {
            self.raised.notified().await;
        }
    }

    fn raise(&self, reason: Http1Reason) {
        self.reason.set(Some(reason));
        self.raised.notify_waiters();
    }
}

/// Observer of an HTTP/2 connection that raises a signal.
#[derive(Debug)]
pub(super) struct Http1Detector {
    frames: Frames,
    signal: Rc<Http1Signal>,
}

impl Http1Detector {
    pub fn new(signal: Rc<Http1Signal>) -> Self {
        Self {
            frames: Frames::default(),
            signal,
        }
    }
}

impl ReadObserver for Http1Detector {
    fn observe(&mut self, bytes: &[u8]) {
        if self.signal.reason().is_none()
            && let Some(reason) = self.frames.read(bytes)
        {
            self.signal.raise(reason);
        }
    }
}

/// State of the frames that an endpoint sends.
#[derive(Debug, Default)]
struct Frames {
    /// Number of bytes until the next head of a frame.
    skip: usize,
    head: [u8; GOAWAY_HEAD],
    head_length: usize,
    /// The first head was read.
    began: bool,
}

impl Frames {
    /// Follows bytes of the endpoint. Returns the first sign in them.
    fn read(&mut self, mut bytes: &[u8]) -> Option<Http1Reason> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let length = self.skip.min(bytes.len());
                self.skip -= length;
                bytes = &bytes[length..];
                continue;
            }
            let wanted = match self.head_length {
                ..FRAME_HEAD => FRAME_HEAD,
                _ => GOAWAY_HEAD,
            };
            let length = (wanted - self.head_length).min(bytes.len());
            let (part, rest) = bytes.split_at(length);
            self.head[self.head_length..][..length].copy_from_slice(part);
            self.head_length += length;
            bytes = rest;
            if self.head_length == wanted
                && let Some(reason) = self.complete_head()
            {
                return Some(reason);
            }
        }
        None
    }

    /// Handles the head of a frame, or of a GOAWAY with its error code.
    fn complete_head(&mut self) -> Option<Http1Reason> {
        if !std::mem::replace(&mut self.began, true) && self.head.starts_with(b"HTTP/") {
            return Some(Http1Reason::Response);
        }
        let [l0, l1, l2, kind, ..] = self.head;
        let payload = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let is_goaway = kind == GOAWAY && payload >= GOAWAY_HEAD - FRAME_HEAD;
        if is_goaway && self.head_length == FRAME_HEAD {
            return None;
        }
        self.skip = payload - (self.head_length - FRAME_HEAD);
        self.head_length = 0;
        (is_goaway && self.head.ends_with(&HTTP_1_1_REQUIRED)).then_some(Http1Reason::GoAway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 0, 0, 0, 0, 1], payload].concat()
    }

    fn goaway(code: u8, debug: &[u8]) -> Vec<u8> {
        frame(GOAWAY, &[&[0, 0, 0, 1, 0, 0, 0, code], debug].concat())
    }

    /// Sign in a connection that is read in parts of `size` bytes.
    fn sign(connection: &[u8], size: usize) -> Option<Http1Reason> {
        let mut frames = Frames::default();
        connection.chunks(size).find_map(|part| frames.read(part))
    }

    #[test]
    fn finds_signs_in_any_chunks() {
        let settings = frame(4, &[0; 12]);
        // A payload with the bytes of a GOAWAY.
        let data = frame(0, &goaway(13, b""));
        let required = Some(Http1Reason::GoAway);
        for (connection, expected) in [
            ([&*settings, &data, &goaway(13, b"")].concat(), required),
            ([&*settings, &goaway(13, b"text")].concat(), required),
            (
                [&*settings, &goaway(0, b"wait"), &goaway(13, b"")].concat(),
                required,
            ),
            (goaway(13, b""), required),
            ([&*settings, &data, &goaway(0, b"")].concat(), None),
            ([&*settings, &goaway(1, &[0, 0, 0, 13])].concat(), None),
            // Too short for an error code; h2 closes the connection.
            (
                [&*settings, &frame(GOAWAY, &[13; 4]), &settings].concat(),
                None,
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
                Some(Http1Reason::Response),
            ),
            ([&*settings, b"HTTP/1.1 200 OK\r\n"].concat(), None),
            (b"SSH-2.0-x\r\n".to_vec(), None),
        ] {
            for size in [1, 2, 8, 9, 10, 17, connection.len()] {
                assert_eq!(
                    sign(&connection, size),
                    expected,
                    "{connection:?} by {size}"
                );
            }
        }
    }

    #[tokio::test]
    async fn signal_reaches_earlier_and_later_waiters() {
        let signal = Rc::new(Http1Signal::default());
        let waiting = Rc::clone(&signal);
        tokio::join!(waiting.raised(), async {
            signal.raise(Http1Reason::GoAway);
        });
        signal.raised().await;
        assert_eq!(signal.reason(), Some(Http1Reason::GoAway));
    }
}
