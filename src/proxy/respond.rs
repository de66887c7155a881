//! Responses of the bastion itself: maps pipeline errors to the `Status` that kube-apiserver
//! returns (CONFORMANCE chapter 10).

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::connect::ConnectError;
use super::pass_through::{IdentityHeaderError, UnprovenLimit};
use super::{Body, PassThroughError, ProxyError};
use crate::authenticate::{AuthenticationError, CredentialError};
use crate::authorize::AuthorizationError;
use crate::cluster::ExcludedEndpoint;
use crate::forward::{ApiError, DialError, ForwardError};
use crate::http::DEFAULT_CACHE_CONTROL;
use crate::model::Status;
use crate::model::status::{Cause, CauseReason, OutputFormat};
use crate::model::target::TargetError;
use crate::resolve::{ResolveError, TunnelResolveError};
use crate::review::{Rejection, ReviewFailure};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");
/// `Retry-After` while no API server can be reached, about the interval of their health checks.
const API_SERVER_RETRY_AFTER_SECONDS: u32 = 1;
/// `Retry-After` of rejected reviews; kube-apiserver sends the same when it is overloaded.
const REVIEW_RETRY_AFTER_SECONDS: u32 = 1;

/// Returns the response for a request that was not proxied.
pub(super) fn error_response(
    error: &ProxyError,
    causes: Vec<Cause>,
    format: OutputFormat,
) -> Response<Body> {
    let status = status(error).with_causes(causes);
    let mut response = Response::new(Body::full(status.render(format)));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        match format {
            OutputFormat::Yaml => YAML,
            OutputFormat::Json | OutputFormat::PrettyJson => JSON,
        },
    );
    headers.insert(header::CACHE_CONTROL, DEFAULT_CACHE_CONTROL);
    if let Some(seconds) = status.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    // kube-apiserver sets nosniff only in its handlers of 403 and of invalid impersonation.
    match status.code {
        StatusCode::BAD_REQUEST if matches!(error, ProxyError::Authenticate(_)) => {
            headers.insert(
                header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            );
        }
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            headers.insert(
                header::PROXY_AUTHENTICATE,
                HeaderValue::from_static("Bearer"),
            );
            // Clients that know no tokens take it as the password.
            headers.append(
                header::PROXY_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"kube-bastion\""),
            );
            // What follows a request without credentials is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        StatusCode::FORBIDDEN => {
            headers.insert(
                header::X_CONTENT_TYPE_OPTIONS,
                HeaderValue::from_static("nosniff"),
            );
        }
        _ => {}
    }
    response
}

/// Redirects (301) to the path with a trailing slash, so that relative links of the page resolve
/// below it (C29).
pub(super) fn redirect(location: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    let location = HeaderValue::from_str(location).or_else(|_| {
        // A decoded name may contain control characters, which a header must not.
        let path = percent_encoding::utf8_percent_encode(location, percent_encoding::CONTROLS);
        HeaderValue::try_from(path.to_string())
    });
    headers.insert(
        header::LOCATION,
        location.expect("a path without control characters is a header value"),
    );
    headers.insert(header::CACHE_CONTROL, DEFAULT_CACHE_CONTROL);
    response
}

/// Headers of a request that select the format of the bastion's own responses.
pub(super) struct AcceptPreference<'a> {
    accept: Option<&'a HeaderValue>,
    agent: Option<&'a HeaderValue>,
}

impl<'a> AcceptPreference<'a> {
    pub fn from_headers(headers: &'a HeaderMap) -> Self {
        Self {
            accept: headers.get(header::ACCEPT),
            agent: headers.get(header::USER_AGENT),
        }
    }

    /// Returns the preferred format (C93): JSON unless the client prefers YAML, indented for
    /// interactive clients.
    pub fn output_format(&self, query: Option<&str>) -> OutputFormat {
        match self.accepted() {
            Some(media_type) if media_type == "application/yaml" => OutputFormat::Yaml,
            Some(_) if !self.is_interactive(query) => OutputFormat::Json,
            // Clients that accept neither are browsers and the like, not clients of the API.
            _ => OutputFormat::PrettyJson,
        }
    }

    /// Returns the supported media type that `Accept` prefers (RFC 9110 section 12.5.1), or `None`
    /// if it accepts none of them.
    fn accepted(&self) -> Option<String> {
        let accept = self
            .accept
            .as_ref()
            .and_then(|accept| accept.to_str().ok())
            .filter(|accept| !accept.is_empty());
        let Some(accept) = accept else {
            return Some("application/json".to_owned());
        };
        let clauses = accept.split(',').map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            // A missing weight counts as 1 (RFC 9110 section 12.4.2). The RFC has no rule for a
            // malformed one, which counts as 1 too, so that the client still gets its media type.
            let quality = parts
                .find_map(|parameter| parameter.strip_prefix("q="))
                .and_then(|q| q.parse::<f32>().ok());
            (media_type, quality.unwrap_or(1.0))
        });
        let supported = clauses.filter(|(media_type, quality)| {
            let is_supported = [
                "application/json",
                "application/yaml",
                "application/*",
                "*/*",
            ]
            .contains(&&**media_type);
            is_supported && *quality > 0.0
        });
        // `max_by` would return the last of several with the highest quality; the first one wins.
        let best = supported.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map(|(media_type, _)| media_type)
    }

    /// Returns true if the client asks for indented JSON with `?pretty`, or is one of those for
    /// which kube-apiserver indents by default.
    fn is_interactive(&self, query: Option<&str>) -> bool {
        let pretty = query
            .unwrap_or_default()
            .split('&')
            .find_map(|pair| pair.strip_prefix("pretty="));
        if let Some(pretty) = pretty.filter(|value| !value.is_empty()) {
            return matches!(pretty, "1" | "t" | "T" | "true" | "TRUE" | "True");
        }
        let agent = self.agent.map_or(&b""[..], HeaderValue::as_bytes);
        ["curl", "Wget", "Mozilla/5.0"]
            .iter()
            .any(|prefix| agent.starts_with(prefix.as_bytes()))
    }
}

/// Returns the causes of an error. They name ports and addresses, so they are only for callers that
/// may reach or read the target.
pub(super) fn status_causes(error: &ProxyError) -> Vec<Cause> {
    let ports = |offered: &[String]| {
        let cause = |port: &String| Cause {
            reason: CauseReason::ServicePort,
            message: format!("port {port}"),
        };
        offered.iter().map(cause).collect()
    };
    match error {
        ProxyError::Authorize(AuthorizationError::Forbidden(denial)) => {
            vec![Cause {
                reason: CauseReason::AccessReview,
                message: denial.review.clone(),
            }]
        }
        ProxyError::Resolve(
            ResolveError::NoServicePort { offered, .. } | ResolveError::NoPort { offered, .. },
        ) => ports(offered),
        ProxyError::Resolve(ResolveError::NoEndpoints { excluded, .. })
        | ProxyError::Connect(ConnectError::Resolve(TunnelResolveError::NoEndpoints {
            excluded,
            ..
        })) => {
            let cause = |ExcludedEndpoint { address, reason }: &ExcludedEndpoint| Cause {
                reason: CauseReason::EndpointRefused,
                message: format!("{address}: {reason}"),
            };
            excluded.iter().map(cause).collect()
        }
        ProxyError::Connect(ConnectError::Resolve(TunnelResolveError::NoPort {
            offered, ..
        })) => ports(offered),
        // The message of the status has the error of a single endpoint.
        ProxyError::Forward(ForwardError::Dial(errors))
        | ProxyError::Connect(ConnectError::Dial(errors))
            if errors.len() > 1 =>
        {
            let cause = |error: &DialError| Cause {
                reason: CauseReason::DialFailed,
                message: error.to_string(),
            };
            errors.iter().map(cause).collect()
        }
        _ => Vec::new(),
    }
}

/// Maps a rejected review: 429 for a client address over its share, 503 for a full queue or a
/// timeout.
fn rejected(rejection: Rejection, message: String) -> Status {
    let status = match rejection {
        Rejection::ClientShare => Status::too_many_requests(message),
        Rejection::QueueFull | Rejection::Timeout => Status::service_unavailable(message),
    };
    status.with_retry_after(REVIEW_RETRY_AFTER_SECONDS)
}

/// Maps a review without a result to a 500, and says if a retry is pointless.
fn unavailable(message: &str, failure: &ReviewFailure) -> Status {
    if failure.is_denied() {
        Status::internal(format!(
            "{message}: the API server denies the review to the bastion; its operator must grant it \
             (its log has the reason)"
        ))
    } else {
        Status::internal(message)
    }
}

/// Maps an error to its `Status`, exhaustively: a new variant does not compile without one.
fn status(error: &ProxyError) -> Status {
    let message = || error.to_string();
    match error {
        ProxyError::NotReady(_) => Status::service_unavailable(message()),
        ProxyError::TooManyHeaders => Status::header_fields_too_large(message()),
        ProxyError::Malformed(error) => Status::malformed_request(error.status(), message()),
        // The reason describes the certificate, whose content the caller knows.
        ProxyError::Authenticate(AuthenticationError::Unauthenticated(
            CredentialError::Certificate(error),
        )) => Status::unauthorized().with_causes(vec![Cause {
            reason: CauseReason::ClientCertificate,
            message: error.to_string(),
        }]),
        ProxyError::Authenticate(AuthenticationError::Unauthenticated(_)) => Status::unauthorized(),
        ProxyError::ProxyUnauthenticated(error) => {
            let status = Status::proxy_authentication_required();
            match error {
                CredentialError::Certificate(error) => status.with_causes(vec![Cause {
                    reason: CauseReason::ClientCertificate,
                    message: error.to_string(),
                }]),
                _ => status,
            }
        }
        ProxyError::HttpsUrl => Status::bad_request(message()),
        ProxyError::Authenticate(AuthenticationError::Impersonation(_)) => {
            Status::bad_request(message())
        }
        // The cause is only logged: it names the API server and the account of the bastion.
        ProxyError::Authenticate(AuthenticationError::Unavailable(failure)) => {
            unavailable("the token could not be reviewed", failure)
        }
        ProxyError::Authenticate(AuthenticationError::Rejected(rejection))
        | ProxyError::Authorize(AuthorizationError::Rejected(rejection)) => {
            rejected(*rejection, message())
        }
        ProxyError::Target(TargetError::NoRoute) => Status::route_not_found(),
        ProxyError::Target(
            TargetError::EncodedSlash
            | TargetError::TooLong(_)
            | TargetError::NotUtf8
            | TargetError::Host(_),
        ) => Status::bad_request(message()),
        ProxyError::Authorize(AuthorizationError::Forbidden(denial)) => Status::forbidden(
            denial.group,
            denial.resource,
            &denial.name,
            denial.to_string(),
        ),
        ProxyError::Authorize(AuthorizationError::Unavailable(failure)) => {
            unavailable("the access could not be reviewed", failure)
        }
        ProxyError::MethodNotAllowed => Status::method_not_allowed(),
        ProxyError::Resolve(error) => match error {
            ResolveError::NotFound { resource, name } => Status::object_not_found(*resource, name),
            ResolveError::NoName
            | ResolveError::NoNamespace
            | ResolveError::BadName(_)
            | ResolveError::BadId(_)
            | ResolveError::AddressNotAllowed
            | ResolveError::NoAddresses
            | ResolveError::Lookup { .. } => Status::bad_request(message()),
            ResolveError::NoPreferredAddress(_) => Status::internal(message()).without_reason(),
            ResolveError::PodEnded { .. }
            | ResolveError::NoServicePort { .. }
            | ResolveError::NoTcpPort { .. }
            | ResolveError::NoPort { .. }
            | ResolveError::NoEndpoints { .. } => Status::service_unavailable(message()),
        },
        ProxyError::Forward(ForwardError::Dial(errors)) => {
            // The last endpoint tried, as in kube-apiserver; the causes list the others.
            let last = errors.last().map(ToString::to_string).unwrap_or_default();
            Status::service_unavailable(format!("error trying to reach service: {last}"))
        }
        ProxyError::Forward(ForwardError::Client(_)) => {
            Status::bad_request("the client aborted the request body")
        }
        ProxyError::Forward(ForwardError::Broken { .. } | ForwardError::TooManyHeaders) => {
            Status::service_unavailable(format!("error trying to reach service: {error}"))
        }
        ProxyError::Forward(ForwardError::InvalidRequestUri(_)) => Status::internal(message()),
        ProxyError::Forward(
            ForwardError::InvalidUpgrade(_)
            | ForwardError::UnrequestedUpgrade(_)
            | ForwardError::UnofferedUpgrade { .. }
            | ForwardError::InvalidAccept,
        ) => Status::internal(message()).without_reason(),
        ProxyError::Connect(error) => error.status(),
        ProxyError::PassThrough(error) => match error {
            PassThroughError::Certificate => Status::unauthorized().with_causes(vec![Cause {
                reason: CauseReason::ClientCertificate,
                message: message(),
            }]),
            PassThroughError::Anonymous => Status::unauthorized(),
            PassThroughError::Identity(IdentityHeaderError::Value(_)) => {
                Status::bad_request(message())
            }
            PassThroughError::Identity(IdentityHeaderError::UnknownNames) => {
                Status::service_unavailable(message())
                    .with_retry_after(API_SERVER_RETRY_AFTER_SECONDS)
            }
            PassThroughError::Unproven(limit) => match limit {
                UnprovenLimit::Client => Status::too_many_requests(message()),
                UnprovenLimit::All => Status::service_unavailable(message()),
            }
            .with_retry_after(API_SERVER_RETRY_AFTER_SECONDS),
            PassThroughError::NoToken => Status::internal(message()).without_reason(),
        },
        ProxyError::ApiServer(error) => match error {
            // The log has the addresses and errors, which are not for callers whom only an API
            // server could identify.
            ApiError::Unreachable(_) | ApiError::Failed { .. } => Status::service_unavailable(
                "no API server can be reached; the request was not carried out, so retry it",
            )
            .with_retry_after(API_SERVER_RETRY_AFTER_SECONDS),
            // Without Retry-After, on which clients repeat any request.
            ApiError::Interrupted { .. } => Status::service_unavailable(
                "the connection to the API server broke, and the request may have been carried out",
            ),
            ApiError::Client(_) => Status::bad_request("the client aborted the request body"),
            ApiError::InvalidRequestUri(_) => Status::internal(message()),
            ApiError::Response(_) => Status::internal(message()).without_reason(),
        },
        ProxyError::Location(_) => Status::internal(format!("Internal error occurred: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_output_format_by_accept_user_agent_and_pretty() {
        let format = |accept: &'static str, agent: &'static str, query: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
            AcceptPreference::from_headers(&headers).output_format(query)
        };
        for (accept, expected) in [
            ("*/*", OutputFormat::Json),
            ("application/yaml", OutputFormat::Yaml),
            ("Application/YAML; charset=utf-8", OutputFormat::Yaml),
            ("application/json, application/yaml", OutputFormat::Json),
            (
                "application/json;q=0.8, application/yaml;q=0.9",
                OutputFormat::Yaml,
            ),
            (
                "text/html, application/yaml;q=0.9, */*;q=0.8",
                OutputFormat::Yaml,
            ),
            ("application/yaml;q=0", OutputFormat::PrettyJson),
            ("", OutputFormat::Json),
            (
                "application/vnd.kubernetes.protobuf, application/yaml",
                OutputFormat::Yaml,
            ),
            ("text/html", OutputFormat::PrettyJson),
        ] {
            assert_eq!(format(accept, "kubectl", None), expected, "{accept}");
        }
        assert_eq!(format("*/*", "curl/8", None), OutputFormat::PrettyJson);
        assert_eq!(
            format("*/*", "curl/8", Some("a=b&pretty=false")),
            OutputFormat::Json
        );
        assert_eq!(
            format("*/*", "kubectl", Some("pretty=true")),
            OutputFormat::PrettyJson
        );
    }

    /// CONFORMANCE C95, C96.
    #[test]
    fn rejected_reviews_ask_to_retry_later() {
        for (rejection, code) in [
            (Rejection::ClientShare, StatusCode::TOO_MANY_REQUESTS),
            (Rejection::QueueFull, StatusCode::SERVICE_UNAVAILABLE),
            (Rejection::Timeout, StatusCode::SERVICE_UNAVAILABLE),
        ] {
            for error in [
                ProxyError::Authenticate(AuthenticationError::Rejected(rejection)),
                ProxyError::Authorize(AuthorizationError::Rejected(rejection)),
            ] {
                let response = error_response(&error, Vec::new(), OutputFormat::Json);
                assert_eq!(response.status(), code, "{error}");
                assert_eq!(response.headers()[header::RETRY_AFTER], "1", "{error}");
            }
        }
    }

    #[test]
    fn denied_reviews_have_another_message_than_outages() {
        let message = |failure: ReviewFailure| {
            status(&ProxyError::Authenticate(AuthenticationError::Unavailable(
                failure,
            )))
            .message
        };
        assert_eq!(
            message(ReviewFailure::Timeout),
            "the token could not be reviewed"
        );
        let denied = message(ReviewFailure::denied());
        assert!(
            denied.starts_with("the token could not be reviewed: the API server denies the review"),
            "{denied}"
        );
    }
}
