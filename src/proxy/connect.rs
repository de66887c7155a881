//! Tunnels to services and pods: CONNECT (RFC 9110 section 9.3.6, RFC 9113 section 8.5), and
//! CONNECT-UDP (RFC 9298) by an upgrade of HTTP/1.1 or an extended CONNECT of HTTP/2.

pub(super) mod refusal;

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderValue, Method, Response, StatusCode, Version, header};
use percent_encoding::percent_decode_str;
use tokio::sync::oneshot;

use super::tunnel::{Carrier, Grant, Subject};
use super::{Proxy, ProxyError, Reply, forward_proxy};
use crate::authenticate::Peer;
use crate::authorize::AuthorizationError;
use crate::client_connection::Shares;
use crate::forward::{DialError, Tunnel, Upgrade};
use crate::http::{Request, RequestBody, RequestHead, RequestTarget, UpgradedConnection};
use crate::model::Protocol;
use crate::model::quote::GoQuoted;
use crate::model::tunnel::{TunnelAddress, TunnelAddressError, TunnelHost};
use crate::resolve::TunnelResolveError;
use crate::telemetry::Record;

/// Path of CONNECT-UDP in front of host and port, the default of RFC 9298 section 2.
const UDP_PREFIX: &str = "/.well-known/masque/udp/";
const CONNECT_UDP: &str = "connect-udp";
/// The stream has capsules (RFC 9297 section 3.4).
const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static("capsule-protocol");

/// Tunnels of the process.
#[derive(Debug)]
pub struct Tunnels {
    /// Open tunnels by user name.
    pub callers: Arc<Shares<Arc<str>>>,
}

/// Reason why a tunnel is not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("CONNECT and CONNECT-UDP are turned off (tunnels.enabled)")]
    Disabled,
    #[error(
        "a request for {UDP_PREFIX} must have `Upgrade: connect-udp` and no content, or be an \
         extended CONNECT of HTTP/2 with this protocol"
    )]
    NotConnectUdp,
    #[error("the path must be {UDP_PREFIX}HOST/PORT/, percent-encoded")]
    UdpPath,
    #[error(transparent)]
    Address(#[from] TunnelAddressError),
    /// Also for a caller without permission, who must not learn which object has the address.
    #[error(
        "{} is not the address of a service or pod to which you may open tunnels (create on \
         services/portforward or pods/portforward)",
        GoQuoted(.0)
    )]
    UnknownAddress(String),
    #[error(
        "too many open tunnels of this user (tunnels.maxPerCaller); close some, or retry later"
    )]
    TooMany,
    #[error(transparent)]
    Resolve(#[from] TunnelResolveError),
    /// Every connect failed; in the order in which the endpoints were tried.
    #[error("cannot connect: {}", last(.0))]
    Dial(Vec<DialError>),
}

fn last(errors: &[DialError]) -> String {
    errors.last().map(ToString::to_string).unwrap_or_default()
}

/// Returns true for CONNECT, and for the path of CONNECT-UDP at the bastion itself: that of a target
/// with a host of its own belongs to the target.
pub(super) fn asks_for_tunnel(target: &RequestTarget, cluster_domain: &str) -> bool {
    target.tunnel().is_some()
        || target.path().starts_with(UDP_PREFIX)
            && matches!(
                forward_proxy::is_forward_proxy(target, cluster_domain),
                Ok(false)
            )
}

/// Parses host and port of a request.
fn parse_address(request: &Request, cluster_domain: &str) -> Result<TunnelAddress, ConnectError> {
    let target = &request.head.target;
    if let Some(authority) = target.tunnel() {
        return Ok(TunnelAddress::from_authority(authority, cluster_domain)?);
    }
    let is_connect_udp = match &request.protocol {
        Some(protocol) => protocol.as_str() == CONNECT_UDP,
        None => {
            request.head.method == Method::GET
                && Upgrade::from_request(&request.head, None)
                    .is_some_and(|upgrade| upgrade.offers(CONNECT_UDP))
        }
    };
    if !is_connect_udp || !matches!(request.body, RequestBody::Empty) {
        return Err(ConnectError::NotConnectUdp);
    }
    let parts = target.path().strip_prefix(UDP_PREFIX).unwrap_or_default();
    let parts = parts.strip_suffix('/').unwrap_or(parts);
    let (host, port) = parts.split_once('/').ok_or(ConnectError::UdpPath)?;
    let decode = |text| percent_decode_str(text).decode_utf8().ok();
    let (Some(host), Some(port)) = (decode(host), decode(port)) else {
        return Err(ConnectError::UdpPath);
    };
    if host.is_empty() {
        return Err(ConnectError::UdpPath);
    }
    let parsed = TunnelAddress::parse(Protocol::Udp, &host, &port, cluster_domain);
    Ok(parsed?)
}

/// Takes the credentials: CONNECT-UDP may have them in `Authorization`, as requests to the bastion
/// itself.
fn move_credentials(head: &mut RequestHead) {
    let headers = &mut head.headers;
    if head.target.tunnel().is_none()
        && !headers.contains_key(header::PROXY_AUTHORIZATION)
        && let Some(authorization) = headers.remove(header::AUTHORIZATION)
    {
        headers.insert(header::PROXY_AUTHORIZATION, authorization);
    }
}

/// Returns the response to a request whose tunnel opens.
fn accepted(head: &RequestHead) -> Response<()> {
    let mut response = Response::new(());
    if head.target.tunnel().is_none() {
        let headers = response.headers_mut();
        headers.insert(CAPSULE_PROTOCOL, HeaderValue::from_static("?1"));
        if head.version == Version::HTTP_11 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static(CONNECT_UDP));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
    }
    response
}

impl Proxy {
    /// Opens a tunnel to an endpoint of the host.
    pub(super) async fn connect(
        &self,
        request: &mut Request,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        let stages = &*self.stages;
        let tunnels = stages.tunnels.as_ref().ok_or(ConnectError::Disabled)?;
        move_credentials(&mut request.head);
        // Copied before authentication strips them: the tunnel is checked with the same credentials
        // for as long as it is open.
        let credentials = stages.authenticator.credentials(&request.head.headers);
        let authenticated = stages
            .authenticator
            .authenticate_tunnel(&mut request.head.headers, peer);
        let caller = authenticated
            .await
            .map_err(forward_proxy::unauthenticated)?;
        record.identity = Some(Arc::clone(&caller.identity));
        let client = record.client.into();
        let impersonates = caller.impersonates.is_some();
        // Whoever it acts for: a caller who may impersonate has one share, and uses up no other's.
        let user: Arc<str> = Arc::from(&*caller.identity.user);
        let identity = stages.authorizer.acting(caller, client).await?;
        record.impersonated_user = impersonates.then(|| Arc::clone(&identity));

        let address = parse_address(request, &stages.cluster_domain)?;
        let host = address.host.clone();
        let unknown = || ConnectError::UnknownAddress(host.to_string());
        let target = stages.resolver.locate(address).ok_or_else(unknown)?;
        record.name_tunnel(&target.object, &target.port);
        let permit = stages
            .authorizer
            .authorize_tunnel(&identity, &target.object, client)
            .await
            .map_err(|error| match error {
                // The same whether a pod has the address or not.
                AuthorizationError::Forbidden(_) if !matches!(host, TunnelHost::Object(_)) => {
                    unknown().into()
                }
                error => ProxyError::from(error),
            })?;

        let share = tunnels.callers.take(user).ok_or(ConnectError::TooMany)?;
        let route = stages
            .resolver
            .resolve_tunnel(&permit, &target)
            .map_err(ConnectError::from)?;
        let (sender, client) = oneshot::channel();
        let mut datagrams = None;
        let carrier = match target.protocol {
            Protocol::Tcp => {
                let (address, dialed) = (record.client, &mut record.endpoint);
                let connected = self
                    .forwarder
                    .connect_tunnel(&permit, &route, address, dialed);
                let stream = connected.await.map_err(ConnectError::Dial)?;
                Carrier::Streams(Tunnel {
                    client,
                    upstream: UpgradedConnection {
                        stream,
                        input: Bytes::new(),
                    },
                    guard: None,
                })
            }
            Protocol::Udp => {
                let (address, dialed) = (record.client, &mut record.endpoint);
                let socket = self
                    .forwarder
                    .connect_datagrams(&permit, &route, address, dialed)
                    .map_err(ConnectError::Dial)?;
                datagrams.clone_from(&record.endpoint);
                Carrier::Datagrams { client, socket }
            }
        };
        let grant = Grant {
            peer: peer.clone(),
            credentials,
            subject: Subject::Tunnel {
                object: target.object,
                datagrams,
                share,
            },
        };
        let response = accepted(&request.head);
        Ok(Reply::Upgrade(
            response,
            carrier,
            sender,
            Some(Box::new(grant)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::FieldNames;

    fn parse(path: &str) -> Result<TunnelAddress, ConnectError> {
        let method = Method::CONNECT;
        let request = Request {
            head: RequestHead {
                target: RequestTarget::parse(&method, path.as_bytes()).unwrap(),
                method,
                version: Version::HTTP_2,
                headers: http::HeaderMap::new(),
                names: FieldNames::default(),
            },
            body: RequestBody::Empty,
            protocol: Some(h2::ext::Protocol::from_static(CONNECT_UDP)),
        };
        parse_address(&request, "cluster.local")
    }

    #[test]
    fn path_of_connect_udp_has_host_and_port() {
        let service = TunnelAddress::parse(Protocol::Udp, "dns.shop.svc", "53", "cluster.local");
        for path in [
            "dns.shop.svc/53/",
            "dns.shop.svc/53",
            "dns%2Eshop.svc/%353/",
            "DNS.shop.svc/53/?x=y",
        ] {
            let parsed = parse(&[UDP_PREFIX, path].concat()).unwrap();
            assert_eq!(Ok(parsed), service, "{path}");
        }
        for path in ["fd00%3A%3A7/53/", "fd00::7/53/"] {
            let parsed = parse(&[UDP_PREFIX, path].concat()).unwrap();
            assert_eq!(parsed.host.to_string(), "fd00::7");
        }
    }

    #[test]
    fn rejects_other_paths_below_that_of_connect_udp() {
        for path in [
            "",
            "/",
            "/0/",
            "a",
            "a/",
            "/53/",
            "a/53/x/",
            "a.b.svc/0/",
            "a.b.svc/x_y/",
            "%ff/53/",
        ] {
            let error = parse(&[UDP_PREFIX, path].concat()).unwrap_err();
            assert!(
                matches!(
                    error,
                    ConnectError::UdpPath | ConnectError::Address(TunnelAddressError::Port(_))
                ),
                "{path}: {error}"
            );
        }
    }
}
