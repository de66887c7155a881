//! Data stream and error stream of a connection to a port.

use std::task::Waker;

use bytes::BytesMut;
use tokio::time::Instant;

use super::super::StreamError;

/// Maximum length in bytes of the text of an error. The rest is dropped.
const MAX_ERROR_TEXT: usize = 4096;

/// Data stream and error stream of a connection to a port.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) port: u16,
    pub(super) has_data_reply: bool,
    pub(super) has_error_reply: bool,
    pub(super) receive: BytesMut,
    pub(super) receive_end: Option<ReceiveEnd>,
    /// Time at which the buffer became full, or was read since.
    pub(super) full: Option<Instant>,
    pub(super) send: BytesMut,
    pub(super) send_end: SendEnd,
    pub(super) is_queued: bool,
    /// Data frames sent since data was received.
    pub(super) unanswered: u32,
    pub(super) error_text: Vec<u8>,
    pub(super) has_error_ended: bool,
    /// Nothing is sent or received any more.
    pub(super) is_done: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiveEnd {
    Fin,
    Reset,
    Stalled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendEnd {
    Open,
    Requested,
    Sent,
}

impl Pair {
    pub(super) fn new(port: u16) -> Self {
        Self {
            port,
            has_data_reply: false,
            has_error_reply: false,
            receive: BytesMut::new(),
            receive_end: None,
            full: None,
            send: BytesMut::new(),
            send_end: SendEnd::Open,
            is_queued: false,
            unanswered: 0,
            error_text: Vec::new(),
            has_error_ended: false,
            is_done: false,
            reader: None,
            writer: None,
        }
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    /// Returns the reason why the connection has failed.
    pub(super) fn failure(&self) -> Option<StreamError> {
        let port = self.port;
        if self.has_error_ended && !self.error_text.is_empty() {
            let text = String::from_utf8_lossy(&self.error_text).into_owned();
            return Some(StreamError::Remote { text });
        }
        match self.receive_end? {
            ReceiveEnd::Fin => None,
            ReceiveEnd::Reset => Some(StreamError::Reset { port }),
            ReceiveEnd::Stalled => Some(StreamError::Stalled { port }),
        }
    }

    /// Appends to the text of the error.
    pub(super) fn explain(&mut self, text: &[u8]) {
        let room = MAX_ERROR_TEXT - self.error_text.len();
        self.error_text.extend(&text[..text.len().min(room)]);
    }
}

/// Ids of the streams of the pair with a number: the error stream is opened first.
pub(super) fn ids(number: u32) -> (u32, u32) {
    (4 * number + 1, 4 * number + 3)
}

/// Returns the id of the data stream of a pair, and whether `id` is that of its error stream.
pub(super) fn pair_of(id: u32) -> (u32, bool) {
    match id % 4 {
        1 => (id + 2, true),
        _ => (id, false),
    }
}
