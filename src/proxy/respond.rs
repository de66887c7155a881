//! Answers of our own: every stage's no as the `Status` that the apiserver would give (CONFORMANCE
//! chapter 10).

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{Body, ProxyError};
use crate::authenticate::AuthenticationError;
use crate::authorize::AuthorizeError;
use crate::cluster::ExcludedEndpoint;
use crate::forward::{DialError, ForwardError};
use crate::model::Status;
use crate::model::status::{Cause, CauseReason, OutputFormat};
use crate::model::target::TargetError;
use crate::resolve::ResolveError;
use crate::review::Rejection;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");
/// The delay that kube-apiserver gives to requests that it has no room for.
const REVIEW_RETRY_AFTER_SECONDS: u32 = 1;
const NOT_CACHED: HeaderValue = HeaderValue::from_static("no-cache, private");

/// The answer to a request that got no further.
pub(super) fn refuse(error: &ProxyError, causes: Vec<Cause>, form: OutputFormat) -> Response<Body> {
    let status = status(error).with_causes(causes);
    let mut response = Response::new(Body::whole(status.render(form)));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        if form == OutputFormat::Yaml {
            YAML
        } else {
            JSON
        },
    );
    headers.insert(header::CACHE_CONTROL, NOT_CACHED);
    if let Some(seconds) = status.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
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
    headers.insert(
        header::LOCATION,
        location.expect("a path without control characters is a header value"),
    );
    headers.insert(header::CACHE_CONTROL, NOT_CACHED);
    response
}

/// What a request says of the answers that its sender can read. It is looked at only where the
/// answer is ours.
pub(super) struct AcceptPreference {
    accept: Option<HeaderValue>,
    agent: Option<HeaderValue>,
}

impl AcceptPreference {
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self {
            accept: headers.get(header::ACCEPT).cloned(),
            agent: headers.get(header::USER_AGENT).cloned(),
        }
    }

    /// The form that the sender can read best (C93): JSON unless YAML is asked for first; indented
    /// for people.
    pub fn form(&self, query: Option<&str>) -> OutputFormat {
        match self.accepted() {
            Some(media_type) if media_type == "application/yaml" => OutputFormat::Yaml,
            Some(_) if !self.is_of_people(query) => OutputFormat::Json,
            // Who takes neither is not one of the API's clients.
            _ => OutputFormat::PrettyJson,
        }
    }

    /// The media type of ours that `Accept` likes best (RFC 9110 section 12.5.1). None where it
    /// likes none.
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
            let quality = parts
                .find_map(|parameter| parameter.strip_prefix("q="))
                .and_then(|q| q.parse::<f32>().ok());
            (media_type, quality.unwrap_or(1.0))
        });
        let understood = clauses.filter(|(media_type, quality)| {
            let known = [
                "application/json",
                "application/yaml",
                "application/*",
                "*/*",
            ]
            .contains(&&**media_type);
            known && *quality > 0.0
        });
        // The first of those with the highest quality.
        let best = understood.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map(|(media_type, _)| media_type)
    }

    /// The apiserver indents for these, too.
    fn is_of_people(&self, query: Option<&str>) -> bool {
        let asked = query
            .unwrap_or_default()
            .split('&')
            .find_map(|pair| pair.strip_prefix("pretty="));
        if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
            return matches!(asked, "1" | "t" | "T" | "true" | "TRUE" | "True");
        }
        let agent = self.agent.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        ["curl", "Wget", "Mozilla/5.0"]
            .iter()
            .any(|person| agent.starts_with(person.as_bytes()))
    }
}

/// What helps to see why, for those who may see the target.
pub(super) fn status_causes(error: &ProxyError) -> Vec<Cause> {
    let ports = |offered: &[String]| {
        let cause = |port: &String| Cause {
            reason: CauseReason::ServicePort,
            message: format!("port {port}"),
        };
        offered.iter().map(cause).collect()
    };
    match error {
        ProxyError::Authorize(AuthorizeError::Forbidden(no)) => {
            vec![Cause {
                reason: CauseReason::AccessReview,
                message: no.review.clone(),
            }]
        }
        ProxyError::Resolve(
            ResolveError::NoServicePort { offered, .. } | ResolveError::NoPort { offered, .. },
        ) => ports(offered),
        ProxyError::Resolve(ResolveError::NoEndpoints { refused, .. }) => {
            let cause = |ExcludedEndpoint { address, why }: &ExcludedEndpoint| Cause {
                reason: CauseReason::EndpointRefused,
                message: format!("{address}: {why}"),
            };
            refused.iter().map(cause).collect()
        }
        ProxyError::Forward(ForwardError::Dial(errors)) if errors.len() > 1 => {
            let cause = |error: &DialError| Cause {
                reason: CauseReason::DialFailed,
                message: error.to_string(),
            };
            errors.iter().map(cause).collect()
        }
        _ => Vec::new(),
    }
}

/// A client address over its share gets 429; a full queue or a timeout gets 503.
fn rejected(rejection: Rejection, message: String) -> Status {
    let status = match rejection {
        Rejection::ClientShare => Status::too_many_requests(message),
        Rejection::QueueFull | Rejection::Timeout => Status::service_unavailable(message),
    };
    status.with_retry_after(REVIEW_RETRY_AFTER_SECONDS)
}

fn status(error: &ProxyError) -> Status {
    let message = || error.to_string();
    match error {
        ProxyError::NotReady => Status::service_unavailable(message()),
        ProxyError::TooManyHeaders => Status::header_fields_too_large(message()),
        ProxyError::Host => Status::bad_request(message()),
        ProxyError::Authenticate(AuthenticationError::Unauthenticated(_)) => Status::unauthorized(),
        ProxyError::Authenticate(AuthenticationError::Impersonation(_)) => {
            Status::bad_request(message())
        }
        // What failed there is for the log: it names the API and the bastion's account.
        ProxyError::Authenticate(AuthenticationError::Unavailable(_)) => {
            Status::internal("the token could not be reviewed")
        }
        ProxyError::Authenticate(AuthenticationError::Rejected(rejection))
        | ProxyError::Authorize(AuthorizeError::Rejected(rejection)) => {
            rejected(*rejection, message())
        }
        ProxyError::Target(TargetError::NoRoute) => Status::route_not_found(),
        ProxyError::Target(
            TargetError::EncodedSlash | TargetError::TooLong(_) | TargetError::NotUtf8,
        ) => Status::bad_request(message()),
        ProxyError::Authorize(AuthorizeError::Forbidden(no)) => {
            Status::forbidden(no.group, no.resource, &no.name, no.to_string())
        }
        ProxyError::Authorize(AuthorizeError::Unavailable(_)) => {
            Status::internal("the access could not be reviewed")
        }
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
            ResolveError::PodEnded { .. }
            | ResolveError::NoServicePort { .. }
            | ResolveError::NoPort { .. }
            | ResolveError::NoEndpoints { .. } => Status::service_unavailable(message()),
        },
        ProxyError::Forward(ForwardError::Dial(errors)) => {
            // The last that was tried; of the others tell the causes.
            let last = errors.last().map(ToString::to_string).unwrap_or_default();
            Status::service_unavailable(format!("error trying to reach service: {last}"))
        }
        ProxyError::Forward(ForwardError::Client(_)) => {
            Status::bad_request("the request's body broke off")
        }
        ProxyError::Forward(ForwardError::Broken { .. } | ForwardError::TooManyHeaders) => {
            Status::service_unavailable(format!("error trying to reach service: {error}"))
        }
        ProxyError::Forward(ForwardError::OutputFormat(_)) => Status::internal(message()),
        ProxyError::Forward(
            ForwardError::InvalidUpgrade(_)
            | ForwardError::UnaskedUpgrade(_)
            | ForwardError::UnofferedUpgrade { .. }
            | ForwardError::InvalidAccept,
        ) => Status::internal(message()).without_reason(),
        ProxyError::Location(_) => Status::internal(format!("Internal error occurred: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_the_caller_asks_for() {
        let ask = |accept: &'static str, agent: &'static str, query: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
            AcceptPreference::from_headers(&headers).form(query)
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
            assert_eq!(ask(accept, "kubectl", None), expected, "{accept}");
        }
        assert_eq!(ask("*/*", "curl/8", None), OutputFormat::PrettyJson);
        assert_eq!(
            ask("*/*", "curl/8", Some("a=b&pretty=false")),
            OutputFormat::Json
        );
        assert_eq!(
            ask("*/*", "kubectl", Some("pretty=true")),
            OutputFormat::PrettyJson
        );
    }
}
