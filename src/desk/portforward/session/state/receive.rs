//! Frames of the server.

use bytes::BytesMut;
use tokio::time::Instant;

use super::pair::{ReceiveEnd, SendEnd, pair_of};
use super::{MAX_CONTROL, RECEIVE_BUFFER, State};
use crate::desk::portforward::session::SessionError;
use crate::desk::portforward::spdy::{Encoder, Frame, ResetStatus};

impl State {
    /// Handles a frame of the server. Frames of unknown streams are ignored: they may have been
    /// sent before a reset arrived.
    pub(in super::super) fn receive(&mut self, frame: Frame) -> Result<(), SessionError> {
        match frame {
            Frame::SynReply { id, fin } => self.reply(id, fin),
            Frame::Data { id, fin, payload } => self.data(id, fin, &payload),
            Frame::RstStream { id, .. } => self.reset(id),
            Frame::Ping { id } if id % 2 == 1 => {}
            Frame::Ping { id } => {
                self.check_control()?;
                Encoder::ping(id, &mut self.control);
            }
            Frame::SynStream { id, .. } => {
                self.check_control()?;
                Encoder::rst_stream(id, ResetStatus::REFUSED_STREAM, &mut self.control);
            }
            Frame::GoAway => self.is_draining = true,
            Frame::Headers { .. } => {}
        }
        Ok(())
    }

    fn check_control(&self) -> Result<(), SessionError> {
        if self.control.len() > MAX_CONTROL {
            return Err(SessionError::Flooded);
        }
        Ok(())
    }

    fn reply(&mut self, id: u32, fin: bool) {
        let (data, is_error) = pair_of(id);
        let Some(pair) = self.pairs.get_mut(&data) else {
            return;
        };
        if is_error && !pair.has_error_reply {
            pair.has_error_reply = true;
            // Nothing is sent on the error stream. The kubelet ignores data before its reply.
            Encoder::data(id, b"", true, &mut self.control);
        } else if !is_error {
            pair.has_data_reply = true;
        }
        if let Some(reader) = pair.reader.take() {
            reader.wake();
        }
        if fin {
            self.data(id, true, b"");
        }
    }

    fn data(&mut self, id: u32, fin: bool, payload: &[u8]) {
        let (data, is_error) = pair_of(id);
        let Some(pair) = self.pairs.get_mut(&data) else {
            return;
        };
        if is_error {
            pair.explain(payload);
            pair.has_error_ended |= fin;
        } else if pair.receive_end.is_none() && !pair.is_done {
            pair.unanswered = 0;
            pair.receive.extend_from_slice(payload);
            if fin {
                pair.receive_end = Some(ReceiveEnd::Fin);
            }
        }
        if let Some(reader) = pair.reader.take() {
            reader.wake();
        }
        if pair.receive.len() >= RECEIVE_BUFFER && pair.full.is_none() && !pair.is_done {
            pair.full = Some(Instant::now());
            self.add_full();
        }
        if fin {
            self.settle(data);
        }
    }

    fn reset(&mut self, id: u32) {
        let (data, is_error) = pair_of(id);
        let Some(pair) = self.pairs.get_mut(&data) else {
            return;
        };
        if is_error {
            pair.has_error_ended = true;
        } else {
            pair.receive_end = pair.receive_end.or(Some(ReceiveEnd::Reset));
            // No further data is read by the kubelet, which needs no reset in return.
            pair.is_done = true;
            pair.has_error_ended |= !pair.error_text.is_empty();
            pair.wake();
        }
        self.settle(data);
    }

    /// Ends a connection whose end the kubelet has announced on both streams, or explained. The
    /// reset frees the kubelet of data that it does not read any more, which would block its other
    /// streams.
    fn settle(&mut self, id: u32) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        let has_failed = !pair.error_text.is_empty();
        if pair.is_done || !pair.has_error_ended || (pair.receive_end.is_none() && !has_failed) {
            return;
        }
        pair.is_done = true;
        pair.send = BytesMut::new();
        pair.wake();
        if pair.send_end != SendEnd::Sent {
            Encoder::rst_stream(id, ResetStatus::CANCEL, &mut self.control);
        }
    }
}
