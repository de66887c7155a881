//! The rewriter of pages. The output does not depend on how a page is split or compressed; slices
//! are within the bounds of input, output and work; memory is bounded, and work is linear in the
//! page.
#![no_main]

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{Method, Response};
use kube_bastion::model::Scheme;
use kube_bastion::rewrite::{LinkRewriter, MAX_WORK_PER_SLICE, PageFormat, Rewriter};
use libfuzzer_sys::fuzz_target;

#[derive(Clone, Copy)]
enum Coding {
    Identity,
    Gzip,
    Zlib,
    Raw,
}

impl Coding {
    fn header(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zlib | Self::Raw => "deflate",
        }
    }

    fn encode(self, page: &[u8]) -> Vec<u8> {
        const NEVER: &str = "memory takes what is written";
        match self {
            Self::Identity => page.to_vec(),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(page).expect(NEVER);
                encoder.finish().expect(NEVER)
            }
            Self::Zlib => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(page).expect(NEVER);
                encoder.finish().expect(NEVER)
            }
            Self::Raw => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(page).expect(NEVER);
                encoder.finish().expect(NEVER)
            }
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<u8> {
        let mut page = Vec::new();
        let read = match self {
            _ if bytes.is_empty() => Ok(0),
            Self::Identity => {
                page.extend_from_slice(bytes);
                Ok(0)
            }
            Self::Gzip => MultiGzDecoder::new(bytes).read_to_end(&mut page),
            Self::Zlib => ZlibDecoder::new(bytes).read_to_end(&mut page),
            Self::Raw => DeflateDecoder::new(bytes).read_to_end(&mut page),
        };
        read.expect("what was encoded can be decoded");
        page
    }
}

/// Rewrites a page of `length` bytes that arrives encoded and in pieces.
fn rewrite<'a>(
    coding: Coding,
    charset: &str,
    length: usize,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let response = Response::builder()
        .header("content-type", format!("text/html{charset}"))
        .header("content-encoding", coding.header())
        .body(())
        .expect("a response");
    let reading = PageFormat::detect(&Method::GET, &response, None).expect("a page");
    let links = LinkRewriter {
        prefix: "/p".into(),
        client_host: Some("bastion.example".into()),
        endpoint: "10.0.0.1:80".parse().expect("an address"),
        scheme: Scheme::Http,
        service: None,
        cluster_domain: "cluster.local".into(),
    };
    let mut rewriter = Rewriter::new(reading, links);
    let mut out = Vec::new();
    let (mut input, mut slices, mut count) = (0, 0, 0);
    for piece in pieces {
        let mut piece = Bytes::copy_from_slice(piece);
        input += piece.len();
        count += 1;
        while !piece.is_empty() || rewriter.has_work() {
            out.extend(slice(&mut rewriter, &mut piece));
            slices += 1;
        }
    }
    rewriter.finish();
    while !rewriter.is_done() {
        out.extend(slice(&mut rewriter, &mut Bytes::new()));
        slices += 1;
    }
    let page = coding.decode(&out);
    // A slice ends when its input or its work is exhausted.
    assert!(
        slices <= count + rewriter.work() / MAX_WORK_PER_SLICE + 2,
        "{slices} slices of {count} pieces"
    );
    // Elements of three bytes (`<p>`) and starts of streams have the most work per byte.
    let bytes = input + length + page.len();
    assert!(
        rewriter.work() <= 32 * bytes + 4096,
        "{} work for {bytes} bytes",
        rewriter.work()
    );
    page
}

fn slice(rewriter: &mut Rewriter, piece: &mut Bytes) -> Vec<u8> {
    let (before, work) = (piece.len(), rewriter.work());
    let out = rewriter
        .take(piece)
        .expect("what was encoded can be decoded");
    assert!(before - piece.len() <= Rewriter::MAX_INPUT_BYTES_PER_SLICE);
    assert!(out.len() <= Rewriter::MAX_OUTPUT_BYTES_PER_SLICE);
    assert!(rewriter.work() - work <= 4 * MAX_WORK_PER_SLICE);
    assert!(rewriter.held_bytes() <= Rewriter::MAX_HELD_BYTES);
    out
}

fuzz_target!(|data: &[u8]| {
    let [choice, cuts @ .., last] = data else {
        return;
    };
    let coding =
        [Coding::Identity, Coding::Gzip, Coding::Zlib, Coding::Raw][usize::from(choice & 3)];
    let charset = [
        "",
        "; charset=utf-8",
        "; charset=windows-1252",
        "; charset=shift_jis",
    ][usize::from(choice >> 2 & 3)];
    let (cuts, html) = cuts.split_at(cuts.len().min(usize::from(choice >> 4)));
    // Repeated, a short input reaches the bounds of a page.
    let repeated = html.repeat([1, 1, 1, 200][usize::from(last & 3)]);
    let html = &repeated[..];
    let encoded = coding.encode(html);
    let whole = rewrite(coding, charset, html.len(), std::iter::once(&encoded[..]));
    let mut rest = &encoded[..];
    let mut sizes = cuts
        .iter()
        .chain(std::iter::repeat(last))
        .map(|cut| usize::from(*cut).max(1));
    let pieces = std::iter::from_fn(|| {
        let size = sizes.next()?.min(rest.len());
        let (piece, after) = rest.split_at(size);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(rewrite(coding, charset, html.len(), pieces), whole);
});
