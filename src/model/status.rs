//! `metav1.Status`, the shape of every answer that is the bastion's own (CONFORMANCE chapter 10).

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use super::Resource;
use super::quote::GoQuoted;

/// The machine-readable reason, one of the API's `StatusReason`s.
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

/// What the failure is about. Rendered as `{}` where the API sends empty details.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Empty for the core group.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub group: &'static str,
    /// The plural of the resource.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// After so many seconds it may help to ask again. The header Retry-After says the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// One thing that helps to see why (`metav1.StatusCause`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// For machines.
    pub reason: CauseReason,
    /// For people.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CauseReason {
    /// What the authorizer was asked, and denied.
    AccessReview,
    /// A port of the service that could have been named.
    ServicePort,
    /// An endpoint, and why it does not serve.
    EndpointRefused,
    /// An endpoint, and why it could not be dialled.
    DialFailed,
}

/// The form in which an answer is written (CONFORMANCE C93).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    Json,
    /// Indented, for people.
    PrettyJson,
    Yaml,
}

/// A failure as a Kubernetes client expects it: `code` is the HTTP status, `message` is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: StatusCode,
    /// Absent where the API leaves it out, as with the errors of its upgrade path.
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

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Reason::BadRequest, message)
    }

    /// `resource` is a plural of the API group `group`.
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

    /// The path is none of ours.
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

    /// As kube-apiserver's priority and fairness rejects.
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

    /// The API has no reason for this one.
    pub fn header_fields_too_large(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Reason::BadRequest,
            message,
        )
        .without_reason()
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

    /// With the time after which it may help to ask again.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds);
        self
    }

    /// The value of the header Retry-After, where there is one.
    pub fn retry_after(&self) -> Option<u32> {
        self.details.as_ref()?.retry_after_seconds
    }

    /// With what helps to see why.
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        if !causes.is_empty() {
            self.details.get_or_insert_default().causes = causes;
        }
        self
    }

    /// The bytes of the wire. JSON in one line is ended by a newline, as Go's encoder does.
    pub fn render(&self, form: OutputFormat) -> Bytes {
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
        let json = match form {
            OutputFormat::Json => serde_json::to_string(&wire).expect(PLAIN),
            OutputFormat::PrettyJson => serde_json::to_string_pretty(&wire).expect(PLAIN),
            OutputFormat::Yaml => {
                // By way of JSON, as the apiserver's: the keys come out in order.
                let sorted = serde_json::to_value(&wire).expect(PLAIN);
                return Bytes::from(serde_saphyr::to_string(&sorted).expect(PLAIN));
            }
        };
        let mut json = json.replace('&', "\\u0026");
        // `<`, `>` and `&` stand only inside strings; Go escapes them so that no browser reads JSON
        // as HTML.
        json = json.replace('<', "\\u003c").replace('>', "\\u003e");
        if form == OutputFormat::Json {
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
    fn yaml_has_its_keys_in_order() {
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
    fn causes_stand_in_the_details() {
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
    fn the_wire_form_is_the_apiservers_to_the_byte() {
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
    fn markup_never_leaves_unescaped() {
        let json = json(&Status::bad_request("<script>&"));
        assert!(json.contains(r"\u003cscript\u003e\u0026"), "{json}");
    }
}
