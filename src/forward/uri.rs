//! Request URIs in the forms of HTTP/1.1 and HTTP/2.

use http::uri::{Authority, InvalidUriParts, Scheme, Uri};
use http::{HeaderValue, Request, Version, header};
use http_body::Body;

use crate::balance::EndpointKey;
use crate::model::Scheme as ModelScheme;

/// The URI of a request has no form in HTTP/1.1 or HTTP/2. Such a request must not be sent: with
/// another URI it would be another request.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequestUri {
    #[error("no path")]
    NoPath,
    #[error(transparent)]
    Parts(#[from] InvalidUriParts),
    #[error("authority {0} is not a valid Host header")]
    Host(Authority),
}

/// Converts a request to HTTP/1.1: URI in origin form, authority in `Host`.
///
/// Requests of the pipeline have this form already, so only a request that an HTTP/2 connection
/// returned unsent changes.
pub(super) fn as_http1<B: Body>(request: &mut Request<B>) -> Result<(), InvalidRequestUri> {
    if request.version() != Version::HTTP_2 {
        return Ok(());
    }
    let parts = request.uri().clone().into_parts();
    *request.uri_mut() = Uri::from(parts.path_and_query.ok_or(InvalidRequestUri::NoPath)?);
    if let Some(authority) = parts.authority {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| InvalidRequestUri::Host(authority))?;
        request.headers_mut().insert(header::HOST, host);
    }
    // Without it, hyper assumes that a GET or HEAD has no body and would drop it.
    let has_body = !request.body().is_end_stream();
    if has_body && !request.headers().contains_key(header::CONTENT_LENGTH) {
        let chunked = HeaderValue::from_static("chunked");
        request
            .headers_mut()
            .insert(header::TRANSFER_ENCODING, chunked);
    }
    *request.version_mut() = Version::HTTP_11;
    Ok(())
}

/// Converts a request to HTTP/2: scheme and authority in the URI instead of `Host` (RFC 9113
/// section 8.3.1).
pub(super) fn as_http2<B>(
    request: &mut Request<B>,
    key: EndpointKey,
) -> Result<(), InvalidRequestUri> {
    let headers = request.headers_mut();
    // DATA frames delimit the body; the field is forbidden in HTTP/2 (RFC 9113 section 8.2.2).
    headers.remove(header::TRANSFER_ENCODING);
    let host = headers.remove(header::HOST);
    if request.version() == Version::HTTP_2 {
        return Ok(());
    }
    // A `Host` that is not an authority, such as an empty one (RFC 9110 section 7.2), has no form
    // in HTTP/2: the address of the endpoint replaces it.
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(match key.transport.scheme() {
        ModelScheme::Http => Scheme::HTTP,
        ModelScheme::Https => Scheme::HTTPS,
    });
    parts.authority = authority.or_else(|| key.address.to_string().parse().ok());
    *request.uri_mut() = Uri::from_parts(parts)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use crate::resolve::Transport;

    fn key(transport: Transport) -> EndpointKey {
        EndpointKey {
            address: "10.0.0.1:80".parse().unwrap(),
            transport,
        }
    }

    #[test]
    fn converts_request_to_http2_and_back() {
        let mut request = Request::get("/a?b")
            .header("host", "bastion.example")
            .body(Empty::<Bytes>::new())
            .unwrap();
        as_http2(&mut request, key(Transport::H2c)).unwrap();
        assert_eq!(
            (request.uri(), request.version()),
            (
                &"http://bastion.example/a?b".parse().unwrap(),
                Version::HTTP_2
            )
        );
        assert!(request.headers().is_empty());
        as_http1(&mut request).unwrap();
        assert_eq!(
            (request.uri().to_string(), request.version()),
            ("/a?b".into(), Version::HTTP_11)
        );
        assert_eq!(request.headers()["host"], "bastion.example");
    }

    #[test]
    fn uses_endpoint_address_without_valid_host() {
        for host in [None, Some(""), Some("a b")] {
            let mut request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
            request
                .headers_mut()
                .extend(host.map(|host| (header::HOST, HeaderValue::from_static(host))));
            as_http2(&mut request, key(Transport::Https)).unwrap();
            assert_eq!(request.uri(), "https://10.0.0.1:80/", "{host:?}");
        }
    }

    #[test]
    fn rejects_request_without_path() {
        let mut request = Request::get("example.com:80")
            .body(Empty::<Bytes>::new())
            .unwrap();
        assert!(matches!(
            as_http2(&mut request, key(Transport::H2c)),
            Err(InvalidRequestUri::Parts(_))
        ));
        assert_eq!(request.uri(), "example.com:80");
        *request.version_mut() = Version::HTTP_2;
        assert!(matches!(
            as_http1(&mut request),
            Err(InvalidRequestUri::NoPath)
        ));
        assert_eq!(request.uri(), "example.com:80");
    }

    #[test]
    fn keeps_body_of_unsent_request() {
        for (length, encoding) in [(None, Some("chunked")), (Some("2"), None)] {
            let mut request = Request::get("/").body(Full::<Bytes>::from("ok")).unwrap();
            let headers = request.headers_mut();
            headers.insert(header::HOST, HeaderValue::from_static("bastion.example"));
            headers.extend(length.map(|it| (header::CONTENT_LENGTH, HeaderValue::from_static(it))));
            headers.extend(
                encoding.map(|it| (header::TRANSFER_ENCODING, HeaderValue::from_static(it))),
            );
            let before = headers.clone();
            as_http2(&mut request, key(Transport::H2c)).unwrap();
            assert!(!request.headers().contains_key(header::TRANSFER_ENCODING));
            as_http1(&mut request).unwrap();
            assert_eq!(*request.headers(), before);
        }
    }
}
