//! Recognition of a bastion that forwards requests in absolute form.

use http::{Method, StatusCode, header};

use crate::desk::api::{Api, ApiError, StatusMessage, head};
use crate::desk::client::SendError;
use crate::forward;
use crate::http::RequestTarget;
use crate::model::target::HOST_FORMS;

/// Host below `svc` that names no service, so that no request reaches an application.
const PROBE: &str = "probe.svc";

/// The server did not respond.
#[derive(Debug, thiserror::Error)]
#[error("cannot determine whether {server} is a bastion: {source}")]
pub struct ProbeError {
    server: String,
    source: ApiError,
}

/// Returns true if the server is a bastion: it requires the credentials of a proxy (407), or rejects
/// a host that names no service. Any other server responds as to a request for its own root, or
/// aborts a request for another scheme over HTTP/2.
///
/// # Errors
/// [`ProbeError`]
pub async fn is_bastion(api: &Api) -> Result<bool, ProbeError> {
    // A server below a path is not a bastion, and such a path has no absolute form.
    if !api.are_roots() {
        return Ok(false);
    }
    let mut head = head("/");
    head.method = Method::OPTIONS;
    head.target = RequestTarget::from_valid_path("/").to_absolute_form(PROBE);
    if let Ok(host) = PROBE.parse() {
        head.headers.insert(header::HOST, host);
    }
    let (code, body) = match api.fetch(&head, None).await {
        Err(ApiError::Send(SendError::Api(forward::ApiError::Failed { .. }))) => return Ok(false),
        fetched => fetched.map_err(|source| {
            let server = api.client.names();
            ProbeError { server, source }
        })?,
    };
    let names_forms = || StatusMessage::parse(&body).is_some_and(|it| it.contains(HOST_FORMS));
    Ok(code == StatusCode::PROXY_AUTHENTICATION_REQUIRED
        || (code == StatusCode::BAD_REQUEST && names_forms()))
}
