//! Tests of the decoder and the encoder.

use std::io::{Read, Write};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, ZlibEncoder};

use super::*;
use crate::testing::gzip;

const PAGE: &[u8] = b"<a href=/x>a page that compresses, compresses, compresses</a>";

fn zlib(page: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(page).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(page: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(page).unwrap();
    encoder.finish().unwrap()
}

/// Decodes a stream that arrives in pieces, with an output buffer of `room` bytes.
fn decode(decoder: &mut Decoder, stream: &[u8], piece: usize, room: usize) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let mut out = vec![0; room];
    for piece in stream.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match decoder.decode(&mut piece, &mut out)? {
                Decoded::Some(length) => page.extend_from_slice(&out[..length]),
                Decoded::Member => {}
                Decoded::Starved => break,
            }
        }
        assert!(piece.is_empty(), "a starved decoder leaves input");
    }
    decoder.finish()?;
    Ok(page)
}

fn decode_all(coding: Coding, stream: &[u8]) -> io::Result<Vec<u8>> {
    decode(&mut Decoder::new(coding), stream, usize::MAX, 4096)
}

#[test]
fn parses_supported_content_encodings() {
    for (text, coding) in [
        ("", Some(Coding::Identity)),
        ("identity", Some(Coding::Identity)),
        (" GZip ", Some(Coding::Gzip)),
        ("x-gzip", Some(Coding::Gzip)),
        ("deflate", Some(Coding::Deflate)),
        ("br", None),
        ("gzip, gzip", None),
    ] {
        assert_eq!(Coding::parse(text), coding, "{text:?}");
    }
}

#[test]
fn decodes_streams_split_at_any_byte() {
    let streams = [
        (Coding::Identity, PAGE.to_vec()),
        (Coding::Gzip, gzip(PAGE)),
        (Coding::Deflate, zlib(PAGE)),
        (Coding::Deflate, raw_deflate(PAGE)),
    ];
    for (coding, stream) in streams {
        for piece in 1..=stream.len() {
            for room in [1, 7, 4096] {
                let page = decode(&mut Decoder::new(coding), &stream, piece, room).unwrap();
                assert_eq!(
                    page, PAGE,
                    "{coding:?} in pieces of {piece} with room {room}"
                );
            }
        }
    }
}

#[test]
fn decodes_gzip_members_and_ignores_padding() {
    let stream = [gzip(b"one "), gzip(b""), gzip(b"two"), vec![0; 10]].concat();
    assert_eq!(decode_all(Coding::Gzip, &stream).unwrap(), b"one two");
}

#[test]
fn passes_stream_that_is_mislabeled_as_gzip() {
    let mut decoder = Decoder::new(Coding::Gzip);
    assert_eq!(decode(&mut decoder, PAGE, 1, 3).unwrap(), PAGE);
    assert!(decoder.is_passthrough() && Encoder::like(&decoder).is_identity());
}

#[test]
fn rejects_truncated_and_corrupt_streams() {
    for (coding, stream) in [
        (Coding::Gzip, gzip(PAGE)),
        (Coding::Deflate, zlib(PAGE)),
        (Coding::Deflate, raw_deflate(PAGE)),
    ] {
        for end in 1..stream.len() {
            assert!(
                decode_all(coding, &stream[..end]).is_err(),
                "{coding:?} at {end}"
            );
        }
        assert!(decode_all(coding, b"").unwrap().is_empty(), "{coding:?}");
    }
    let mut corrupt = gzip(PAGE);
    let checksum = corrupt.len() - 8;
    corrupt[checksum] ^= 1;
    assert!(decode_all(Coding::Gzip, &corrupt).is_err());
}

#[test]
fn bounds_input_of_a_step_without_output() {
    // A gzip header with a comment (RFC 1952 section 2.3.1) decodes to nothing.
    let header = [0x1f, 0x8b, 8, 16, 0, 0, 0, 0, 0, 0];
    let mut stream = Bytes::from([&header[..], &vec![b'x'; 64 * 1024]].concat());
    let (mut decoder, mut out) = (Decoder::new(Coding::Gzip), [0; 16]);
    let mut before = stream.len();
    while decoder.decode(&mut stream, &mut out).unwrap() != Decoded::Starved {
        assert!(before - stream.len() <= MAX_INPUT_BYTES_PER_STEP);
        before = stream.len();
    }
    assert!(stream.is_empty());
}

#[test]
fn encodes_in_the_detected_format() {
    let encode = |coding, stream: &[u8]| {
        let mut decoder = Decoder::new(coding);
        decode(&mut decoder, stream, usize::MAX, 4096).unwrap();
        let (mut encoder, mut out) = (Encoder::like(&decoder), Vec::new());
        encoder.encode(PAGE, &mut out).unwrap();
        encoder.flush(&mut out).unwrap();
        encoder.finish(&mut out).unwrap();
        out
    };
    let mut page = String::new();
    let encoded = encode(Coding::Gzip, &gzip(b"x"));
    MultiGzDecoder::new(&*encoded)
        .read_to_string(&mut page)
        .unwrap();
    let encoded = encode(Coding::Deflate, &zlib(b"x"));
    ZlibDecoder::new(&*encoded)
        .read_to_string(&mut page)
        .unwrap();
    let encoded = encode(Coding::Deflate, &raw_deflate(b"x"));
    DeflateDecoder::new(&*encoded)
        .read_to_string(&mut page)
        .unwrap();
    assert_eq!(page.as_bytes(), PAGE.repeat(3));
    assert_eq!(encode(Coding::Identity, b"x"), PAGE);
}

#[test]
fn flush_outputs_all_encoded_bytes() {
    let mut decoder = Decoder::new(Coding::Gzip);
    decode(&mut decoder, &gzip(b"x"), usize::MAX, 16).unwrap();
    let (mut encoder, mut out) = (Encoder::like(&decoder), Vec::new());
    encoder.encode(PAGE, &mut out).unwrap();
    encoder.flush(&mut out).unwrap();
    let flushed = out.len();
    let mut page = vec![0; PAGE.len()];
    MultiGzDecoder::new(&*out).read_exact(&mut page).unwrap();
    assert_eq!(page, PAGE);
    encoder.flush(&mut out).unwrap();
    assert_eq!(out.len(), flushed, "a second flush writes nothing");
}
