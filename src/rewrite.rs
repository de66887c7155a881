//! The way back: what an answer says of where things are is made true for the client (CONFORMANCE C74, C76 to C82).

mod coding;
mod html;
mod link;

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame};
use lol_html::AsciiCompatibleEncoding;
use percent_encoding::{AsciiSet, percent_encode};

use coding::{Coding, Decoder, Encoder};
use html::Html;
pub use link::{BadLink, Links};

/// Nothing of ASCII is escaped.
const BEYOND_ASCII: &AsciiSet = &AsciiSet::EMPTY;

/// How much of a page is worked on in one turn of the worker, which has others to serve. It may be overrun by what the
/// last step decodes to.
const SLICE: usize = 64 * 1024;

/// Makes `Location` lead through the bastion.
///
/// # Errors
/// [`BadLink`] where it is no URL: nobody can tell where it leads.
pub fn rewrite_location(headers: &mut HeaderMap, links: impl FnOnce() -> Links) -> Result<(), BadLink> {
    let Some(location) = headers.get(header::LOCATION) else { return Ok(()) };
    // Bytes beyond ASCII, text or not, are escaped as they are.
    let text: Cow<'_, str> = percent_encode(location.as_bytes(), BEYOND_ASCII).into();
    if let Some(rewritten) = links().rewrite(&text)? {
        let value = HeaderValue::try_from(rewritten).map_err(|_| BadLink(text.into_owned()))?;
        headers.insert(header::LOCATION, value);
    }
    Ok(())
}

/// How to read a page.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    coding: Coding,
    encoding: AsciiCompatibleEncoding,
}

/// How to read the answer's page, where it is one whose links are to be rewritten: `text/html` to the letter, whole, in
/// a coding and an encoding that are understood, and no redirect.
pub fn page<B>(method: &Method, response: &Response<B>) -> Option<Reading> {
    let (headers, code) = (response.headers(), response.status());
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let (media_type, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if media_type.trim() != "text/html" || headers.contains_key(header::LOCATION) {
        return None;
    }
    let bodiless = *method == Method::HEAD
        || matches!(code, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
    if bodiless {
        return None;
    }
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let coding = match (codings.next(), codings.next()) {
        (None, _) => Coding::Identity,
        (Some(one), None) => Coding::parse(one.to_str().ok()?)?,
        (Some(_), Some(_)) => return None,
    };
    let charset = parameters.split(';').filter_map(|parameter| parameter.split_once('=')).find_map(|(name, value)| {
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches(['"', '\'']))
    });
    Some(Reading { coding, encoding: html::encoding(charset)? })
}

/// Whether a request may be answered by a page for a browser: then only codings that can be taken off are asked for.
pub fn narrow_accept_encoding(method: &Method, headers: &mut HeaderMap) {
    let asks_for_page = *method == Method::GET
        && headers.get_all(header::ACCEPT).iter().any(|accept| accept.to_str().is_ok_and(|a| a.contains("text/html")));
    if !asks_for_page || !headers.contains_key(header::ACCEPT_ENCODING) {
        return;
    }
    let asked: Vec<_> =
        headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).collect();
    let known: Vec<_> = asked
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|entry| {
            let coding = entry.split(';').next().unwrap_or_default().trim();
            ["gzip", "x-gzip", "deflate", "identity"].iter().any(|known| known.eq_ignore_ascii_case(coding))
        })
        .collect();
    let narrowed = if known.is_empty() { "identity".to_owned() } else { known.join(", ") };
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::try_from(narrowed).expect("parts of header values"));
}

/// Turns a page's bytes into those with its links rewritten, in pieces.
#[expect(missing_debug_implementations, reason = "codecs and rewriters have none")]
pub struct Rewriter {
    decoder: Decoder,
    encoder: Option<Encoder>,
    html: Html,
    /// The first bytes of the page, until they tell whether it is UTF-16.
    start: Option<Vec<u8>>,
    /// A byte order mark said UTF-16: the page passes as it is.
    foreign: bool,
}

/// A page that is not in the coding that its head claims.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be decompressed: {0}")]
pub struct BadPage(#[from] std::io::Error);

impl Rewriter {
    pub fn new(reading: Reading, links: Links) -> Self {
        Self {
            decoder: Decoder::new(reading.coding),
            encoder: None,
            html: Html::new(links, reading.encoding),
            start: Some(Vec::new()),
            foreign: false,
        }
    }

    /// Takes a slice's worth off the front of `bytes`, which are the next of the page. Gives what is ready.
    ///
    /// # Errors
    /// [`BadPage`] where they are none of the page's coding.
    pub fn take(&mut self, bytes: &mut Bytes) -> Result<Vec<u8>, BadPage> {
        let mut page = Vec::new();
        while bytes.has_remaining() && page.len() < SLICE {
            let step = bytes.split_to(bytes.len().min(self.decoder.step()));
            self.decoder.decode(&step, &mut page)?;
        }
        if self.decoder.is_foreign() {
            return Ok(page);
        }
        let page = self.rewrite(page);
        self.encode(page)
    }

    /// # Errors
    /// [`BadPage`] where the page's coding is cut.
    pub fn finish(&mut self) -> Result<Vec<u8>, BadPage> {
        let mut page = Vec::new();
        self.decoder.finish(&mut page)?;
        let mut page = self.rewrite(page);
        if let Some(start) = self.start.take() {
            page.extend(self.html.write(&start));
        }
        page.extend(self.html.finish());
        let mut out = self.encode(page)?;
        if self.encoder.is_none() && self.decoder.has_begun() {
            // An empty page is not an empty stream.
            self.encoder = Some(Encoder::like(&self.decoder));
        }
        if let Some(encoder) = self.encoder.take() {
            out.extend(encoder.finish()?);
        }
        Ok(out)
    }

    fn rewrite(&mut self, page: Vec<u8>) -> Vec<u8> {
        let page = match self.start.take() {
            None => page,
            Some(mut start) => {
                start.extend(page);
                match start[..] {
                    [] | [0xfe | 0xff] => {
                        self.start = Some(start);
                        return Vec::new();
                    }
                    [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => self.foreign = true,
                    _ => {}
                }
                start
            }
        };
        if self.foreign { page } else { self.html.write(&page) }
    }

    /// An answer without a byte stays so: `Encoder` would give it a frame.
    fn encode(&mut self, page: Vec<u8>) -> Result<Vec<u8>, BadPage> {
        if page.is_empty() {
            return Ok(page);
        }
        let encoder = self.encoder.get_or_insert_with(|| Encoder::like(&self.decoder));
        Ok(encoder.encode(page)?)
    }
}

/// A page on its way to the client.
#[expect(missing_debug_implementations, reason = "as Rewriter")]
pub struct Page<B> {
    incoming: B,
    rewriter: Rewriter,
    /// What came and was not looked at yet.
    pending: Bytes,
    /// A slice was worked on, and more is there: the others of the worker come first.
    worked: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
}

/// Why a page broke off.
#[derive(Debug, thiserror::Error)]
pub enum PageError<E> {
    #[error(transparent)]
    Incoming(E),
    #[error(transparent)]
    Page(#[from] BadPage),
}

impl<B> Page<B> {
    pub fn new(incoming: B, reading: Reading, links: Links) -> Self {
        let rewriter = Rewriter::new(reading, links);
        Self { incoming, rewriter, pending: Bytes::new(), worked: false, ended: false, trailers: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Page<B> {
    type Data = Bytes;
    type Error = PageError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            if this.ended {
                return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            if this.pending.has_remaining() {
                if std::mem::take(&mut this.worked) {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let out = this.rewriter.take(&mut this.pending)?;
                this.worked = this.pending.has_remaining();
                if out.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
            match ready!(Pin::new(&mut this.incoming).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.pending = data,
                    Err(frame) => this.trailers = frame.into_trailers().ok(),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(PageError::Incoming(error)))),
                None => {
                    this.ended = true;
                    let out = this.rewriter.finish()?;
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.trailers.is_none()
    }
}
