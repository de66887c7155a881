//! Requests of clients that use the bastion as their HTTP proxy: `GET http://web.shop.svc/path`
//! (RFC 9112 section 3.2.2; in HTTP/2, the scheme `http` and such an authority).
//!
//! The target has an origin of its own, so nothing is rewritten: neither path, links, cookies nor
//! pages. Credentials for the bastion are in `Proxy-Authorization`.

use http::{HeaderMap, HeaderValue, Version, header};
use tokio::sync::oneshot;

use super::tunnel::{Carrier, Grant};
use super::{Body, Proxy, ProxyError, Reply};
use crate::authenticate::{AuthenticationError, Peer};
use crate::authorize::Permit;
use crate::forward::{
    ForwardError, InterimReceiver, RequestHeaderRewriter, Tunnel, Upgrade, UpgradeOutcome,
    UpstreamRequest, UpstreamResponse,
};
use crate::http::{
    Interim, KUBE_BASTION_HOST, MAX_HEADERS, RequestBody, RequestHead, RequestTarget, is_authority,
    remove_hop_by_hop,
};
use crate::model::target::TargetError;
use crate::model::{Scheme, Target};
use crate::resolve::Route;
use crate::telemetry::Record;

/// Parses the target of a request: the host of the absolute form, or the path.
pub(super) fn parse_target<'a>(
    request: &'a RequestTarget,
    cluster_domain: &str,
) -> Result<Target<'a>, TargetError> {
    match request.absolute() {
        Some((_, authority)) if request.path().starts_with('/') => {
            Target::from_authority(authority, request.path(), cluster_domain)
                .unwrap_or_else(|| Target::parse(request.path()))
        }
        _ => Target::parse(request.path()),
    }
}

/// Returns true for a request whose target has a host of its own.
///
/// # Errors
/// [`ProxyError::HttpsUrl`]: such a URL is for a tunnel.
pub(super) fn is_forward_proxy(
    request: &RequestTarget,
    cluster_domain: &str,
) -> Result<bool, ProxyError> {
    let Some((scheme, authority)) = request.absolute() else {
        return Ok(false);
    };
    let is_host = Target::from_authority(authority, "/", cluster_domain).is_some();
    match scheme {
        Scheme::Https if is_host => Err(ProxyError::HttpsUrl),
        Scheme::Http | Scheme::Https => Ok(is_host),
    }
}

/// Converts an error of the authentication: clients use the credentials for a proxy only after a
/// 407.
pub(super) fn unauthenticated(error: AuthenticationError) -> ProxyError {
    match error {
        AuthenticationError::Unauthenticated(error) => ProxyError::ProxyUnauthenticated(error),
        error => error.into(),
    }
}

/// Authorized request for a target with a host of its own.
pub(super) struct Unrewritten<'a> {
    pub permit: &'a Permit<'a>,
    pub route: &'a Route,
    pub head: &'a mut RequestHead,
    pub body: &'a mut RequestBody,
    pub upgrade: Option<Box<Upgrade>>,
    pub peer: &'a Peer,
    pub interim: Option<Interim>,
}

impl Proxy {
    /// Forwards a request, and returns its response, without rewriting either.
    pub(super) async fn forward_unrewritten(
        &self,
        unrewritten: Unrewritten<'_>,
        grant: impl FnOnce() -> Grant,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        let Unrewritten {
            permit,
            route,
            head,
            body,
            upgrade,
            peer,
            interim,
        } = unrewritten;
        let host = take_host(&mut head.headers);
        let body = std::mem::replace(body, RequestBody::Empty);
        let has_body = !matches!(body, RequestBody::Empty);
        RequestHeaderRewriter {
            target: permit.target(),
            decoding: self.stages.sub_path_decoding,
            keeps_path: route.keeps_path,
            address: peer.address,
            // That of the URL, which an application compares with `Origin`.
            secure: false,
            host: host.as_ref(),
            upgrade: upgrade.as_deref(),
            has_body,
        }
        .rewrite(head);
        let outgoing = UpstreamRequest {
            head: &mut *head,
            body: self.outgoing_body(body, record),
            interim: interim.map(|client| InterimReceiver {
                client,
                rewrite: &|_, _, _| true,
            }),
        };
        let (forwarder, client, dialed) = (&self.forwarder, record.client, &mut record.endpoint);
        let (upstream, refuses_upgrade) = match &upgrade {
            None => {
                let sent = forwarder.send(permit, route, outgoing, client, dialed);
                (sent.await?, false)
            }
            Some(upgrade) => {
                let sent = forwarder.upgrade(permit, route, outgoing, client, upgrade, dialed);
                match sent.await? {
                    UpgradeOutcome::Switched {
                        response,
                        upstream,
                        guard,
                    } => {
                        let (sender, client) = oneshot::channel();
                        let tunnel = Tunnel {
                            client,
                            upstream,
                            guard,
                        };
                        return Ok(Reply::Upgrade(
                            response,
                            Carrier::Streams(tunnel),
                            sender,
                            Some(Box::new(grant())),
                        ));
                    }
                    UpgradeOutcome::Ignored(upstream) => (upstream, false),
                    UpgradeOutcome::Refused(upstream) => (upstream, true),
                }
            }
        };
        let UpstreamResponse { mut response, .. } = upstream;
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        if headers.len() > MAX_HEADERS {
            return Err(ForwardError::TooManyHeaders.into());
        }
        remove_hop_by_hop(headers, |_| false);
        // It describes requests only.
        headers.remove(header::TE);
        if refuses_upgrade {
            // As in `route`: bytes behind the request must not be read as the next one.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(Reply::Response(response.map(Body::upstream)))
    }
}

/// Removes the header with the host that the browser used. `None` if it is invalid.
fn take_host(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let host = headers.remove(KUBE_BASTION_HOST)?;
    (!host.is_empty() && is_authority(host.as_bytes())).then_some(host)
}
