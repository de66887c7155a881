//! Answers to requests that are not proxied.

use http::{HeaderMap, Method, Response, Version};

use super::audit_id::{AUDIT_ID, new_audit_id};
use super::connect::{self, ConnectError};
use super::error::ProxyError;
use super::respond::AcceptPreference;
use super::{Body, Proxy, forward_proxy, respond};
use crate::authenticate::Peer;
use crate::client_connection::ConnectionGuard;
use crate::http::RequestTarget;
use crate::http::h1::{RejectedLine, RequestError};
use crate::model::status::{Cause, OutputFormat};
use crate::telemetry::Record;

impl Proxy {
    /// Returns the `Status` for an error of a stage.
    pub(super) async fn error_response(
        &self,
        error: &ProxyError,
        record: &mut Record,
        headers: &HeaderMap,
    ) -> Response<Body> {
        record.error = Some(match error {
            ProxyError::Forward(error) => error.log_text(),
            error => error.to_string(),
        });
        let format = AcceptPreference::from_headers(headers).output_format(record.target.query());
        let causes = self.causes(error, record).await;
        respond::error_response(error, causes, format)
    }

    /// Returns the `Status` for a request that is not valid HTTP. `line` has the valid parts of its
    /// request line.
    pub fn reject(
        &self,
        error: RequestError,
        line: RejectedLine,
        peer: &Peer,
        guard: &ConnectionGuard,
    ) -> Response<Body> {
        let RejectedLine {
            method,
            target,
            version,
        } = line;
        let error = ProxyError::from(error);
        let asks_for_tunnel = method == Some(Method::CONNECT);
        let audit_id = new_audit_id();
        let mut record = Record::start(
            &self.recorder,
            // As nginx logs what it could not parse. A dash is a valid method.
            method.unwrap_or_else(|| Method::from_bytes(b"-").expect("a dash is a token")),
            target.unwrap_or_else(|| RequestTarget::from_valid_path("-")),
            version.unwrap_or(Version::HTTP_11),
            peer.client,
            audit_id.clone(),
        );
        record.error = Some(error.to_string());
        let mut response = respond::error_response(&error, Vec::new(), OutputFormat::Json);
        response.headers_mut().insert(AUDIT_ID, audit_id);
        if asks_for_tunnel {
            connect::refusal::complete(&error, response.headers_mut());
        }
        record.code = response.status();
        response.map(|body| body.recorded(record, guard.track_request()))
    }

    /// Returns the causes of an error to callers that may have them: they name ports and addresses.
    /// A request that was resolved or forwarded was authorized, so its caller may reach the target.
    /// For other errors, the caller must be able to read the target.
    async fn causes(&self, error: &ProxyError, record: &Record) -> Vec<Cause> {
        let causes = respond::status_causes(error);
        if matches!(
            error,
            ProxyError::Resolve(_)
                | ProxyError::Forward(_)
                | ProxyError::Connect(ConnectError::Resolve(_) | ConnectError::Dial(_))
        ) {
            return causes;
        }
        let identity = record
            .impersonated_user
            .as_ref()
            .or(record.identity.as_ref());
        let target = forward_proxy::parse_target(&record.target, &self.stages.cluster_domain);
        match (identity, target) {
            (Some(identity), Ok(target))
                if !causes.is_empty()
                    && self
                        .stages
                        .authorizer
                        .can_get_object(identity, &target, record.client.into())
                        .await =>
            {
                causes
            }
            _ => Vec::new(),
        }
    }
}
