//! CONNECT (RFC 9110 section 9.3.6, RFC 9113 section 8.5): tunnels to services and pods.

use std::sync::Arc;

use http::Response;
use tokio::sync::oneshot;

use super::tunnel::{Grant, Subject};
use super::{Proxy, ProxyError, Reply, forward_proxy};
use crate::authenticate::{Caller, Peer};
use crate::authorize::AuthorizationError;
use crate::client_connection::Shares;
use crate::forward::{DialError, Tunnel};
use crate::http::{RequestHead, UpgradedConnection};
use crate::model::quote::GoQuoted;
use crate::model::tunnel::{TunnelAddress, TunnelAddressError};
use crate::resolve::TunnelResolveError;
use crate::telemetry::Record;

/// Tunnels of the process.
#[derive(Debug)]
pub struct Tunnels {
    /// Open tunnels by user name.
    pub callers: Arc<Shares<Arc<str>>>,
}

/// Reason why a tunnel is not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    #[error("CONNECT is turned off (tunnels.enabled)")]
    Disabled,
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

impl Proxy {
    /// Opens a tunnel to an endpoint of the authority.
    pub(super) async fn connect(
        &self,
        head: &mut RequestHead,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        let stages = &*self.stages;
        let tunnels = stages.tunnels.as_ref().ok_or(TunnelError::Disabled)?;
        // Copied before authentication strips them: the tunnel is checked with the same credentials
        // for as long as it is open.
        let credentials = stages.authenticator.credentials(&head.headers);
        let authenticated = stages
            .authenticator
            .authenticate_tunnel(&mut head.headers, peer);
        let Caller {
            identity,
            impersonates,
        } = authenticated
            .await
            .map_err(forward_proxy::unauthenticated)?;
        record.identity = Some(Arc::clone(&identity));
        let client = record.client.into();
        let identity = match impersonates {
            None => identity,
            Some(impersonation) => {
                let impersonated = stages
                    .authorizer
                    .impersonate(&identity, *impersonation, client);
                let identity = impersonated.await?;
                record.impersonated_user = Some(Arc::clone(&identity));
                identity
            }
        };

        let authority = head.target.tunnel().unwrap_or_default();
        let address = TunnelAddress::from_authority(authority, &stages.cluster_domain)
            .map_err(TunnelError::from)?;
        let unknown = || TunnelError::UnknownAddress(authority.to_owned());
        let target = stages.resolver.locate(address).ok_or_else(unknown)?;
        record.name_tunnel(&target.object, &target.port);
        let permit = stages
            .authorizer
            .authorize_tunnel(&identity, &target.object, client)
            .await
            .map_err(|error| match error {
                AuthorizationError::Forbidden(_) if target.address.is_some() => unknown().into(),
                error => ProxyError::from(error),
            })?;

        let share = tunnels
            .callers
            .take(Arc::from(&*identity.user))
            .ok_or(TunnelError::TooMany)?;
        let route = stages
            .resolver
            .resolve_tunnel(&permit, &target)
            .map_err(TunnelError::from)?;
        let (client, dialed) = (record.client, &mut record.endpoint);
        let connected = self
            .forwarder
            .connect_tunnel(&permit, &route, client, dialed);
        let stream = connected.await.map_err(TunnelError::Dial)?;
        let (sender, client) = oneshot::channel();
        let tunnel = Tunnel {
            client,
            upstream: UpgradedConnection {
                stream,
                input: bytes::Bytes::new(),
            },
            guard: None,
        };
        let grant = Grant {
            peer: peer.clone(),
            credentials,
            subject: Subject::Tunnel(target.object, share),
        };
        Ok(Reply::Upgrade(
            Response::new(()),
            tunnel,
            sender,
            Some(Box::new(grant)),
        ))
    }
}
