//! Capsules of UDP tunnels. Whatever arrives, in whatever pieces, the decoder finds the same
//! datagrams and the same error, and waits for no more bytes than one datagram may have. Datagrams
//! that the encoder writes are decoded one to one, with unknown capsules between them.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use bytes::{Bytes, BytesMut};
use kube_bastion::tunnel::capsule::{
    CapsuleError, Decoder, MAX_HEAD, MAX_PAYLOAD, encode_datagram,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Written<'a> {
    Datagram(&'a [u8]),
    /// Capsule of an unknown type, with a value of less than 64 bytes.
    Unknown {
        kind: u8,
        value: &'a [u8],
    },
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    sizes: Vec<u8>,
    capsules: Vec<Written<'a>>,
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
    let (mut stream, mut expected) = (Vec::new(), Vec::new());
    for capsule in &input.capsules {
        match capsule {
            Written::Datagram(payload) => {
                let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
                encode_datagram(payload, &mut stream);
                expected.push(Bytes::copy_from_slice(payload));
            }
            Written::Unknown { kind, value } => {
                let value = &value[..value.len().min(63)];
                stream.extend([(kind & 0x3f).max(1), value.len() as u8]);
                stream.extend_from_slice(value);
            }
        }
    }
    assert_eq!(decode(&stream, &input.sizes), (expected, Ok(())));
});

/// Decodes bytes that arrive in pieces of the given sizes, or as a whole.
fn decode(bytes: &[u8], sizes: &[u8]) -> (Vec<Bytes>, Result<(), CapsuleError>) {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let (mut datagrams, mut rest) = (Vec::new(), bytes);
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
                Ok(Some(datagram)) => datagrams.push(datagram),
                Ok(None) => break,
                Err(error) => return (datagrams, Err(error)),
            }
        }
        assert!(input.len() <= MAX_HEAD + MAX_PAYLOAD);
        if rest.is_empty() {
            return (datagrams, decoder.finish(&input));
        }
    }
}
