//! Decoder of frames.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::HeaderDecoder;
use super::{
    CONTROL, FLAG_FIN, FRAME_HEAD, Headers, MAX_HEADER_FRAME, MAX_STREAM_ID, ResetStatus,
    SpdyError, VERSION, kind,
};

/// Frame of the peer, or a part of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The peer opens a stream.
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    /// The peer accepts a stream.
    SynReply {
        id: u32,
        fin: bool,
    },
    /// A part of a data frame in the pieces that arrive. `fin` comes with the last one.
    Data {
        id: u32,
        fin: bool,
        payload: Bytes,
    },
    /// The peer ends both directions of a stream.
    RstStream {
        id: u32,
        status: ResetStatus,
    },
    Ping {
        id: u32,
    },
    /// The peer accepts no further streams.
    GoAway,
    /// Further headers of a stream.
    Headers {
        id: u32,
        fin: bool,
    },
}

/// Decoder of the frames of a connection. It keeps no bytes: incomplete frames stay in the input.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    headers: HeaderDecoder,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    /// Within the payload of a data frame.
    Data {
        id: u32,
        fin: bool,
        rest: usize,
    },
    /// Within a frame that has no meaning here.
    Skip {
        rest: usize,
    },
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            state: State::Head,
            headers: HeaderDecoder::new(),
        }
    }
}

impl Decoder {
    /// Takes the next frame off the start of `input`. `None` if more bytes are needed, which are at
    /// most 16 KiB.
    ///
    /// # Errors
    /// [`SpdyError`]. The decoder cannot be used after it.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            match self.state {
                State::Head => match self.head(input)? {
                    Step::Frame(frame) => return Ok(Some(frame)),
                    Step::Incomplete => return Ok(None),
                    Step::Next => {}
                },
                State::Data { id, fin, rest } => {
                    let length = rest.min(input.len());
                    if length == 0 && rest > 0 {
                        return Ok(None);
                    }
                    let payload = input.split_to(length).freeze();
                    let rest = rest - length;
                    self.state = match rest {
                        0 => State::Head,
                        _ => State::Data { id, fin, rest },
                    };
                    let fin = fin && rest == 0;
                    return Ok(Some(Frame::Data { id, fin, payload }));
                }
                State::Skip { rest } => {
                    let length = rest.min(input.len());
                    input.advance(length);
                    if length < rest {
                        self.state = State::Skip {
                            rest: rest - length,
                        };
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
            }
        }
    }

    fn head(&mut self, input: &mut BytesMut) -> Result<Step, SpdyError> {
        let Some(mut head) = input.get(..FRAME_HEAD) else {
            return Ok(Step::Incomplete);
        };
        let (word, flags_and_length) = (head.get_u32(), head.get_u32());
        let fin = (flags_and_length >> 24) & u32::from(FLAG_FIN) != 0;
        let rest = usize::try_from(flags_and_length & 0xFF_FFFF).unwrap_or(usize::MAX);
        if word & CONTROL == 0 {
            input.advance(FRAME_HEAD);
            self.state = State::Data {
                id: word,
                fin,
                rest,
            };
            return Ok(Step::Next);
        }
        // The 15 bits behind the control bit, and the second half.
        let [version, kind] =
            [word << 1 >> 17, word & 0xFFFF].map(|bits| u16::try_from(bits).unwrap_or(u16::MAX));
        if version != VERSION {
            return Err(SpdyError::UnsupportedVersion { version });
        }
        let is_valid = match kind {
            kind::SYN_STREAM => (10..=MAX_HEADER_FRAME).contains(&rest),
            kind::SYN_REPLY | kind::HEADERS => (4..=MAX_HEADER_FRAME).contains(&rest),
            kind::RST_STREAM | kind::GOAWAY => rest == 8,
            kind::PING => rest == 4,
            // Settings, window updates and unknown types.
            _ => {
                input.advance(FRAME_HEAD);
                self.state = State::Skip { rest };
                return Ok(Step::Next);
            }
        };
        if !is_valid {
            let length = rest;
            return Err(SpdyError::InvalidLength { kind, length });
        }
        if input.len() < FRAME_HEAD + rest {
            return Ok(Step::Incomplete);
        }
        input.advance(FRAME_HEAD);
        let payload = input.split_to(rest);
        self.control(kind, fin, payload).map(Step::Frame)
    }

    /// Decodes a complete control frame whose length is valid.
    fn control(&mut self, kind: u16, fin: bool, mut payload: BytesMut) -> Result<Frame, SpdyError> {
        let id = payload.get_u32();
        if kind == kind::PING {
            return Ok(Frame::Ping { id });
        }
        if kind == kind::GOAWAY {
            return Ok(Frame::GoAway);
        }
        let id = id & MAX_STREAM_ID;
        if id == 0 {
            return Err(SpdyError::NoStream { kind });
        }
        match kind {
            kind::SYN_STREAM => {
                // Associated stream, priority and slot.
                payload.advance(6);
                let headers = self.headers.decode(&payload)?;
                Ok(Frame::SynStream { id, fin, headers })
            }
            kind::RST_STREAM => {
                let status = ResetStatus(payload.get_u32());
                Ok(Frame::RstStream { id, status })
            }
            kind => {
                // Decompressed for the blocks that follow, which refer to it.
                self.headers.decode(&payload)?;
                if kind == kind::HEADERS {
                    return Ok(Frame::Headers { id, fin });
                }
                Ok(Frame::SynReply { id, fin })
            }
        }
    }
}

enum Step {
    Frame(Frame),
    Incomplete,
    /// The state has changed.
    Next,
}

#[cfg(test)]
mod tests {
    use super::super::Encoder;
    use super::*;

    /// Decodes all frames of `bytes`, which arrive in pieces of `size`. Joins the parts of data
    /// frames.
    fn decode(bytes: &[u8], size: usize) -> Result<(Vec<Frame>, usize), SpdyError> {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
        let mut frames: Vec<Frame> = Vec::new();
        let mut open = false;
        for piece in bytes.chunks(size) {
            input.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut input)? {
                let is_open = matches!(decoder.state, State::Data { .. });
                match (&mut frames[..], frame) {
                    (
                        [
                            ..,
                            Frame::Data {
                                fin, payload: all, ..
                            },
                        ],
                        Frame::Data {
                            fin: last, payload, ..
                        },
                    ) if open => {
                        *fin = last;
                        *all = [&all[..], &payload].concat().into();
                    }
                    (_, frame) => frames.push(frame),
                }
                open = is_open;
            }
        }
        Ok((frames, input.len()))
    }

    #[test]
    fn decodes_frames_in_any_pieces() {
        let mut encoder = Encoder::default();
        let mut bytes = Vec::new();
        encoder.syn_stream(1, &[("streamType", "error"), ("port", "80")], &mut bytes);
        encoder.syn_reply(1, &mut bytes);
        Encoder::data(1, b"hello", false, &mut bytes);
        Encoder::data(1, b"", true, &mut bytes);
        // SETTINGS with one entry, WINDOW_UPDATE, and an unknown type.
        bytes.extend(
            b"\x80\x03\x00\x04\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x07\x00\x01\x00\x00",
        );
        bytes.extend(b"\x80\x03\x00\x09\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x10\x00");
        bytes.extend(b"\x80\x03\x00\x63\x00\x00\x00\x00");
        Encoder::ping(7, &mut bytes);
        Encoder::rst_stream(3, ResetStatus::CANCEL, &mut bytes);
        encoder.syn_reply(5, &mut bytes);
        Encoder::data(5, &[7; 1000], true, &mut bytes);
        Encoder::go_away(&mut bytes);
        let data = |id, fin, payload| Frame::Data { id, fin, payload };
        let headers = Headers(vec![
            (b"streamtype".to_vec(), b"error".to_vec()),
            (b"port".to_vec(), b"80".to_vec()),
        ]);
        let status = ResetStatus::CANCEL;
        let expected = vec![
            Frame::SynStream {
                id: 1,
                fin: false,
                headers,
            },
            Frame::SynReply { id: 1, fin: false },
            data(1, false, Bytes::from_static(b"hello")),
            data(1, true, Bytes::new()),
            Frame::Ping { id: 7 },
            Frame::RstStream { id: 3, status },
            Frame::SynReply { id: 5, fin: false },
            data(5, true, Bytes::from_static(&[7; 1000])),
            Frame::GoAway,
        ];
        for size in [1, 2, 3, 7, 8, 9, 100, bytes.len()] {
            assert_eq!(decode(&bytes, size), Ok((expected.clone(), 0)), "{size}");
        }
    }

    #[test]
    fn rejects_invalid_frames() {
        let length = |kind, length| SpdyError::InvalidLength { kind, length };
        for (bytes, error) in [
            (
                &b"\x80\x02\x00\x06\x00\x00\x00\x04"[..],
                SpdyError::UnsupportedVersion { version: 2 },
            ),
            (b"\x80\x03\x00\x06\x00\x00\x00\x05", length(6, 5)),
            (b"\x80\x03\x00\x03\x00\x00\x00\x04", length(3, 4)),
            (b"\x80\x03\x00\x07\x00\x00\x00\x00", length(7, 0)),
            (b"\x80\x03\x00\x01\x00\x00\x00\x09", length(1, 9)),
            (b"\x80\x03\x00\x02\x00\x00\x40\x01", length(2, 0x4001)),
            (
                b"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x01",
                SpdyError::NoStream { kind: 3 },
            ),
            (
                b"\x80\x03\x00\x02\x00\x00\x00\x06\x00\x00\x00\x01\xff\xff",
                SpdyError::InvalidHeaders,
            ),
        ] {
            for size in [1, bytes.len()] {
                assert_eq!(decode(bytes, size), Err(error.clone()), "{bytes:?}");
            }
        }
    }

    #[test]
    fn arbitrary_bytes_have_one_result_in_any_pieces() {
        let mut random = fastrand::Rng::with_seed(31);
        let mut found = 0;
        for _ in 0..5000 {
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..6) {
                let length = random.u8(0..20);
                match random.u8(0..4) {
                    0 => Encoder::data(random.u32(..), &[1; 9], random.bool(), &mut bytes),
                    1 => Encoder::default().syn_reply(random.u32(..), &mut bytes),
                    _ => {
                        bytes.extend([0x80, 3, 0, random.u8(0..10), 0, 0, 0, length]);
                        bytes.extend((0..length).map(|_| random.u8(..)));
                    }
                }
            }
            let whole = decode(&bytes, bytes.len());
            found += usize::from(whole.is_ok());
            for size in [1, 3, 8] {
                assert_eq!(decode(&bytes, size), whole, "{bytes:?}");
            }
        }
        assert!((100..4900).contains(&found), "{found} inputs are valid");
    }

    #[test]
    fn keeps_no_bytes_of_long_data_frames() {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
        input.extend_from_slice(b"\x00\x00\x00\x03\x01\xff\xff\xff");
        let mut received = 0;
        for _ in 0..(1 << 24) / 4096 {
            input.extend_from_slice(&[1; 4096]);
            while let Ok(Some(Frame::Data { id, fin, payload })) = decoder.decode(&mut input) {
                received += payload.len();
                assert_eq!((id, fin), (3, received == 0xFF_FFFF));
                if fin {
                    assert_eq!(input.len(), 1);
                    return;
                }
            }
            assert!(input.is_empty());
        }
        panic!("the frame has not ended after {received} bytes");
    }
}
