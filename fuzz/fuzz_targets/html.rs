//! The rewriter of pages: wherever a page is cut into pieces, the same bytes come out, in any coding.
#![no_main]

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{Method, Response};
use kube_bastion::model::Scheme;
use kube_bastion::rewrite::{Links, Rewriter, page};
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

fn rewrite<'a>(coding: Coding, charset: &str, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let response = Response::builder()
        .header("content-type", format!("text/html{charset}"))
        .header("content-encoding", coding.header())
        .body(())
        .expect("a response");
    let reading = page(&Method::GET, &response).expect("a page");
    let links = Links {
        prefix: "/p".into(),
        client_host: Some("bastion.example".into()),
        endpoint: "10.0.0.1:80".parse().expect("an address"),
        scheme: Scheme::Http,
        service: None,
        cluster_domain: "cluster.local".into(),
    };
    let mut rewriter = Rewriter::new(reading, links);
    let mut out = Vec::new();
    for piece in pieces {
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() {
            out.extend(rewriter.take(&mut piece).expect("what was encoded can be decoded"));
        }
    }
    out.extend(rewriter.finish().expect("the page is whole"));
    coding.decode(&out)
}

fuzz_target!(|data: &[u8]| {
    let [choice, cuts @ .., _] = data else { return };
    let coding = [Coding::Identity, Coding::Gzip, Coding::Zlib, Coding::Raw][usize::from(choice & 3)];
    let charset = ["", "; charset=utf-8", "; charset=windows-1252", "; charset=shift_jis"][usize::from(choice >> 2 & 3)];
    let (cuts, html) = cuts.split_at(cuts.len().min(usize::from(choice >> 4)));
    let encoded = coding.encode(html);
    let whole = rewrite(coding, charset, std::iter::once(&encoded[..]));
    let mut rest = &encoded[..];
    let mut sizes = cuts.iter().chain(std::iter::repeat(&1)).map(|cut| usize::from(*cut).max(1));
    let pieces = std::iter::from_fn(|| {
        let size = sizes.next()?.min(rest.len());
        let (piece, after) = rest.split_at(size);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(rewrite(coding, charset, pieces), whole);
});
