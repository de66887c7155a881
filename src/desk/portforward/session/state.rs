//! State of a session without I/O: what frames of the server change, and which frames are sent.

mod pair;
mod receive;

use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::Instant;

use super::super::spdy::{Encoder, MAX_DATA, MAX_STREAM_ID, ResetStatus};
use super::{SessionError, StreamError};
use pair::{Pair, ReceiveEnd, SendEnd, ids};

/// Size in bytes of the buffer of a stream towards the pod.
const SEND_BUFFER: usize = 64 * 1024;
/// Number of received bytes of a stream from which on the session is held up. A read of the
/// connection can exceed it once.
const RECEIVE_BUFFER: usize = 128 * 1024;
/// Maximum number of bytes of control frames that wait for the connection.
const MAX_CONTROL: usize = 64 * 1024;
/// Number of bytes of frames that are written together.
const BATCH: usize = 32 * 1024;
/// Time after which a local client that does not read is disconnected. Checked with each ping, so
/// that connections that wait for it are accepted within their own 30 s.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time after which a full buffer holds up the session. Fast clients drain theirs much sooner.
const HOLD_UP: Duration = Duration::from_millis(100);
/// Number of data frames without an answer on their stream from which on the kubelet may be blocked
/// by a backend. It queues 50 per stream.
const UPLOAD_FRAMES: u32 = 32;

/// State of a session.
#[derive(Debug, Default)]
pub(super) struct State {
    encoder: Encoder,
    /// Control frames that wait for the connection.
    control: Vec<u8>,
    /// Streams by the id of their data stream.
    pairs: HashMap<u32, Pair>,
    /// Streams with data or an end to send, in the order of their turns.
    ready: VecDeque<u32>,
    /// Number of pairs created.
    created: u32,
    last_ping: u32,
    /// Number of streams whose receive buffer is full.
    full: usize,
    /// Time since when there is such a stream.
    held_up: Option<Instant>,
    is_draining: bool,
    is_closing: bool,
    end: Option<SessionError>,
    driver: Option<Waker>,
}

/// Result of an attempt to read or write.
#[derive(Debug)]
pub(super) enum Attempt<T> {
    Done(T),
    /// The waker was registered.
    Wait,
    Failed(StreamError),
}

impl State {
    pub(super) fn is_open(&self) -> bool {
        self.end.is_none() && !self.is_draining
    }

    /// Returns true if nothing may be read from the connection.
    pub(super) fn is_full(&self) -> bool {
        self.full > 0
    }

    pub(super) fn is_held_up(&self) -> bool {
        let held_up = self.held_up.map(|since| since.elapsed());
        held_up.is_some_and(|time| time >= HOLD_UP)
    }

    fn add_full(&mut self) {
        self.full += 1;
        self.held_up.get_or_insert_with(Instant::now);
    }

    fn remove_full(&mut self) {
        self.full -= 1;
        if self.full == 0 {
            self.held_up = None;
            self.wake_driver();
        }
    }

    /// Opens the streams of a connection to a port. Returns the id of its data stream.
    pub(super) fn open(&mut self, port: u16) -> Result<u32, StreamError> {
        if let Some(end) = &self.end {
            return Err(end.clone().into());
        }
        if self.is_draining {
            return Err(SessionError::Closed.into());
        }
        if self.created >= MAX_STREAM_ID / 4 {
            return Err(SessionError::Exhausted.into());
        }
        if self.control.len() > MAX_CONTROL {
            return Err(StreamError::Congested);
        }
        let (error, data) = ids(self.created);
        let (port_text, request) = (port.to_string(), self.created.to_string());
        for (id, kind) in [(error, "error"), (data, "data")] {
            let headers = [
                ("streamType", kind),
                ("port", &port_text),
                ("requestID", &request),
            ];
            self.encoder.syn_stream(id, &headers, &mut self.control);
        }
        self.created += 1;
        self.pairs.insert(data, Pair::new(port));
        self.wake_driver();
        Ok(data)
    }

    /// Forgets a connection, and resets it unless both sides have ended.
    pub(super) fn remove(&mut self, id: u32) {
        let Some(pair) = self.pairs.remove(&id) else {
            return;
        };
        if pair.full.is_some() {
            self.remove_full();
        }
        let has_ended = pair.send_end == SendEnd::Sent && pair.receive_end.is_some();
        if !pair.is_done && !has_ended && self.end.is_none() {
            Encoder::rst_stream(id, ResetStatus::CANCEL, &mut self.control);
        }
        self.wake_driver();
    }

    /// Ends the session once it has no streams.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
        self.wake_driver();
    }

    /// Returns true if no handle of the session is left.
    pub(super) fn is_unused(&self) -> bool {
        self.is_closing && self.pairs.is_empty()
    }

    pub(super) fn end(&mut self, end: SessionError) {
        self.end = Some(end);
        self.pairs.values_mut().for_each(Pair::wake);
    }

    /// Returns true once the kubelet has accepted both streams of a connection.
    pub(super) fn opened(&mut self, id: u32, waker: &Waker) -> Attempt<()> {
        let (Some(pair), end) = (self.pairs.get_mut(&id), &self.end) else {
            return Attempt::Failed(SessionError::Closed.into());
        };
        // A connection that has failed since is the same as one that fails later.
        if pair.has_data_reply && pair.has_error_reply {
            Attempt::Done(())
        } else if let Some(failure) = pair.failure() {
            Attempt::Failed(failure)
        } else if let Some(end) = end {
            Attempt::Failed(end.clone().into())
        } else {
            pair.reader = Some(waker.clone());
            Attempt::Wait
        }
    }

    /// Reads received bytes of a connection with `take`, which gets the buffer and removes what it
    /// takes. It is not called at the end.
    pub(super) fn read(
        &mut self,
        id: u32,
        waker: &Waker,
        take: impl FnOnce(&mut BytesMut),
    ) -> Attempt<()> {
        let (Some(pair), end) = (self.pairs.get_mut(&id), &self.end) else {
            return Attempt::Failed(SessionError::Closed.into());
        };
        if !pair.receive.is_empty() {
            take(&mut pair.receive);
            if pair.receive.is_empty() {
                // The connection may be silent for hours.
                pair.receive = BytesMut::new();
            }
            if pair.full.is_some() {
                let is_full = pair.receive.len() > RECEIVE_BUFFER / 2;
                pair.full = is_full.then(Instant::now);
                if !is_full {
                    self.remove_full();
                }
            }
            return Attempt::Done(());
        }
        if let Some(failure) = pair.failure() {
            Attempt::Failed(failure)
        } else if pair.receive_end == Some(ReceiveEnd::Fin) {
            Attempt::Done(())
        } else if let Some(end) = end {
            Attempt::Failed(end.clone().into())
        } else {
            pair.reader = Some(waker.clone());
            Attempt::Wait
        }
    }

    /// Takes bytes that a connection sends. Returns their number.
    pub(super) fn write(&mut self, id: u32, waker: &Waker, bytes: &[u8]) -> Attempt<Option<usize>> {
        let (Some(pair), end) = (self.pairs.get_mut(&id), &self.end) else {
            return Attempt::Failed(SessionError::Closed.into());
        };
        if let Some(end) = end {
            return Attempt::Failed(end.clone().into());
        }
        if pair.is_done || pair.send_end != SendEnd::Open {
            return match pair.failure() {
                Some(failure) => Attempt::Failed(failure),
                None => Attempt::Done(None),
            };
        }
        let length = bytes.len().min(SEND_BUFFER - pair.send.len());
        if length == 0 && !bytes.is_empty() {
            pair.writer = Some(waker.clone());
            return Attempt::Wait;
        }
        pair.send.extend_from_slice(&bytes[..length]);
        self.queue(id);
        Attempt::Done(Some(length))
    }

    /// Ends the sending side of a connection. Done once the end has been passed on.
    pub(super) fn finish(&mut self, id: u32, waker: &Waker) -> Attempt<()> {
        let (Some(pair), end) = (self.pairs.get_mut(&id), &self.end) else {
            return Attempt::Done(());
        };
        if pair.is_done || end.is_some() || pair.send_end == SendEnd::Sent {
            return Attempt::Done(());
        }
        pair.send_end = SendEnd::Requested;
        pair.writer = Some(waker.clone());
        self.queue(id);
        Attempt::Wait
    }

    fn queue(&mut self, id: u32) {
        if let Some(pair) = self.pairs.get_mut(&id)
            && !pair.is_queued
        {
            pair.is_queued = true;
            self.ready.push_back(id);
            self.wake_driver();
        }
    }

    pub(super) fn register(&mut self, driver: &Waker) {
        if !self
            .driver
            .as_ref()
            .is_some_and(|waker| waker.will_wake(driver))
        {
            self.driver = Some(driver.clone());
        }
    }

    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Appends the next frames to `output`. Connections take turns.
    pub(super) fn fill(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.control);
        while output.len() < BATCH {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some(pair) = self.pairs.get_mut(&id) else {
                continue;
            };
            pair.is_queued = false;
            let length = pair.send.len().min(MAX_DATA);
            let is_last = length == pair.send.len() && pair.send_end == SendEnd::Requested;
            if pair.is_done || (length == 0 && !is_last) {
                continue;
            }
            Encoder::data(id, &pair.send[..length], is_last, output);
            pair.send.advance(length);
            pair.unanswered += 1;
            if is_last {
                pair.send_end = SendEnd::Sent;
            }
            if pair.send.is_empty() {
                pair.send = BytesMut::new();
            } else {
                pair.is_queued = true;
                self.ready.push_back(id);
            }
            if let Some(writer) = pair.writer.take() {
                writer.wake();
            }
        }
    }

    /// Appends the end of the session to `output`.
    pub(super) fn fill_last(&mut self, output: &mut Vec<u8>) {
        output.append(&mut self.control);
        Encoder::go_away(output);
    }

    /// Disconnects local clients that hold up other streams for too long. Returns true if nothing is
    /// read from the connection.
    pub(super) fn check_stalls(&mut self, now: Instant) -> bool {
        let is_stalled = |pair: &Pair| {
            let full = pair.full.map(|since| now.duration_since(since));
            full.is_some_and(|time| time >= STALL_TIMEOUT)
        };
        if self.pairs.len() > 1 {
            let stalled = self.pairs.iter().filter(|(_, pair)| is_stalled(pair));
            for id in stalled.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.disconnect(id);
            }
        }
        self.is_full()
    }

    fn disconnect(&mut self, id: u32) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        if !pair.is_done {
            Encoder::rst_stream(id, ResetStatus::CANCEL, &mut self.control);
        }
        pair.is_done = true;
        pair.receive_end = Some(ReceiveEnd::Stalled);
        pair.full = None;
        pair.wake();
        self.remove_full();
    }

    /// Returns true if a backend that does not read may keep the kubelet from answering.
    pub(super) fn may_block_kubelet(&self) -> bool {
        let mut pairs = self.pairs.values();
        pairs.any(|pair| !pair.is_done && pair.unanswered >= UPLOAD_FRAMES)
    }

    /// Sends a ping unless frames wait for the connection, which shows more.
    pub(super) fn ping(&mut self) {
        if self.control.is_empty() {
            // Ids of clients are odd.
            self.last_ping = ((self.last_ping + 2) % MAX_STREAM_ID) | 1;
            Encoder::ping(self.last_ping, &mut self.control);
        }
    }
}
