//! Frames of SPDY. Whatever arrives, in whatever pieces, the decoder finds the same frames and the
//! same error, and waits for no more bytes than a frame with headers may have. Frames that the
//! encoder writes are decoded one to one.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use bytes::{Bytes, BytesMut};
use kube_bastion::desk::portforward::spdy::{
    Decoder, Encoder, Frame, Headers, MAX_STREAM_ID, ResetStatus, SpdyError,
};
use libfuzzer_sys::fuzz_target;

/// Maximum number of bytes that wait for the rest of their frame.
const MAX_INCOMPLETE: usize = 8 + 16 * 1024;

/// Frame that the encoder writes.
#[derive(Arbitrary, Debug)]
enum Written<'a> {
    SynStream {
        id: u32,
        headers: Vec<(&'a str, &'a str)>,
    },
    SynReply {
        id: u32,
    },
    Data {
        id: u32,
        payload: &'a [u8],
        fin: bool,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, window updates and unknown types, which are skipped.
    Skipped {
        kind: u8,
        payload: &'a [u8],
    },
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    sizes: Vec<u8>,
    frames: Vec<Written<'a>>,
    /// Replaces a byte, which makes the frames arbitrary from there on.
    damage: Option<(u16, u8)>,
}

fuzz_target!(|bytes: &[u8]| {
    // Raw bytes begin with a zero.
    if let Some(raw) = bytes.strip_prefix(&[0]) {
        let whole = decode(raw, &[]);
        assert_eq!(decode(raw, &[1]), whole);
        assert_eq!(decode(raw, &[3, 1, 8]), whole);
        return;
    }
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    let mut encoder = Encoder::default();
    let (mut stream, mut expected) = (Vec::new(), Vec::new());
    for frame in &input.frames {
        expected.extend(write(frame, &mut encoder, &mut stream));
    }
    if let Some((position, byte)) = input.damage
        && let Some(damaged) = stream.get_mut(usize::from(position))
    {
        *damaged = byte;
    } else {
        assert_eq!(decode(&stream, &[]), (join(expected), None));
    }
    let whole = decode(&stream, &[]);
    assert_eq!(decode(&stream, &input.sizes), whole, "{input:?}");
});

/// Writes a frame. Returns what the decoder must find.
fn write(frame: &Written<'_>, encoder: &mut Encoder, output: &mut Vec<u8>) -> Option<Frame> {
    let stream = |id: u32| (id & MAX_STREAM_ID).max(1);
    Some(match *frame {
        Written::SynStream { id, ref headers } => {
            let short = headers.iter().take(20);
            let short: Vec<_> = short
                .map(|(name, value)| (start(name), start(value)))
                .collect();
            encoder.syn_stream(stream(id), &short, output);
            let headers = short.iter().map(|(name, value)| {
                let name = name.to_ascii_lowercase().into_bytes();
                (name, value.as_bytes().to_vec())
            });
            Frame::SynStream {
                id: stream(id),
                fin: false,
                headers: Headers(headers.collect()),
            }
        }
        Written::SynReply { id } => {
            encoder.syn_reply(stream(id), output);
            Frame::SynReply {
                id: stream(id),
                fin: false,
            }
        }
        Written::Data { id, payload, fin } => {
            Encoder::data(stream(id), payload, fin, output);
            Frame::Data {
                id: stream(id),
                fin,
                payload: Bytes::copy_from_slice(payload),
            }
        }
        Written::RstStream { id, status } => {
            let status = ResetStatus(status);
            Encoder::rst_stream(stream(id), status, output);
            Frame::RstStream {
                id: stream(id),
                status,
            }
        }
        Written::Ping { id } => {
            Encoder::ping(id, output);
            Frame::Ping { id }
        }
        Written::GoAway => {
            Encoder::go_away(output);
            Frame::GoAway
        }
        Written::Skipped { kind, payload } => {
            let kind = match kind {
                1..=3 | 6..=8 => 4,
                kind => kind,
            };
            output.extend([0x80, 3, 0, kind, 0, 0, 0]);
            let payload = &payload[..payload.len().min(255)];
            output.push(payload.len() as u8);
            output.extend(payload);
            return None;
        }
    })
}

/// Returns at most 200 bytes from the start of a text.
fn start(text: &str) -> &str {
    let end = (0..=200.min(text.len())).rev();
    &text[..end
        .into_iter()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0)]
}

/// Decodes bytes that arrive in pieces of the given sizes, or as a whole.
fn decode(bytes: &[u8], sizes: &[u8]) -> (Vec<Frame>, Option<SpdyError>) {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    loop {
        let size = sizes
            .next()
            .map_or(rest.len(), |size| usize::from(*size).max(1));
        let (piece, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (join(frames), Some(error)),
            }
        }
        assert!(input.len() < MAX_INCOMPLETE, "{} bytes wait", input.len());
        if rest.is_empty() {
            return (join(frames), None);
        }
    }
}

/// Joins the parts of data without an end between them, whose division depends on the pieces.
fn join(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        if let Frame::Data { id, fin, payload } = &frame
            && let Some(Frame::Data {
                id: last,
                fin: ended @ false,
                payload: before,
            }) = joined.last_mut()
            && last == id
        {
            *ended = *fin;
            *before = [&before[..], payload].concat().into();
        } else {
            joined.push(frame);
        }
    }
    joined
}
