//! Shares of the memory for large heads that the streams of a connection hold.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;

use super::meter::Meter;
use crate::http::MAX_HEADER_BYTES;
use crate::http::clock::Clock;
use crate::http::head_memory::{HeadMemory, HeadShare};

/// Number of bytes that a field takes in a `HeaderMap` beside its text.
const FIELD_MEMORY: usize = 104;

/// Number of streams for which a connection without streams keeps room.
const KEPT_STREAMS: usize = 4;

/// Memory of the heads and trailers of a connection.
#[derive(Debug)]
pub(super) struct Heads {
    memory: HeadMemory,
    /// Open streams, in ascending order of their ids.
    streams: RefCell<Vec<StreamHead>>,
}

#[derive(Debug)]
struct StreamHead {
    stream: u32,
    /// Bytes of the head and of the trailers.
    head: usize,
    trailers: usize,
    share: HeadShare,
}

/// Open stream. Dropping it releases the share of its head and trailers.
#[derive(Debug)]
pub struct OpenStream {
    heads: Rc<Heads>,
    stream: u32,
    /// Length of the target.
    target: usize,
}

impl Heads {
    pub fn new(memory: HeadMemory) -> Rc<Self> {
        Rc::new(Self {
            memory,
            streams: RefCell::default(),
        })
    }

    /// Accounts for a new stream and its head. The second value is false if the budget does not
    /// allow the head.
    pub fn open<B>(self: &Rc<Self>, stream: u32, request: &http::Request<B>) -> (OpenStream, bool) {
        let uri = request.uri();
        let authority = uri.authority().map_or(0, |it| it.as_str().len());
        let path = uri.path_and_query().map_or(0, |it| it.as_str().len());
        let target = authority + path;
        let head = target + fields_length(request.headers());
        let mut share = HeadShare::default();
        let fits = self.memory.grow(&mut share, head);
        self.streams.borrow_mut().push(StreamHead {
            stream,
            head: if fits { head } else { 0 },
            trailers: 0,
            share,
        });
        let open = OpenStream {
            heads: Rc::clone(self),
            stream,
            target,
        };
        (open, fits)
    }

    /// Accounts for trailers of `length` bytes. False if the budget does not allow them.
    fn add_trailers(&self, stream: u32, length: usize) -> bool {
        let mut streams = self.streams.borrow_mut();
        match streams.binary_search_by_key(&stream, |open| open.stream) {
            Ok(at) => {
                let open = &mut streams[at];
                open.trailers += length;
                self.memory.grow(&mut open.share, open.head + open.trailers)
            }
            // h2 drops the trailers of a stream that has ended.
            Err(_) => true,
        }
    }
}

impl OpenStream {
    /// Releases the share of the fields. The response has begun, and its record keeps the target.
    pub fn release_fields(&self) {
        self.shrink(self.target);
    }

    /// Releases the share of the whole head.
    pub fn release_head(&self) {
        self.shrink(0);
    }

    fn shrink(&self, length: usize) {
        let mut streams = self.heads.streams.borrow_mut();
        if let Ok(at) = streams.binary_search_by_key(&self.stream, |open| open.stream) {
            let open = &mut streams[at];
            open.head = open.head.min(length);
            open.share.shrink(open.head + open.trailers);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut streams = self.heads.streams.borrow_mut();
        if let Ok(at) = streams.binary_search_by_key(&self.stream, |open| open.stream) {
            streams.remove(at);
        }
        if streams.is_empty() {
            streams.shrink_to(KEPT_STREAMS);
        }
    }
}

/// Accounts for the header blocks that h2 has not passed on.
#[derive(Debug)]
pub(super) struct Blocks {
    meter: Rc<RefCell<Meter>>,
    heads: Rc<Heads>,
    /// Stream of the unfinished block.
    stream: Option<u32>,
    share: HeadShare,
    clock: Clock,
}

impl Blocks {
    pub fn new(meter: Rc<RefCell<Meter>>, heads: Rc<Heads>) -> Self {
        Self {
            meter,
            heads,
            stream: None,
            share: HeadShare::default(),
            clock: Clock::default(),
        }
    }

    /// Accounts for what h2 has read and not passed on. All requests must have been accepted, so
    /// that the streams of trailers are known. False if the budget does not allow it.
    pub fn account(&mut self) -> bool {
        let mut meter = self.meter.borrow_mut();
        let unfinished = meter.unfinished();
        let stream = unfinished.map(|block| block.stream);
        if stream != self.stream {
            self.stream = stream;
            self.share = HeadShare::default();
            self.clock.stop();
        }
        let heads = &self.heads;
        unfinished.is_none_or(|block| {
            let length = max_length(block.length);
            heads.memory.grow(&mut self.share, length)
        }) && meter
            .take_trailers()
            .iter()
            .all(|block| heads.add_trailers(block.stream, max_length(block.length)))
    }

    /// Lets h2 read further bytes. Returns true if it must be polled again.
    pub fn resume(&mut self) -> bool {
        self.meter.borrow_mut().resume()
    }

    /// Ready when a block is unfinished for `timeout`.
    pub fn poll_timeout(&mut self, context: &mut Context<'_>, timeout: Duration) -> Poll<()> {
        match self.stream {
            Some(_) => self.clock.poll(context, timeout),
            None => Poll::Pending,
        }
    }
}

/// Returns the maximum memory of a header block of `length` bytes: each byte can be a field.
fn max_length(length: usize) -> usize {
    length
        .saturating_mul(FIELD_MEMORY)
        .min(MAX_HEADER_BYTES as usize)
}

/// Returns the memory of the fields of a head.
pub(super) fn fields_length(headers: &HeaderMap) -> usize {
    let text =
        |(name, value): (&http::HeaderName, &http::HeaderValue)| name.as_str().len() + value.len();
    headers.len() * FIELD_MEMORY + headers.iter().map(text).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head_memory::FREE_HEAD;

    const LIMIT: usize = 2 * MAX_HEADER_BYTES as usize;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;

    fn blocks() -> (Blocks, Rc<Heads>) {
        let heads = Heads::new(HeadMemory::new(LIMIT));
        let meter = Rc::<RefCell<Meter>>::default();
        meter.borrow_mut().read(&[0; 24]);
        (Blocks::new(meter, Rc::clone(&heads)), heads)
    }

    fn receive(blocks: &Blocks, kind: u8, flags: u8, stream: u8, length: u16) {
        let mut meter = blocks.meter.borrow_mut();
        let [high, low] = length.to_be_bytes();
        meter.read(&[0, high, low, kind, flags, 0, 0, 0, stream]);
        meter.read(&vec![0; length.into()]);
    }

    fn request(path: usize, value: usize) -> http::Request<()> {
        http::Request::get(format!("https://h/{}", "x".repeat(path)))
            .header("x", "x".repeat(value))
            .body(())
            .unwrap()
    }

    /// Returns the number of bytes that remain of the budget, in steps.
    fn remaining(heads: &Heads) -> usize {
        let mut share = HeadShare::default();
        let steps =
            (1..).take_while(|steps| heads.memory.grow(&mut share, (steps + 1) * FREE_HEAD));
        steps.count() * FREE_HEAD
    }

    #[test]
    fn head_is_released_in_parts() {
        let (_, heads) = blocks();
        let (open, fits) = heads.open(1, &request(2 * FREE_HEAD, 3 * FREE_HEAD));
        assert!(fits);
        assert_eq!(remaining(&heads), LIMIT - 5 * FREE_HEAD);
        open.release_fields();
        assert_eq!(remaining(&heads), LIMIT - 2 * FREE_HEAD);
        open.release_head();
        assert_eq!(remaining(&heads), LIMIT);
        let (other, fits) = heads.open(3, &request(0, LIMIT + FREE_HEAD));
        assert!(!fits);
        drop((open, other));
        assert!(heads.streams.borrow().is_empty());
        assert_eq!(remaining(&heads), LIMIT);
    }

    #[test]
    fn unfinished_heads_are_accounted_for() {
        let (mut first, heads) = blocks();
        receive(&first, HEADERS, 0, 1, 10);
        assert!(first.account());
        assert_eq!(remaining(&heads), LIMIT, "small");
        receive(&first, CONTINUATION, 0, 1, 1000);
        assert!(first.account());
        assert_eq!(remaining(&heads), LIMIT - 6 * FREE_HEAD);
        receive(&first, CONTINUATION, 0, 1, 16_000);
        receive(&first, CONTINUATION, 0, 1, 16_000);
        assert!(first.account());
        let maximum = MAX_HEADER_BYTES as usize - FREE_HEAD;
        assert_eq!(remaining(&heads), LIMIT - maximum);
        let (meter, other) = (Rc::<RefCell<Meter>>::default(), Rc::clone(&heads));
        let mut second = Blocks::new(meter, other);
        second.meter.borrow_mut().read(&[0; 24]);
        receive(&second, HEADERS, 0, 1, 16_000);
        assert!(second.account());
        let (_open, fits) = heads.open(1, &request(0, 4 * FREE_HEAD));
        assert!(!fits, "the budget is used up");
        receive(&first, CONTINUATION, END_HEADERS, 1, 0);
        assert!(first.account());
        assert_eq!(remaining(&heads), LIMIT - maximum);
    }

    #[test]
    fn trailers_are_accounted_for_until_their_stream_ends() {
        let (mut blocks, heads) = blocks();
        let (open, _) = heads.open(1, &request(0, 0));
        receive(&blocks, HEADERS, END_HEADERS, 1, 100);
        receive(&blocks, HEADERS, END_HEADERS, 1, 16_000);
        assert!(blocks.account());
        let trailers = MAX_HEADER_BYTES as usize;
        assert_eq!(remaining(&heads), LIMIT - trailers);
        open.release_head();
        assert_eq!(remaining(&heads), LIMIT - trailers + FREE_HEAD);
        drop(open);
        receive(&blocks, HEADERS, END_HEADERS, 1, 16_000);
        assert!(blocks.account());
        assert_eq!(remaining(&heads), LIMIT, "the stream has ended");
    }
}
