//! Targets of requests (RFC 9112 section 3.2), with the bytes that the client sent.

use std::rc::Rc;

use http::{Method, Uri};

use super::authority::{has_valid_escapes, is_authority, is_connect_authority};
use super::byte_check::all_bytes;
use crate::model::Scheme;

/// Target of a request: path and query, and the authority that a client of HTTP/2 or the absolute
/// form names.
///
/// `http::Uri` is not used, because it rejects characters that kube-apiserver passes, such as `"`
/// and `<` in queries. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestTarget {
    /// Scheme of the absolute form; `None` for the other forms.
    absolute: Option<Scheme>,
    authority: Option<Rc<str>>,
    /// Path, and `?` with the query if there is one.
    text: Rc<str>,
    /// Length of the path. Targets are limited to the size of a head.
    path_len: u32,
}

/// Reason why a request target is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    #[error("the request target has a form that its method does not allow")]
    Form,
    #[error("the request target has a scheme other than http and https")]
    Scheme,
    #[error("the request target has an invalid authority")]
    Authority,
    #[error("the request target contains a space, a control character or #")]
    Character,
    #[error("the request target is not UTF-8")]
    NotUtf8,
    #[error("the path of the request target has an invalid percent-escape")]
    Escape,
}

impl RequestTarget {
    /// Parses the target of an HTTP/1.1 request line: origin form, absolute form, authority form of
    /// CONNECT, or `*` of OPTIONS.
    ///
    /// # Errors
    /// [`InvalidTarget`] if it has none of these forms or contains bytes that a URI must not have.
    /// Bytes that RFC 3986 does not allow but kube-apiserver passes are valid: `"<>\^{|}`, the
    /// backtick and characters outside ASCII.
    pub fn parse(method: &Method, target: &[u8]) -> Result<Self, InvalidTarget> {
        // CONNECT with a path is not valid HTTP, but kube-apiserver routes it to its 405.
        if target.first() == Some(&b'/') {
            return Self::origin_form(None, target);
        }
        if *method == Method::CONNECT {
            return Self::authority_form(target);
        }
        if target == b"*" {
            return if *method == Method::OPTIONS {
                Ok(Self::from_valid_path("*"))
            } else {
                Err(InvalidTarget::Form)
            };
        }
        let Some(colon) = memchr::memmem::find(target, b"://") else {
            return Err(InvalidTarget::Form);
        };
        let (scheme, rest) = (&target[..colon], &target[colon + 3..]);
        let scheme = if scheme.eq_ignore_ascii_case(b"http") {
            Scheme::Http
        } else if scheme.eq_ignore_ascii_case(b"https") {
            Scheme::Https
        } else {
            return Err(InvalidTarget::Scheme);
        };
        let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = Self::valid_authority(authority)?;
        let parsed = if path.first() == Some(&b'/') {
            Self::origin_form(Some(authority), path)?
        } else {
            // An empty path is `/` (RFC 9110 section 4.2.3).
            Self::origin_form(Some(authority), &[b"/", path].concat())?
        };
        Ok(Self {
            absolute: Some(scheme),
            ..parsed
        })
    }

    /// Converts the URI of an HTTP/2 request. Its form is absolute if the scheme is `http`: clients
    /// that use a proxy send it over TLS, where other requests have the scheme `https`.
    ///
    /// # Errors
    /// As [`Self::parse`], for the pseudo-headers.
    pub fn from_http2(method: &Method, uri: &Uri) -> Result<Self, InvalidTarget> {
        let authority = uri
            .authority()
            .map(|authority| authority.as_str().as_bytes());
        let Some(path) = uri.path_and_query() else {
            // CONNECT without `:path` (RFC 9113 section 8.5).
            return match authority {
                Some(authority) if *method == Method::CONNECT => Self::authority_form(authority),
                _ => Err(InvalidTarget::Form),
            };
        };
        let authority = authority.map(Self::valid_authority).transpose()?;
        let absolute = match uri.scheme_str() {
            None | Some("https") => None,
            Some("http") => authority.is_some().then_some(Scheme::Http),
            Some(_) => return Err(InvalidTarget::Scheme),
        };
        match path.as_str() {
            "*" if *method == Method::OPTIONS => Ok(Self::from_valid_path("*")),
            text if text.starts_with('/') => Ok(Self {
                absolute,
                ..Self::origin_form(authority, text.as_bytes())?
            }),
            _ => Err(InvalidTarget::Form),
        }
    }

    /// Creates a target from a path that is known to be valid and has no query.
    pub fn from_valid_path(path: &str) -> Self {
        Self {
            absolute: None,
            authority: None,
            text: Rc::from(path),
            path_len: length(path),
        }
    }

    /// Returns the target with another path and the same query, in origin form.
    pub fn with_path(&self, path: &str) -> Self {
        let query = &self.text[self.path_len as usize..];
        let text = if query.is_empty() {
            Rc::from(path)
        } else {
            Rc::from([path, query].concat())
        };
        Self {
            absolute: None,
            authority: None,
            text,
            path_len: length(path),
        }
    }

    /// Returns the URL with this path and query on the host `authority`, as a request line to an
    /// HTTP proxy has it.
    pub fn to_absolute_form(&self, authority: &str) -> Self {
        let start = ["http://", authority].concat();
        // `*` of OPTIONS is the URL without a path (RFC 9112 section 3.2.4).
        let text = if self.text.starts_with('/') {
            &self.text
        } else {
            ""
        };
        let path = &text[..text.len().min(self.path_len as usize)];
        Self {
            absolute: None,
            authority: None,
            path_len: length(&start) + length(path),
            text: Rc::from([&start, text].concat()),
        }
    }

    /// Splits the result of [`Self::to_absolute_form`] into the authority, and path and query: the
    /// pseudo-headers `:authority` and `:path` of HTTP/2. `None` for targets of clients.
    pub fn proxied(&self) -> Option<(&str, &str)> {
        let rest = self.text.strip_prefix("http://")?;
        Some(rest.split_at(rest.find('/').unwrap_or(rest.len())))
    }

    /// Returns the target without path and query, so that a tunnel does not keep them.
    pub fn without_path(&self) -> Self {
        Self {
            absolute: self.absolute,
            authority: self.authority.as_deref().map(Rc::from),
            text: Rc::from("/"),
            path_len: 1,
        }
    }

    /// Returns the path. It is empty for the authority form.
    pub fn path(&self) -> &str {
        &self.text[..self.path_len as usize]
    }

    /// Returns the query without its `?`. `Some("")` if only the `?` is present.
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.path_len as usize + 1..)
    }

    /// Returns path and query, as a request line in origin form has them.
    pub fn path_and_query(&self) -> &str {
        &self.text
    }

    /// Returns the authority of the authority form, which is that of CONNECT.
    pub fn tunnel(&self) -> Option<&str> {
        self.text.is_empty().then(|| self.authority()).flatten()
    }

    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// Returns scheme and authority of the absolute form, which clients send to a proxy.
    pub fn absolute(&self) -> Option<(Scheme, &str)> {
        Some((self.absolute?, self.authority()?))
    }

    fn origin_form(authority: Option<Rc<str>>, text: &[u8]) -> Result<Self, InvalidTarget> {
        // Spaces, controls and DEL, and `#`: fragments are not sent (RFC 9112 section 3.2.1).
        if !all_bytes(text, |byte| byte > b' ' && byte != 0x7f && byte != b'#') {
            return Err(InvalidTarget::Character);
        }
        let path_len = memchr::memchr(b'?', text).unwrap_or(text.len());
        let path = &text[..path_len];
        // Escapes of the query pass as they are, as with kube-apiserver (CONFORMANCE C28).
        if memchr::memchr(b'%', path).is_some() && !has_valid_escapes(path, |_| true) {
            return Err(InvalidTarget::Escape);
        }
        let text = str::from_utf8(text).map_err(|_| InvalidTarget::NotUtf8)?;
        Ok(Self {
            absolute: None,
            authority,
            path_len: length(&text[..path_len]),
            text: Rc::from(text),
        })
    }

    fn authority_form(text: &[u8]) -> Result<Self, InvalidTarget> {
        if !is_connect_authority(text) {
            return Err(InvalidTarget::Authority);
        }
        let authority = str::from_utf8(text).map_err(|_| InvalidTarget::Authority)?;
        Ok(Self {
            absolute: None,
            authority: Some(Rc::from(authority)),
            text: Rc::from(""),
            path_len: 0,
        })
    }

    fn valid_authority(text: &[u8]) -> Result<Rc<str>, InvalidTarget> {
        if text.is_empty() || !is_authority(text) {
            return Err(InvalidTarget::Authority);
        }
        str::from_utf8(text)
            .map(Rc::from)
            .map_err(|_| InvalidTarget::Authority)
    }
}

fn length(path: &str) -> u32 {
    u32::try_from(path.len()).expect("a head has at most MAX_HEADER_BYTES")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, target: &str) -> Result<RequestTarget, InvalidTarget> {
        RequestTarget::parse(method, target.as_bytes())
    }

    #[test]
    fn absolute_form_has_scheme_and_authority() {
        for (text, absolute, path) in [
            ("http://a/b?c", Some((Scheme::Http, "a")), "/b"),
            ("HTTP://a:80", Some((Scheme::Http, "a:80")), "/"),
            ("https://a?c", Some((Scheme::Https, "a")), "/"),
            ("/b", None, "/b"),
        ] {
            let target = parse(&Method::GET, text).unwrap();
            assert_eq!((target.absolute(), target.path()), (absolute, path));
        }
        let connect = parse(&Method::CONNECT, "a:80").unwrap();
        assert_eq!(
            (connect.absolute(), connect.authority()),
            (None, Some("a:80"))
        );
        for (uri, absolute) in [
            ("http://a/b", Some((Scheme::Http, "a"))),
            ("https://a/b", None),
            ("/b", None),
        ] {
            let target = RequestTarget::from_http2(&Method::GET, &uri.parse().unwrap()).unwrap();
            assert_eq!(
                (target.absolute(), target.path()),
                (absolute, "/b"),
                "{uri}"
            );
        }
        let target = parse(&Method::GET, "http://a/b?c").unwrap();
        let without = target.without_path();
        assert_eq!(
            (without.absolute(), without.path_and_query()),
            (target.absolute(), "/")
        );
        assert_eq!(target.with_path("/d").absolute(), None);
    }

    #[test]
    fn converts_to_the_request_line_for_a_proxy() {
        for (method, text, path, query) in [
            (Method::GET, "/a%2Fb?c=%zz", "/a%2Fb?c=%zz", Some("c=%zz")),
            (Method::GET, "http://a/b", "/b", None),
            (Method::OPTIONS, "*", "", None),
        ] {
            let target = parse(&method, text).unwrap();
            assert_eq!(target.proxied(), None);
            let target = target.to_absolute_form("web.shop.svc:80");
            let expected = ["http://web.shop.svc:80", path].concat();
            assert_eq!(
                (target.path_and_query(), target.query()),
                (&*expected, query)
            );
            assert_eq!(target.proxied(), Some(("web.shop.svc:80", path)));
        }
    }

    #[test]
    fn keeps_bytes_of_origin_form() {
        for (text, path, query) in [
            ("/", "/", None),
            ("/a?", "/a", Some("")),
            (
                "/a%2F//b?c=%zz&d=\"<>\\^`{|}",
                "/a%2F//b",
                Some("c=%zz&d=\"<>\\^`{|}"),
            ),
            ("/\u{e4}?\u{fc}?x", "/\u{e4}", Some("\u{fc}?x")),
        ] {
            let target = parse(&Method::GET, text).unwrap();
            assert_eq!((target.path(), target.query()), (path, query));
            assert_eq!((target.path_and_query(), target.authority()), (text, None));
        }
    }

    #[test]
    fn splits_absolute_form() {
        for (text, authority, path) in [
            ("http://a/b?c", "a", "/b?c"),
            ("HTTPS://a:80", "a:80", "/"),
            ("http://[::1]?x", "[::1]", "/?x"),
        ] {
            let target = parse(&Method::GET, text).unwrap();
            assert_eq!(target.authority(), Some(authority));
            assert_eq!(target.path_and_query(), path);
        }
    }

    #[test]
    fn rejects_invalid_targets() {
        use InvalidTarget::{Authority, Character, Escape, Form, Scheme};
        for (method, text, error) in [
            (Method::GET, "", Form),
            (Method::GET, "*", Form),
            (Method::GET, "a", Form),
            (Method::GET, "a:80", Form),
            (Method::OPTIONS, "**", Form),
            (Method::CONNECT, "", Authority),
            (Method::CONNECT, "a", Authority),
            (Method::CONNECT, "a:", Authority),
            (Method::CONNECT, "[::1]", Authority),
            (Method::CONNECT, "2001:db8::1:443", Authority),
            (Method::CONNECT, "u@a:80", Authority),
            (Method::GET, "ftp://a/", Scheme),
            (Method::GET, "http://", Authority),
            (Method::GET, "http:///a", Authority),
            (Method::GET, "http://u:p@a/", Authority),
            (Method::GET, "http://a:x/", Authority),
            (Method::GET, "/a#b", Character),
            (Method::GET, "/a b", Character),
            (Method::GET, "/a?\u{7f}", Character),
            (Method::GET, "/%zz", Escape),
            (Method::GET, "/%2", Escape),
            (Method::GET, "/%", Escape),
            (Method::GET, "/%u002e", Escape),
        ] {
            assert_eq!(parse(&method, text), Err(error), "{method} {text}");
        }
        assert_eq!(
            RequestTarget::parse(&Method::GET, b"/\xff"),
            Err(InvalidTarget::NotUtf8)
        );
    }

    #[test]
    fn accepts_authority_and_asterisk_form_with_their_methods() {
        let connect = parse(&Method::CONNECT, "a.example:443").unwrap();
        assert_eq!(
            (connect.authority(), connect.path()),
            (Some("a.example:443"), "")
        );
        assert_eq!(connect.tunnel(), Some("a.example:443"));
        assert_eq!(parse(&Method::GET, "http://a/").unwrap().tunnel(), None);
        assert_eq!(parse(&Method::OPTIONS, "*").unwrap().path(), "*");
    }

    #[test]
    fn replaces_path_and_keeps_query() {
        let target = parse(&Method::GET, "http://a/b?c").unwrap().with_path("/x");
        assert_eq!(
            (target.path_and_query(), target.authority()),
            ("/x?c", None)
        );
        assert_eq!(
            parse(&Method::GET, "/b")
                .unwrap()
                .with_path("/x")
                .path_and_query(),
            "/x"
        );
    }

    #[test]
    fn checks_http2_pseudo_headers() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let target = RequestTarget::from_http2(&Method::GET, &uri("https://a:1/b?c")).unwrap();
        assert_eq!(
            (target.authority(), target.path_and_query()),
            (Some("a:1"), "/b?c")
        );
        for (text, error) in [
            ("https://u@a/", InvalidTarget::Authority),
            ("https://a/%zz", InvalidTarget::Escape),
            ("ftp://a/", InvalidTarget::Scheme),
        ] {
            let parsed = RequestTarget::from_http2(&Method::GET, &uri(text));
            assert_eq!(parsed, Err(error), "{text}");
        }
    }
}
