//! Requests on their way to an endpoint, and the rewriters of what comes back.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, header};

use super::Proxy;
use crate::authorize::Permit;
use crate::forward::{
    ForwardError, InterimReceiver, Upgrade, UpgradeOutcome, UpstreamRequest, UpstreamResponse,
};
use crate::http::Interim;
use crate::model::{ServiceAddress, Target};
use crate::resolve::Route;
use crate::rewrite::{self, CookieScope, LinkRewriter, PageFormat};
use crate::telemetry::Record;

impl Proxy {
    /// Sends a plain request. If its client joins parts of a page, the whole page is requested
    /// instead of a part: the other part may be of the rewritten page, which has other bytes.
    pub(super) async fn send(
        &self,
        permit: &Permit<'_>,
        route: &Route,
        outgoing: UpstreamRequest<'_>,
        interim: Option<Interim>,
        record: &mut Record,
    ) -> Result<UpstreamResponse, ForwardError> {
        let rewrite = self.interim_rewriter(permit, route);
        let UpstreamRequest { head, body, .. } = outgoing;
        let can_repeat = body.is_none() && self.stages.rewriting.is_enabled();
        let first = UpstreamRequest {
            head: &mut *head,
            body,
            interim: interim.map(|client| InterimReceiver {
                client,
                rewrite: &rewrite,
            }),
        };
        let (forwarder, client, dialed) = (&self.forwarder, record.client, &mut record.endpoint);
        let mut sent = forwarder.send(permit, route, first, client, dialed).await?;
        if self.stages.rewriting.is_enabled()
            && PageFormat::is_untyped(&head.method, &sent.response)
        {
            sent.response.body_mut().peek().await;
        }
        let is_part = rewrite::is_part_to_join(&head.method, &head.headers, &sent.response);
        if !(can_repeat && is_part) {
            return Ok(sent);
        }
        drop(sent);
        rewrite::request_whole(&mut head.headers);
        let whole = UpstreamRequest {
            head,
            body: None,
            interim: None,
        };
        Box::pin(forwarder.send(permit, route, whole, client, dialed)).await
    }

    /// Sends an upgrade.
    pub(super) async fn upgrade(
        &self,
        permit: &Permit<'_>,
        route: &Route,
        mut outgoing: UpstreamRequest<'_>,
        interim: Option<Interim>,
        upgrade: &Upgrade,
        record: &mut Record,
    ) -> Result<UpgradeOutcome, ForwardError> {
        let rewrite = self.interim_rewriter(permit, route);
        outgoing.interim = interim.map(|client| InterimReceiver {
            client,
            rewrite: &rewrite,
        });
        let (client, dialed) = (record.client, &mut record.endpoint);
        let forwarder = &self.forwarder;
        forwarder
            .upgrade(permit, route, outgoing, client, upgrade, dialed)
            .await
    }

    /// Returns the rewriter for the headers of interim responses, which are rewritten as those of
    /// final ones.
    fn interim_rewriter(
        &self,
        permit: &Permit<'_>,
        route: &Route,
    ) -> impl Fn(&HeaderMap, SocketAddr, &mut HeaderMap) -> bool {
        move |request, address, headers| {
            let target = permit.target();
            // Browsers take no cookies from interim responses, so that the boundary would be lost.
            let cookies = CookieScope::default();
            let links = || self.links(target, route, address, request);
            rewrite::rewrite_headers(headers, target, cookies, links).is_ok()
        }
    }

    /// Returns the rewriter for the links of a response, with all names that the endpoint may use
    /// for itself.
    pub(super) fn links(
        &self,
        target: &Target<'_>,
        route: &Route,
        endpoint: SocketAddr,
        request: &HeaderMap,
    ) -> LinkRewriter {
        let name = target.id().map(|id| id.name.to_owned()).unwrap_or_default();
        let namespace = target.namespace.clone().into_owned();
        LinkRewriter {
            prefix: target.shown_prefix().into_owned(),
            // The rewriter of requests has set it from `:authority` of HTTP/2.
            client_host: request
                .get(header::HOST)
                .and_then(|host| host.to_str().ok())
                .map(str::to_owned),
            endpoint,
            scheme: route.transport.scheme(),
            service: route.service_port.map(|port| ServiceAddress {
                namespace,
                name,
                port,
            }),
            cluster_domain: Arc::clone(&self.stages.cluster_domain),
        }
    }
}
