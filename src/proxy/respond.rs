//! Answers of our own: every stage's no as the `Status` that the apiserver would give (CONFORMANCE chapter 10).

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{Body, ProxyError};
use crate::authorize::AuthorizeError;
use crate::forward::ForwardError;
use crate::identify::IdentifyError;
use crate::model::Status;
use crate::model::target::TargetError;
use crate::resolve::ResolveError;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NOT_CACHED: HeaderValue = HeaderValue::from_static("no-cache, private");

/// The answer to a request that got no further. `pretty` indents it.
pub(super) fn refuse(error: &ProxyError, pretty: bool) -> Response<Body> {
    let status = status(error);
    let mut response = Response::new(Body::whole(status.to_json(pretty)));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::CACHE_CONTROL, NOT_CACHED);
    match status.code {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::FORBIDDEN => {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        _ => {}
    }
    response
}

/// 301 to the path with its trailing slash, so that relative links of the page are under it (C29).
pub(super) fn redirect(location: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    let location = HeaderValue::from_str(location).or_else(|_| {
        // A decoded path may hold what no header may.
        let path = percent_encoding::utf8_percent_encode(location, percent_encoding::CONTROLS);
        HeaderValue::try_from(path.to_string())
    });
    headers.insert(header::LOCATION, location.expect("a path without control characters is a header value"));
    headers.insert(header::CACHE_CONTROL, NOT_CACHED);
    response
}

/// Whether a person reads the answer: the apiserver indents for these, too.
pub(super) fn is_for_people(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|person| agent.starts_with(person.as_bytes()))
}

fn status(error: &ProxyError) -> Status {
    let message = || error.to_string();
    match error {
        ProxyError::NotReady => Status::service_unavailable(message()),
        ProxyError::Identify(IdentifyError::Unauthenticated(_)) => Status::unauthorized(),
        ProxyError::Identify(IdentifyError::Impersonation) => Status::bad_request(message()),
        ProxyError::Identify(IdentifyError::Unavailable(_)) => Status::internal(message()),
        ProxyError::Target(TargetError::NoRoute) => Status::route_not_found(),
        ProxyError::Target(TargetError::EncodedSlash | TargetError::NotUtf8) => Status::bad_request(message()),
        ProxyError::Authorize(AuthorizeError::Forbidden(no)) => {
            Status::forbidden(no.resource, &no.name, no.to_string())
        }
        ProxyError::Authorize(AuthorizeError::Unavailable(_)) => Status::internal(message()),
        ProxyError::Method => Status::method_not_allowed(),
        ProxyError::Resolve(error) => match error {
            ResolveError::NotFound { resource, name } => Status::object_not_found(*resource, name),
            ResolveError::NoName
            | ResolveError::NoNamespace
            | ResolveError::BadName(_)
            | ResolveError::BadId(_)
            | ResolveError::AddressNotAllowed
            | ResolveError::NoAddresses
            | ResolveError::Lookup(_) => Status::bad_request(message()),
            ResolveError::NoPreferredAddress(_) => Status::internal(message()).without_reason(),
            ResolveError::NoServicePort { .. }
            | ResolveError::NoEndpoints { .. }
            | ResolveError::AmbiguousPort { .. } => Status::service_unavailable(message()),
        },
        ProxyError::Forward(ForwardError::Dial(_) | ForwardError::Broken { .. }) => {
            Status::service_unavailable(format!("error trying to reach service: {error}"))
        }
        ProxyError::Forward(ForwardError::InvalidUpgrade(_)) => Status::internal(message()).without_reason(),
    }
}
