//! Requests in the form of HTTP/2.

use http::uri::{Authority, InvalidUri, InvalidUriParts, PathAndQuery, Scheme, Uri};
use http::{Request, Version, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::pool::Destination;
use crate::http::RequestHead;
use crate::model::Scheme as ModelScheme;

/// Characters that `http::Uri`, which hyper requires, does not accept, and others that RFC 3986 does
/// not allow either. An escape has the same meaning.
const UNSAFE: &AsciiSet = &CONTROLS
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The target of a request has no form in HTTP/2. Such a request must not be sent: with another URI
/// it would be another request.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequestUri {
    #[error(transparent)]
    Path(#[from] InvalidUri),
    #[error(transparent)]
    Parts(#[from] InvalidUriParts),
}

/// Converts the head of a request to HTTP/2: scheme and authority in the URI instead of `Host` (RFC
/// 9113 section 8.3.1). A request to a proxy has those of its URL.
pub(super) fn to_http2(
    head: &RequestHead,
    destination: Destination,
) -> Result<Request<()>, InvalidRequestUri> {
    let (proxied, text) = match head.target.proxied() {
        // The URL without a path (RFC 9113 section 8.3.1).
        Some((authority, "")) => (Some(authority), "*"),
        Some((authority, text)) => (Some(authority), text),
        None => (None, head.target.path_and_query()),
    };
    let path = PathAndQuery::try_from(text)
        .or_else(|_| PathAndQuery::try_from(utf8_percent_encode(text, UNSAFE).to_string()))?;
    let mut headers = head.headers.clone();
    // A `Host` that is not an authority, such as an empty one (RFC 9110 section 7.2), has no form
    // in HTTP/2: the address of the endpoint replaces it.
    let authority = headers
        .remove(header::HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = http::uri::Parts::default();
    if let Some(proxied) = proxied {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::try_from(proxied)?);
    } else {
        parts.scheme = Some(match destination.scheme() {
            ModelScheme::Http => Scheme::HTTP,
            ModelScheme::Https => Scheme::HTTPS,
        });
        parts.authority = authority.or_else(|| destination.default_host().to_string().parse().ok());
    }
    parts.path_and_query = Some(path);
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::from_parts(parts)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::Method;

    use crate::balance::EndpointKey;
    use crate::http::RequestTarget;
    use crate::resolve::Transport;
    use crate::testing::head;

    fn key(transport: Transport) -> Destination {
        Destination::Endpoint(EndpointKey {
            address: "10.0.0.1:80".parse().unwrap(),
            transport,
        })
    }

    #[test]
    fn converts_request_to_http2() {
        let head = head(Request::get("/a?b").header("host", "bastion.example"));
        let request = to_http2(&head, key(Transport::H2c)).unwrap();
        assert_eq!(
            (request.uri(), request.version()),
            (
                &"http://bastion.example/a?b".parse().unwrap(),
                Version::HTTP_2
            )
        );
        assert!(request.headers().is_empty());
    }

    #[test]
    fn request_to_a_proxy_has_scheme_and_authority_of_its_url() {
        for (method, path, expected) in [
            (Method::GET, "/a?b", "http://web.shop.svc/a?b"),
            (Method::OPTIONS, "*", "http://web.shop.svc*"),
        ] {
            let request = Request::builder().method(method.clone()).uri("/");
            let mut head = head(request.header("host", "bastion.example"));
            let target = RequestTarget::parse(&method, path.as_bytes()).unwrap();
            head.target = target.to_absolute_form("web.shop.svc");
            let request = to_http2(&head, key(Transport::Https)).unwrap();
            assert_eq!(request.uri().to_string(), expected);
            assert!(request.headers().is_empty());
        }
    }

    #[test]
    fn uses_endpoint_address_without_valid_host() {
        for host in [None, Some(""), Some("a b")] {
            let mut request = Request::get("/");
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let request = to_http2(&head(request), key(Transport::Https)).unwrap();
            assert_eq!(request.uri(), "https://10.0.0.1:80/", "{host:?}");
        }
    }

    #[test]
    fn escapes_characters_that_have_no_form_in_a_uri() {
        let mut head = head(Request::get("/").header("host", "a"));
        head.target = RequestTarget::parse(&Method::GET, b"/a?q={\"<>\"}").unwrap();
        let request = to_http2(&head, key(Transport::H2c)).unwrap();
        assert_eq!(request.uri(), "http://a/a?q=%7B%22%3C%3E%22%7D");
    }
}
