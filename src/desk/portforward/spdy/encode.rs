//! Encoder of frames.

use super::headers::HeaderEncoder;
use super::{CONTROL, FLAG_FIN, ResetStatus, VERSION, kind};

/// Encoder of the frames of a connection.
#[derive(Debug)]
pub struct Encoder {
    headers: HeaderEncoder,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            headers: HeaderEncoder::new(),
        }
    }
}

impl Encoder {
    /// Opens the stream `id`.
    pub fn syn_stream(&mut self, id: u32, headers: &[(&str, &str)], output: &mut Vec<u8>) {
        let start = start_control(kind::SYN_STREAM, output);
        output.extend(id.to_be_bytes());
        // No associated stream, the highest priority, no slot.
        output.extend([0; 6]);
        self.headers.encode(headers, output);
        end_control(start, output);
    }

    /// Accepts the stream `id` without headers.
    pub fn syn_reply(&mut self, id: u32, output: &mut Vec<u8>) {
        let start = start_control(kind::SYN_REPLY, output);
        output.extend(id.to_be_bytes());
        self.headers.encode(&[], output);
        end_control(start, output);
    }

    /// Sends a part of a stream, of less than 16 MiB.
    pub fn data(id: u32, payload: &[u8], fin: bool, output: &mut Vec<u8>) {
        output.extend(id.to_be_bytes());
        output.push(if fin { FLAG_FIN } else { 0 });
        output.extend(length(payload.len()));
        output.extend(payload);
    }

    /// Ends both directions of a stream.
    pub fn rst_stream(id: u32, status: ResetStatus, output: &mut Vec<u8>) {
        let start = start_control(kind::RST_STREAM, output);
        output.extend(id.to_be_bytes());
        output.extend(status.0.to_be_bytes());
        end_control(start, output);
    }

    /// Sends or answers a ping.
    pub fn ping(id: u32, output: &mut Vec<u8>) {
        let start = start_control(kind::PING, output);
        output.extend(id.to_be_bytes());
        end_control(start, output);
    }

    /// Announces the end of the connection, on which no stream of the peer was accepted.
    pub fn go_away(output: &mut Vec<u8>) {
        let start = start_control(kind::GOAWAY, output);
        output.extend([0; 8]);
        end_control(start, output);
    }
}

/// Writes the head of a control frame without its length. Returns where its payload starts.
fn start_control(kind: u16, output: &mut Vec<u8>) -> usize {
    let word = CONTROL | u32::from(VERSION) << 16 | u32::from(kind);
    output.extend(word.to_be_bytes());
    output.extend([0; 4]);
    output.len()
}

fn end_control(start: usize, output: &mut [u8]) {
    let length = length(output.len() - start);
    output[start - 3..start].copy_from_slice(&length);
}

fn length(bytes: usize) -> [u8; 3] {
    let [0, length @ ..] = u32::try_from(bytes)
        .expect("a frame is short")
        .to_be_bytes()
    else {
        unreachable!("frames are shorter than 16 MiB");
    };
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_frames_of_the_specification() {
        let mut bytes = Vec::new();
        Encoder::data(3, b"ab", true, &mut bytes);
        Encoder::rst_stream(5, ResetStatus::CANCEL, &mut bytes);
        Encoder::ping(1, &mut bytes);
        Encoder::go_away(&mut bytes);
        assert_eq!(
            bytes,
            [
                &b"\x00\x00\x00\x03\x01\x00\x00\x02ab"[..],
                b"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x05\x00\x00\x00\x05",
                b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01",
                b"\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00",
            ]
            .concat()
        );
    }

    #[test]
    fn compresses_headers_of_consecutive_streams() {
        let mut encoder = Encoder::default();
        let headers = [("streamType", "data"), ("port", "8080"), ("requestID", "0")];
        let (mut first, mut second) = (Vec::new(), Vec::new());
        encoder.syn_stream(1, &headers, &mut first);
        encoder.syn_stream(3, &headers, &mut second);
        assert_eq!(first[..4], [0x80, 3, 0, 1]);
        assert_eq!(first[5..8], length(first.len() - 8));
        // Refers to the first block.
        assert!(second.len() < first.len(), "{first:?}\n{second:?}");
    }
}
