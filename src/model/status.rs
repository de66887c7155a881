//! `metav1.Status`, the body of the bastion's own error responses (CONFORMANCE chapter 10).

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use super::Resource;
use super::quote::GoQuoted;

/// Machine-readable reason, a `StatusReason` of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    Unauthorized,
    Forbidden,
    NotFound,
    BadRequest,
    MethodNotAllowed,
    InternalError,
    ServiceUnavailable,
    TooManyRequests,
}

/// Object of the failure. Rendered as `{}` where the API sends empty details.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Empty for the core group.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub group: &'static str,
    /// Plural of the resource.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds after which a retry may succeed, as in the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// Detail of the cause (`metav1.StatusCause`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Machine-readable kind of the cause.
    pub reason: CauseReason,
    /// Text for people.
    pub message: String,
}

/// Kind of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CauseReason {
    /// A client certificate that does not identify the caller.
    ClientCertificate,
    /// A review that was denied.
    AccessReview,
    /// A port that the service has.
    ServicePort,
    /// An endpoint that is excluded, with the reason.
    EndpointRefused,
    /// An endpoint that could not be dialed, with the error.
    DialFailed,
}

/// Format of a response body (CONFORMANCE C93).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    Json,
    /// Indented JSON.
    PrettyJson,
    Yaml,
}

/// Failure as Kubernetes clients expect it: `code` is the HTTP status, `message` is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: StatusCode,
    /// Absent where kube-apiserver omits it, as in errors of its upgrade path.
    pub reason: Option<Reason>,
    pub message: String,
    pub details: Option<Details>,
}

impl Status {
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            Reason::Unauthorized,
            "Unauthorized",
        )
    }

    /// 407 for a client that uses the bastion as its proxy. kube-apiserver has no reason for it.
    pub fn proxy_authentication_required() -> Self {
        Self {
            code: StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            reason: None,
            message:
                "Proxy Authentication Required: send a token in Proxy-Authorization, as Bearer \
                      or as the password of Basic, or use a client certificate"
                    .to_owned(),
            details: None,
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Reason::BadRequest, message)
    }

    /// `resource` is the plural of a resource in the API group `group`.
    pub fn forbidden(
        group: &'static str,
        resource: &'static str,
        name: &str,
        message: String,
    ) -> Self {
        let details = Details {
            name: name.into(),
            group,
            kind: resource,
            ..Details::default()
        };
        Self {
            details: Some(details),
            ..Self::new(StatusCode::FORBIDDEN, Reason::Forbidden, message)
        }
    }

    pub fn object_not_found(resource: Resource, name: &str) -> Self {
        let message = format!("{resource} {} not found", GoQuoted(name));
        let details = Details {
            name: name.into(),
            kind: resource.plural(),
            ..Details::default()
        };
        Self {
            details: Some(details),
            ..Self::new(StatusCode::NOT_FOUND, Reason::NotFound, message)
        }
    }

    /// 404 for a path that is not a `/proxy/` route.
    pub fn route_not_found() -> Self {
        Self {
            details: Some(Details::default()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                Reason::NotFound,
                "the server could not find the requested resource",
            )
        }
    }

    pub fn method_not_allowed() -> Self {
        Self {
            details: Some(Details::default()),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Reason::MethodNotAllowed,
                "the server does not allow this method on the requested resource",
            )
        }
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::ServiceUnavailable,
            message,
        )
    }

    /// 429 as kube-apiserver's API Priority and Fairness returns it.
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            Reason::TooManyRequests,
            message,
        )
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::InternalError,
            message,
        )
    }

    /// 431 without a reason, because the API defines none for it.
    pub fn header_fields_too_large(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::BadRequest,
            message,
        )
        .without_reason()
    }

    /// Error of a request that the HTTP codec rejects. The API has a reason for 400 only.
    pub fn malformed_request(code: StatusCode, message: impl Into<String>) -> Self {
        let status = Self::new(code, Reason::BadRequest, message);
        if code == StatusCode::BAD_REQUEST {
            status
        } else {
            status.without_reason()
        }
    }

    pub fn without_reason(self) -> Self {
        Self {
            reason: None,
            ..self
        }
    }

    fn new(code: StatusCode, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: Some(reason),
            message: message.into(),
            details: None,
        }
    }

    /// Sets the time after which a retry may succeed, in seconds.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds);
        self
    }

    /// Returns the value of the header `Retry-After`, in seconds.
    pub fn retry_after(&self) -> Option<u32> {
        self.details.as_ref()?.retry_after_seconds
    }

    /// Sets the causes, unless there are none.
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        if !causes.is_empty() {
            self.details.get_or_insert_default().causes = causes;
        }
        self
    }

    /// Renders the response body. JSON on one line ends with a newline, as with Go's encoder.
    pub fn render(&self, format: OutputFormat) -> Bytes {
        let wire = Wire {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message: &self.message,
            reason: self.reason,
            details: self.details.as_ref(),
            code: self.code.as_u16(),
        };
        let json = match format {
            OutputFormat::Json => serde_json::to_string(&wire).expect(PLAIN),
            OutputFormat::PrettyJson => serde_json::to_string_pretty(&wire).expect(PLAIN),
            OutputFormat::Yaml => {
                // Through a JSON value, which sorts the keys as kube-apiserver does.
                let sorted = serde_json::to_value(&wire).expect(PLAIN);
                return Bytes::from(serde_saphyr::to_string(&sorted).expect(PLAIN));
            }
        };
        // Go escapes `<`, `>` and `&`, so that browsers do not interpret JSON as HTML. They occur
        // in strings only.
        let mut json = json.replace('&', "\\u0026");
        json = json.replace('<', "\\u003c").replace('>', "\\u003e");
        if format == OutputFormat::Json {
            json.push('\n');
        }
        Bytes::from(json)
    }
}

const PLAIN: &str = "a Status is plain strings and numbers";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Details>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(status: &Status) -> String {
        String::from_utf8(status.render(OutputFormat::Json).to_vec()).unwrap()
    }

    #[test]
    fn renders_yaml_with_sorted_keys() {
        let status = Status::object_not_found(Resource::Pods, "p");
        let yaml = String::from_utf8(status.render(OutputFormat::Yaml).to_vec()).unwrap();
        let keys: Vec<_> = yaml
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, _)| key)
            .collect();
        let expected = [
            "apiVersion",
            "code",
            "details",
            "  kind",
            "  name",
            "kind",
            "message",
            "metadata",
            "reason",
            "status",
        ];
        assert_eq!(keys, expected, "{yaml}");
    }

    #[test]
    fn renders_causes_in_details() {
        let cause = Cause {
            reason: CauseReason::ServicePort,
            message: "http: 80".into(),
        };
        let status = Status::service_unavailable("x").with_causes(vec![cause]);
        let expected =
            r#""details":{"causes":[{"reason":"ServicePort","message":"http: 80"}]},"code":503"#;
        assert!(json(&status).contains(expected), "{}", json(&status));
        assert_eq!(
            Status::service_unavailable("x").with_causes(vec![]).details,
            None
        );
    }

    #[test]
    fn renders_json_as_kube_apiserver() {
        assert_eq!(
            json(&Status::unauthorized()),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":"Unauthorized","reason":"Unauthorized","code":401}"#,
                "\n"
            )
        );
        assert_eq!(
            json(&Status::object_not_found(Resource::Pods, "p")),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":"pods \"p\" not found","reason":"NotFound","#,
                r#""details":{"name":"p","kind":"pods"},"code":404}"#,
                "\n"
            )
        );
        assert!(json(&Status::route_not_found()).contains(r#""details":{},"code":404"#));
        assert!(!json(&Status::internal("x").without_reason()).contains("reason"));
    }

    #[test]
    fn escapes_markup_in_json() {
        let json = json(&Status::bad_request("<script>&"));
        assert!(json.contains(r"\u003cscript\u003e\u0026"), "{json}");
    }
}
