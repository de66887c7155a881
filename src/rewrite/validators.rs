//! Validators of rewritten pages (CONFORMANCE C82): entity tags, ranges and digests.
//!
//! A rewritten page is another sequence of bytes than that of the endpoint, so that a strong entity
//! tag would be false (RFC 9110 section 8.8.1). It becomes weak, with a suffix that names the
//! bastion. Requests get the tag of the endpoint back from it, so that also endpoints that compare
//! tags as strings recognize their own. No state is kept.

use std::borrow::Cow;

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{Method, Response, StatusCode};

use super::format::PageFormat;

/// Headers that describe the bytes of a page.
const NOT_OF_REWRITTEN: [HeaderName; 5] = [
    ACCEPT_RANGES,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// End of the tags of rewritten pages whose endpoint sent a strong one.
const SUFFIX: &[u8] = b"-bastion\"";

/// Tags of a conditional request (`If-None-Match`) among which are weak ones, for its response.
#[derive(Debug, Default)]
pub struct RequestTags(Option<Box<HeaderValue>>);

impl RequestTags {
    /// Replaces the tags of rewritten pages by those of the endpoint. Returns the tags of the
    /// client.
    pub fn restore(headers: &mut HeaderMap) -> Self {
        let tags = headers
            .get(IF_NONE_MATCH)
            .filter(|tags| tags.as_bytes().windows(2).any(|bytes| bytes == b"W/"))
            .cloned();
        for name in [IF_NONE_MATCH, IF_MATCH] {
            let Some(tags) = headers.get(&name) else {
                continue;
            };
            let restored = restored_tags(tags.as_bytes());
            if let Some(restored) = restored.and_then(|tags| HeaderValue::from_bytes(&tags).ok()) {
                headers.insert(name, restored);
            }
        }
        Self(tags.map(Box::new))
    }

    /// Gives a 304 the tag that its client has of the page, and removes what is not true of the
    /// page. Other responses without content have no type either, so that the tags alone tell.
    pub fn describe_not_modified<B>(&self, response: &mut Response<B>) {
        let (Some(tags), StatusCode::NOT_MODIFIED) = (&self.0, response.status()) else {
            return;
        };
        let headers = response.headers_mut();
        let Some(tag) = headers.get(ETAG) else {
            return;
        };
        let known = split_tags(tags.as_bytes())
            .find(|known| is_weak(known) && restored(known).as_ref() == tag.as_bytes())
            .or_else(|| {
                split_tags(tags.as_bytes())
                    .find(|known| known.strip_prefix(b"W/") == Some(tag.as_bytes()))
            })
            .filter(|known| *known != tag.as_bytes())
            .and_then(|known| HeaderValue::from_bytes(known).ok());
        if let Some(known) = known {
            headers.insert(ETAG, known);
            headers.remove(CONTENT_LENGTH);
            remove_of_bytes(headers);
        }
    }
}

/// Replaces the headers of a page that is rewritten by those that are true of it. Its length is
/// unknown until its end.
pub fn describe_rewritten(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    remove_of_bytes(headers);
    let weak = headers
        .get(ETAG)
        .and_then(|tag| tag.as_bytes().strip_prefix(b"\"")?.strip_suffix(b"\""))
        .and_then(|tag| HeaderValue::from_bytes(&[b"W/\"", tag, SUFFIX].concat()).ok());
    if let Some(weak) = weak {
        headers.insert(ETAG, weak);
    }
}

/// As [`describe_rewritten`], for a response to HEAD, if a GET would get a page. A length must be
/// that of the response to a GET (RFC 9110 section 8.6), so it is removed, too.
pub fn describe_head(headers: &mut HeaderMap) {
    if PageFormat::of_headers(headers).is_some() {
        describe_rewritten(headers);
    }
}

fn remove_of_bytes(headers: &mut HeaderMap) {
    for name in NOT_OF_REWRITTEN {
        headers.remove(name);
    }
}

/// Returns true if the response is a part of a page that would have been rewritten as a whole, and
/// its client has another part, which may be of the rewritten page.
pub fn is_part_to_join<B>(method: &Method, request: &HeaderMap, response: &Response<B>) -> bool {
    *method == Method::GET
        && response.status() == StatusCode::PARTIAL_CONTENT
        && request.contains_key(IF_RANGE)
        && PageFormat::of_headers(response.headers()).is_some()
}

/// Makes a request for a part of a page one for the whole page.
pub fn request_whole(headers: &mut HeaderMap) {
    headers.remove(RANGE);
    headers.remove(IF_RANGE);
}

/// Returns a list of tags with those of the endpoint, or `None` if it has no tag of a rewritten
/// page.
fn restored_tags(tags: &[u8]) -> Option<Vec<u8>> {
    if !split_tags(tags).any(|tag| matches!(restored(tag), Cow::Owned(_))) {
        return None;
    }
    let tags: Vec<_> = split_tags(tags).map(restored).collect();
    Some(tags.join(&b", "[..]))
}

/// Returns the endpoint's tag of a rewritten page; other tags as they are.
fn restored(tag: &[u8]) -> Cow<'_, [u8]> {
    match tag
        .strip_prefix(b"W/")
        .and_then(|tag| tag.strip_suffix(SUFFIX))
    {
        Some(tag) => Cow::Owned([tag, b"\""].concat()),
        None => Cow::Borrowed(tag),
    }
}

fn is_weak(tag: &[u8]) -> bool {
    tag.starts_with(b"W/")
}

/// Returns the tags of a list. Tags may contain commas.
fn split_tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_quoted = false;
    list.split(move |byte| {
        is_quoted ^= *byte == b'"';
        *byte == b',' && !is_quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        fields.collect()
    }

    #[test]
    fn rewritten_pages_have_weak_tags_and_no_digests() {
        for (tag, expected) in [
            ("\"a\"", "W/\"a-bastion\""),
            ("\"\"", "W/\"-bastion\""),
            ("W/\"a\"", "W/\"a\""),
            ("a", "a"),
            ("\"", "\""),
        ] {
            let mut headers = map(&[("etag", tag), ("content-length", "1")]);
            for name in NOT_OF_REWRITTEN {
                headers.insert(name, HeaderValue::from_static("1"));
            }
            describe_rewritten(&mut headers);
            assert_eq!(headers[ETAG], expected);
            assert_eq!(headers.len(), 1, "{headers:?}");
        }
    }

    #[test]
    fn endpoints_get_their_own_tags() {
        for (tags, expected) in [
            ("W/\"a-bastion\"", "\"a\""),
            ("W/\"-bastion\"", "\"\""),
            (
                "\"b\" ,W/\"a,b-bastion\",, W/\"c\"",
                "\"b\", \"a,b\", W/\"c\"",
            ),
            // Not of the bastion.
            ("W/\"a\"", "W/\"a\""),
            ("\"a-bastion\"", "\"a-bastion\""),
            ("\"a\" ,\"b\"", "\"a\" ,\"b\""),
            ("*", "*"),
            ("W/\"a-bastion", "W/\"a-bastion"),
        ] {
            let mut headers = HeaderMap::new();
            for name in [IF_NONE_MATCH, IF_MATCH] {
                headers.insert(name, HeaderValue::from_static(tags));
            }
            RequestTags::restore(&mut headers);
            for name in [IF_NONE_MATCH, IF_MATCH] {
                assert_eq!(headers[name], expected, "{tags}");
            }
        }
    }

    #[test]
    fn not_modified_names_the_tag_of_the_client() {
        for (tags, tag, expected) in [
            ("W/\"a-bastion\"", "\"a\"", "W/\"a-bastion\""),
            ("W/\"b\", W/\"a-bastion\"", "\"a\"", "W/\"a-bastion\""),
            ("W/\"a\"", "\"a\"", "W/\"a\""),
            // Of a resource that is not rewritten.
            ("\"a\"", "\"a\"", "\"a\""),
            ("W/\"a\"", "W/\"a\"", "W/\"a\""),
            ("W/\"b-bastion\"", "\"a\"", "\"a\""),
            ("W/\"b-bastion\", \"a\"", "\"a\"", "\"a\""),
            ("*", "\"a\"", "\"a\""),
        ] {
            let mut request = map(&[("if-none-match", tags)]);
            let tags_of_client = RequestTags::restore(&mut request);
            let response = |code| {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::from_u16(code).unwrap();
                *response.headers_mut() = map(&[("etag", tag), ("accept-ranges", "bytes")]);
                response
            };
            let mut not_modified = response(304);
            tags_of_client.describe_not_modified(&mut not_modified);
            let headers = not_modified.headers();
            assert_eq!(headers[ETAG], expected, "{tags}");
            assert_eq!(
                headers.contains_key(ACCEPT_RANGES),
                tag == expected,
                "{tags}"
            );
            let mut other = response(200);
            tags_of_client.describe_not_modified(&mut other);
            assert_eq!(other.headers()[ETAG], tag, "{tags}");
        }
    }

    #[test]
    fn parts_of_pages_are_joined_only_with_their_own_kind() {
        for (method, range, code, content_type, expected) in [
            (Method::GET, true, 206, "text/html", true),
            (Method::GET, true, 206, "TEXT/HTML;charset=none", true),
            (Method::GET, false, 206, "text/html", false),
            (Method::GET, true, 206, "application/zip", false),
            (Method::GET, true, 200, "text/html", false),
            (Method::POST, true, 206, "text/html", false),
        ] {
            let request = if range {
                map(&[("range", "bytes=5-"), ("if-range", "\"a\"")])
            } else {
                map(&[("range", "bytes=5-")])
            };
            let response = Response::builder()
                .status(code)
                .header("content-type", content_type);
            let response = response.body(()).unwrap();
            let found = is_part_to_join(&method, &request, &response);
            assert_eq!(found, expected, "{method} {range} {code} {content_type}");
        }
    }
}
