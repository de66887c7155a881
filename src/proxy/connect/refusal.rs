//! Responses to requests for a tunnel that opens none.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::ConnectError;
use crate::authenticate::AuthenticationError;
use crate::authorize::AuthorizationError;
use crate::forward::DialError;
use crate::model::Status;
use crate::model::tunnel::TunnelAddressError;
use crate::proxy::ProxyError;
use crate::resolve::TunnelResolveError;

/// RFC 9209.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// `Retry-After` of a user with too many tunnels.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Completes the response to a CONNECT that opens no tunnel: its connection ends, because what
/// follows may be meant for the tunnel, and `Proxy-Status` has the cause for programs (RFC 9209).
pub(in crate::proxy) fn complete(error: &ProxyError, headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let status = match proxy_status(error) {
        "" => "kube-bastion".to_owned(),
        error => format!("kube-bastion; error={error}"),
    };
    if let Ok(status) = HeaderValue::try_from(status) {
        headers.insert(PROXY_STATUS, status);
    }
}

/// Returns the type of an error by RFC 9209 section 2.3; empty for those without one.
fn proxy_status(error: &ProxyError) -> &'static str {
    match error {
        ProxyError::Malformed(_) | ProxyError::TooManyHeaders => "http_request_error",
        ProxyError::Authenticate(AuthenticationError::Unauthenticated(_))
        | ProxyError::ProxyUnauthenticated(_)
        | ProxyError::Authorize(AuthorizationError::Forbidden(_)) => "http_request_denied",
        ProxyError::Connect(error) => match error {
            ConnectError::Disabled | ConnectError::UnknownAddress(_) => "http_request_denied",
            ConnectError::Address(TunnelAddressError::Port(_))
            | ConnectError::NotConnectUdp
            | ConnectError::UdpPath => "http_request_error",
            ConnectError::Address(TunnelAddressError::Outside(_)) => "destination_ip_prohibited",
            ConnectError::TooMany => "connection_limit_reached",
            ConnectError::Resolve(error) => match error {
                TunnelResolveError::NotFound { .. }
                | TunnelResolveError::NoPort { .. }
                | TunnelResolveError::NoHostname { .. } => "destination_not_found",
                TunnelResolveError::AddressNotAllowed | TunnelResolveError::HostNetwork { .. } => {
                    "destination_ip_prohibited"
                }
                TunnelResolveError::PodEnded { .. }
                | TunnelResolveError::NoAddress { .. }
                | TunnelResolveError::HostnameNotReady { .. }
                | TunnelResolveError::NoEndpoints { .. } => "destination_unavailable",
            },
            ConnectError::Dial(errors) => match errors.last() {
                Some(DialError::Timeout { .. }) => "connection_timeout",
                Some(DialError::NoSocket { .. }) => "connection_limit_reached",
                Some(DialError::Connect { source, .. })
                    if source.kind() == std::io::ErrorKind::ConnectionRefused =>
                {
                    "connection_refused"
                }
                Some(DialError::SelfCall { .. }) => "proxy_loop_detected",
                _ => "destination_ip_unroutable",
            },
        },
        _ => "proxy_internal_error",
    }
}

impl ConnectError {
    /// Returns the `Status` of the response.
    pub(in crate::proxy) fn status(&self) -> Status {
        let message = self.to_string();
        let with = |code| Status {
            code,
            reason: None,
            message: message.clone(),
            details: None,
        };
        match self {
            Self::Disabled => Status::method_not_allowed(),
            Self::Address(TunnelAddressError::Port(_)) | Self::NotConnectUdp | Self::UdpPath => {
                Status::bad_request(message)
            }
            Self::Address(TunnelAddressError::Outside(_))
            | Self::UnknownAddress(_)
            | Self::Resolve(
                TunnelResolveError::AddressNotAllowed | TunnelResolveError::HostNetwork { .. },
            ) => Status {
                // No object is named.
                details: None,
                ..Status::forbidden("", "", "", message)
            },
            Self::TooMany => {
                Status::too_many_requests(message).with_retry_after(RETRY_AFTER_SECONDS)
            }
            Self::Resolve(TunnelResolveError::NotFound { resource, name }) => {
                Status::object_not_found(*resource, name)
            }
            Self::Resolve(
                TunnelResolveError::NoPort { .. } | TunnelResolveError::NoHostname { .. },
            ) => with(StatusCode::NOT_FOUND),
            Self::Resolve(
                TunnelResolveError::PodEnded { .. }
                | TunnelResolveError::NoAddress { .. }
                | TunnelResolveError::HostnameNotReady { .. }
                | TunnelResolveError::NoEndpoints { .. },
            ) => Status::service_unavailable(message),
            Self::Dial(errors) => match errors.last() {
                Some(DialError::Timeout { .. }) => with(StatusCode::GATEWAY_TIMEOUT),
                Some(DialError::NoSocket { .. }) => Status::service_unavailable(message),
                _ => with(StatusCode::BAD_GATEWAY),
            },
        }
    }
}
