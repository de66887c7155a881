//! Unit tests of the bounds of rewriting: memory, work per slice, and pages that exceed them.

use std::io::Read;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::Response;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use prometheus_client::registry::Registry;

use super::budget::PageLimit;
use super::rewriter::{MAX_WORK_PER_SLICE, WORK_PER_ELEMENT};
use super::*;
use crate::metrics::{Metrics, PageMetrics};
use crate::model::Scheme;
use crate::testing::{client, gzip};

const MIB: usize = 1024 * 1024;

fn links() -> LinkRewriter {
    LinkRewriter {
        prefix: "/p".repeat(100),
        client_host: None,
        endpoint: "10.0.0.1:80".parse().unwrap(),
        scheme: Scheme::Http,
        service: None,
        cluster_domain: "cluster.local".into(),
    }
}

fn format_of(coding: &str) -> PageFormat {
    let response = Response::builder()
        .header("content-type", "text/html")
        .header("content-encoding", coding);
    PageFormat::detect(&Method::GET, &response.body(()).unwrap(), None).unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut page = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut page).unwrap();
    page
}

fn budget(max_bytes: usize) -> (Budget, PageMetrics) {
    let metrics = Metrics::new(&mut Registry::default()).pages;
    (Budget::new(max_bytes, metrics.clone()), metrics)
}

#[derive(Default)]
struct Run {
    out: Vec<u8>,
    slices: usize,
    most_held: usize,
    bound: Option<PageLimit>,
}

/// Rewrites a page that arrives in pieces, and checks the bounds of every slice.
fn run(coding: &str, bytes: &[u8], piece: usize) -> Run {
    let mut rewriter = Rewriter::new(format_of(coding), links());
    let mut run = Run::default();
    let mut slice = |rewriter: &mut Rewriter, piece: &mut Bytes| {
        let (before, work) = (piece.len(), rewriter.work());
        let out = rewriter.take(piece).unwrap();
        assert!(before - piece.len() <= Rewriter::MAX_INPUT_BYTES_PER_SLICE);
        assert!(
            out.len() <= Rewriter::MAX_OUTPUT_BYTES_PER_SLICE,
            "{} bytes in one slice",
            out.len()
        );
        assert!(
            rewriter.work() - work <= 3 * MAX_WORK_PER_SLICE,
            "{} work in one slice",
            rewriter.work() - work
        );
        assert!(rewriter.held_bytes() <= Rewriter::MAX_HELD_BYTES);
        run.most_held = run.most_held.max(rewriter.held_bytes());
        run.out.extend(out);
        run.slices += 1;
    };
    for piece in bytes.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() || rewriter.has_work() {
            slice(&mut rewriter, &mut piece);
        }
    }
    rewriter.finish();
    while !rewriter.is_done() {
        slice(&mut rewriter, &mut Bytes::new());
    }
    run.bound = rewriter.bound();
    run
}

#[test]
fn passes_rest_of_page_unmodified_past_a_bound() {
    let pages = [
        (
            PageLimit::Tag,
            format!("<img src=/b alt='{}'>", "x".repeat(300_000)),
        ),
        (PageLimit::Tag, format!("<a title='{}", "x".repeat(600_000))),
        (PageLimit::Tag, format!("</{}>", "x".repeat(300_000))),
        (
            PageLimit::Attribute,
            format!("<img src='/{}'>", "x".repeat(70_000)),
        ),
        (
            PageLimit::Attribute,
            format!("<img srcset='data:{}'>", "x".repeat(70_000)),
        ),
        (
            PageLimit::Attributes,
            format!("<img src=/b {}>", "a ".repeat(2000)),
        ),
        (
            PageLimit::Attributes,
            format!("<img src=/b {}>", "a ".repeat(100_000)),
        ),
        (
            PageLimit::Name,
            format!("<{}>", "x".repeat(60_000)).repeat(20),
        ),
        (
            PageLimit::Candidates,
            format!("<img srcset='{}'>", "/a, ".repeat(5000)),
        ),
    ];
    for (bound, rest) in pages {
        let page = format!("<a href=/a>{rest}<a href=/c>{}", "<a href=/d>".repeat(10));
        let expected = page.replacen(
            "<a href=/a>",
            &format!("<a href=\"{}/a\">", links().prefix),
            1,
        );
        for piece in [usize::MAX, 4096, 1000] {
            let run = run("identity", page.as_bytes(), piece);
            assert_eq!(run.bound, Some(bound), "{}", &page[..60]);
            assert!(
                run.out == expected.as_bytes(),
                "{bound:?} in pieces of {piece}"
            );
            assert!(run.most_held < 2 * MIB, "{bound:?} holds {}", run.most_held);
        }
        let run = run("gzip", &gzip(page.as_bytes()), usize::MAX);
        assert_eq!(run.bound, Some(bound), "{}", &page[..60]);
        assert!(gunzip(&run.out) == expected.as_bytes(), "{bound:?} as gzip");
    }
}

#[test]
fn bounds_open_elements() {
    let names: String = (0..5000).map(|n| format!("<x-{n:0>120}>")).collect();
    for elements in [
        "<p>".repeat(5000),
        "<svg/>".repeat(5000),
        "<svg><desc></svg>".repeat(5000),
        names,
    ] {
        let page = format!("<a href=/a></a>{elements}<a href=/b>");
        let whole = run("identity", page.as_bytes(), usize::MAX);
        assert_eq!(whole.bound, Some(PageLimit::Depth), "{}", &page[..40]);
        assert!(whole.most_held < 4 * MIB, "{} are held", whole.most_held);
        let expected = page.replacen(
            "<a href=/a>",
            &format!("<a href=\"{}/a\">", links().prefix),
            1,
        );
        for piece in [4000, 777] {
            assert!(run("identity", page.as_bytes(), piece).out == expected.as_bytes());
        }
    }
}

#[test]
fn bounds_growth() {
    let page = "<a href=/>".repeat(MIB / 40);
    let whole = run("identity", page.as_bytes(), usize::MAX);
    assert_eq!(whole.bound, Some(PageLimit::Growth));
    assert!(
        whole.out.len() < MIB,
        "{} bytes of {}",
        whole.out.len(),
        page.len()
    );
    assert!(run("identity", page.as_bytes(), 500).out == whole.out);
    // A page with an ordinary density of links is rewritten to its end.
    let page = format!("<a href=/x>{}</a>", "text ".repeat(5)).repeat(MIB / 160);
    assert_eq!(run("identity", page.as_bytes(), usize::MAX).bound, None);
}

#[test]
fn passes_huge_list_of_images_in_bounded_memory() {
    // Repeated gzip members save the time of compressing the whole list.
    let list = "/a 1x, ".repeat(64 * 1024);
    let encoded = [
        gzip(b"<a href=/a><img srcset='"),
        gzip(list.as_bytes()).repeat(10),
        gzip(b"'>"),
    ]
    .concat();
    assert!(encoded.len() < 64 * 1024);
    let run = run("gzip", &encoded, usize::MAX);
    assert_eq!(run.bound, Some(PageLimit::Tag));
    assert!(run.most_held < 2 * MIB, "{} bytes are held", run.most_held);
    let expected = format!(
        "<a href=\"{}/a\"><img srcset='{}'>",
        links().prefix,
        list.repeat(10)
    );
    assert!(gunzip(&run.out) == expected.as_bytes());
}

#[test]
fn bounds_memory_of_page_that_stalls_in_a_tag() {
    let mut rewriter = Rewriter::new(format_of("identity"), links());
    let (mut input, mut output) = (0, 0);
    let mut pass = |rewriter: &mut Rewriter, piece: &[u8]| {
        let mut piece = Bytes::copy_from_slice(piece);
        input += piece.len();
        while !piece.is_empty() || rewriter.has_work() {
            output += rewriter.take(&mut piece).unwrap().len();
        }
        assert!(
            rewriter.held_bytes() < 320 * 1024,
            "{} bytes are held",
            rewriter.held_bytes()
        );
        input - output
    };
    pass(&mut rewriter, b"<p>text<img alt='");
    for _ in 0..1000 {
        let behind = pass(&mut rewriter, &[b'x'; 1500]);
        assert!(behind <= 260 * 1024, "{behind} bytes are held back");
    }
    assert_eq!(
        pass(&mut rewriter, b"x"),
        0,
        "past the bound everything passes"
    );
}

#[test]
fn bounds_work_per_slice_of_any_page() {
    let member = gzip(b"");
    let members = run("gzip", &member.repeat(MIB / member.len()), usize::MAX);
    assert!(
        members.slices > 100,
        "a MiB of empty members in {} slices",
        members.slices
    );
    let mut comment = vec![0x1f, 0x8b, 8, 16, 0, 0, 0, 0, 0, 0];
    comment.resize(MIB, b'x');
    comment.push(0);
    comment.extend_from_slice(&gzip(b"<a href=/a>")[10..]);
    assert!(run("gzip", &comment, usize::MAX).slices > 50);
    for element in [
        "<p></p>",
        "<img src>",
        "<img src=/a title='0123456789'>",
        "<img srcset='/a 1x, /b 2x' alt='some text of the image'>",
    ] {
        let page = element.repeat(MIB / 4 / element.len());
        for (coding, bytes) in [
            ("identity", page.clone().into_bytes()),
            ("gzip", gzip(page.as_bytes())),
        ] {
            let run = run(coding, &bytes, usize::MAX);
            assert!(
                run.slices > 4,
                "256 KiB of {element} in {} slices",
                run.slices
            );
        }
    }
}

/// Polls a page to its end. Returns the output of each turn, which ends with a yield.
fn turns<B: Body<Data = Bytes> + Unpin>(page: RewrittenBody<B>) -> Vec<Vec<u8>> {
    let mut page = pin!(page);
    let mut context = Context::from_waker(Waker::noop());
    let mut turns = vec![Vec::new()];
    loop {
        match page.as_mut().poll_frame(&mut context) {
            Poll::Pending => turns.push(Vec::new()),
            Poll::Ready(Some(frame)) => {
                let frame = frame.unwrap_or_else(|_| panic!("the page is complete"));
                turns.last_mut().unwrap().extend(frame.into_data().unwrap());
            }
            Poll::Ready(None) => return turns,
        }
    }
}

#[test]
fn yields_to_other_tasks_of_its_worker() {
    let page = "<img src>".repeat(MIB / 36);
    // In one frame, and in many that are all ready.
    let (budget, _) = budget(32 * MIB);
    let share = || budget.reserve(0, client(1)).unwrap();
    let whole = Full::new(Bytes::from(page.clone()));
    let pieces = futures::stream::iter(page.as_bytes().chunks(512).map(|piece| {
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::copy_from_slice(piece)))
    }));
    let pieces = http_body_util::StreamBody::new(pieces);
    for turns in [
        turns(RewrittenBody::new(
            whole,
            format_of("identity"),
            links(),
            share(),
        )),
        turns(RewrittenBody::new(
            pieces,
            format_of("identity"),
            links(),
            share(),
        )),
    ] {
        assert!(
            turns
                .iter()
                .all(|turn| turn.len() <= 2 * MAX_WORK_PER_SLICE / WORK_PER_ELEMENT * 9)
        );
        assert!(turns.concat() == page.as_bytes());
    }
}

#[test]
fn passes_rest_of_page_when_memory_runs_out_and_returns_share() {
    let link = "<a href=/a>";
    let page = format!("{link}{}{link}", "<p>".repeat(2000));
    let (budget, metrics) = budget(64 * 1024);
    let share = budget
        .reserve(format_of("identity").held_bytes(), client(1))
        .unwrap();
    let pieces = page
        .as_bytes()
        .chunks(1000)
        .map(Bytes::copy_from_slice)
        .collect::<Vec<_>>();
    let body = http_body_util::StreamBody::new(futures::stream::iter(
        pieces
            .into_iter()
            .map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece))),
    ));
    let out = turns(RewrittenBody::new(
        body,
        format_of("identity"),
        links(),
        share,
    ))
    .concat();
    let expected = page.replacen(link, &format!("<a href=\"{}/a\">", links().prefix), 1);
    assert!(out == expected.as_bytes());
    assert_eq!(metrics.passed.memory.get(), 1);
    assert_eq!(metrics.reserved.get(), 0, "the share was not returned");
}

#[test]
fn holds_share_until_page_ends() {
    let (budget, metrics) = budget(MIB);
    let share = budget
        .reserve(format_of("gzip").held_bytes(), client(1))
        .unwrap();
    let page = RewrittenBody::new(
        Full::new(Bytes::new()).boxed(),
        format_of("gzip"),
        links(),
        share,
    );
    assert!(usize::try_from(metrics.reserved.get()).unwrap() >= coding::MAX_HELD_BYTES);
    assert!(
        budget
            .reserve(format_of("gzip").held_bytes(), client(2))
            .is_some()
    );
    let second = budget
        .reserve(format_of("gzip").held_bytes(), client(2))
        .unwrap();
    assert!(
        budget
            .reserve(format_of("gzip").held_bytes(), client(3))
            .is_none(),
        "two pages with a coding fill a MiB"
    );
    drop((page, second));
    assert_eq!(metrics.reserved.get(), 0);
}
