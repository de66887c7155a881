//! The request pipeline. `Proxy::route` runs the stages in order, from top to bottom.

mod audit_id;
mod body;
mod connect;
mod error;
mod failure;
mod forward_proxy;
mod pass_through;
mod respond;
mod send;
mod tunnel;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::HeaderName;
use http::{HeaderValue, Method, Response, Version, header};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

pub use audit_id::AUDIT_ID;
pub use body::Body;
pub use connect::Tunnels;
pub use pass_through::{PassThrough, ProvenTokens, UnprovenRequests};
pub use tunnel::TunnelPolicy;

use audit_id::audit_id;
use error::ProxyError;
use forward_proxy::Unrewritten;
use pass_through::PassThroughError;
use tunnel::{Carrier, Grant, Subject};

use crate::authenticate::{Authenticator, Peer};
use crate::authorize::Authorizer;
use crate::client_connection::ConnectionGuard;
use crate::drain::Drain;
use crate::forward::{
    Forwarder, OutgoingBody, RequestHeaderRewriter, TrailerFilter, Tunnel, Upgrade, UpgradeOutcome,
    UpstreamRequest, UpstreamResponse, sanitize_request_trailers, sanitize_response_headers,
};
use crate::http::{Interim, MAX_HEADERS, Request, RequestBody, Upgraded};
use crate::metrics::Metrics;
use crate::model::path::SubPathDecoding;
use crate::model::{Networks, Target, Verb};
use crate::ready::Ready;
use crate::resolve::Resolver;
use crate::rewrite::{self, PageFormat};
use crate::telemetry::{Record, Recorder};

/// Pipeline stages shared by all workers.
#[derive(Debug)]
pub struct Stages {
    pub authenticator: Authenticator,
    pub authorizer: Authorizer,
    pub resolver: Resolver,
    pub ready: Ready,
    pub metrics: Metrics,
    pub cluster_domain: Arc<str>,
    pub sub_path_decoding: SubPathDecoding,
    /// Front proxies that report the clients of their requests.
    pub trusted_proxies: Networks,
    pub tunnel_policy: TunnelPolicy,
    /// `None` if CONNECT is turned off.
    pub tunnels: Option<Tunnels>,
    /// `None` if requests are not passed to API servers.
    pub pass_through: Option<PassThrough>,
    /// Memory budget for pages that are being rewritten.
    pub rewriting: rewrite::Budget,
}

/// Result of a request that passed all stages.
enum Reply {
    Response(Response<Body>),
    /// Head of the response, the tunnel that opens after it, the receiver of the client's connection,
    /// and the grant that keeps the tunnel open. A tunnel to an API server has none: that server
    /// authorized it.
    Upgrade(
        Response<()>,
        Carrier,
        oneshot::Sender<Upgraded>,
        Option<Box<Grant>>,
    ),
}

/// Request handler of one worker.
#[derive(Debug)]
pub struct Proxy {
    pub stages: Arc<Stages>,
    pub forwarder: Forwarder,
    pub recorder: Rc<Recorder>,
    pub drain: Drain,
    /// Tasks of the worker. A tunnel outlives the task of the connection that it came from, so the
    /// drain waits for it here.
    pub tasks: TaskTracker,
}

impl Proxy {
    /// Proxies a request. Returns the response of its target, or a `Status` with the reason why the
    /// request was not proxied. `interim` is `None` if the client cannot receive interim responses.
    pub async fn handle(
        &self,
        request: &mut Request,
        peer: &Peer,
        guard: &ConnectionGuard,
        interim: Option<Interim>,
    ) -> crate::http::Reply<Body> {
        let connection = guard.track_request();
        let headers = &mut request.head.headers;
        let forwarded = peer.forwarded(headers, &self.stages.trusted_proxies);
        let peer = forwarded.as_deref().unwrap_or(peer);
        // Counted before the audit id is inserted, so that the limit applies to what the client
        // sent.
        let fits = headers.len() <= MAX_HEADERS;
        let audit_id = audit_id(headers);
        let mut record = Record::start(
            &self.recorder,
            request.head.method.clone(),
            request.head.target.clone(),
            request.head.version,
            peer.client,
            audit_id,
        );
        let reply = |mut response: Response<Body>, mut record: Box<Record>, connection| {
            let audit_id = record.audit_id.clone();
            response.headers_mut().insert(AUDIT_ID, audit_id);
            record.code = response.status();
            crate::http::Reply {
                response: response.map(|body| body.recorded(record, connection)),
                upgrade: None,
            }
        };
        // In a block, so that the future has no room for the response while it waits for causes.
        let error = {
            let routed = if fits {
                self.route(request, peer, interim, &mut record).await
            } else {
                Err(ProxyError::TooManyHeaders)
            };
            match routed {
                Ok(Reply::Response(response)) => return reply(response, record, connection),
                Ok(Reply::Upgrade(mut response, tunnel, upgrade, grant)) => {
                    let audit_id = record.audit_id.clone();
                    response.headers_mut().insert(AUDIT_ID, audit_id);
                    record.code = response.status();
                    record.release_head();
                    // A separate task, because the client's connection ends after the 101.
                    let stages = Arc::clone(&self.stages);
                    self.tasks.spawn_local(tunnel::run(
                        tunnel,
                        grant,
                        record,
                        connection,
                        self.drain.clone(),
                        stages,
                    ));
                    return crate::http::Reply {
                        response: response.map(|()| Body::empty()),
                        upgrade: Some(upgrade),
                    };
                }
                Err(error) => error,
            }
        };
        // The headers that select the format are still there, unless `Connection` named them.
        let headers = &request.head.headers;
        let mut response = Box::pin(self.error_response(&error, &mut record, headers)).await;
        if connect::asks_for_tunnel(&request.head.target, &self.stages.cluster_domain) {
            connect::refusal::complete(&error, response.headers_mut());
        }
        reply(response, record, connection)
    }

    /// Runs the stages. Each takes the product of the one before it, and only
    /// [`Authorizer::authorize`] makes the permit without which nothing is resolved or forwarded.
    async fn route(
        &self,
        request: &mut Request,
        peer: &Peer,
        interim: Option<Interim>,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        let Stages {
            authenticator,
            authorizer,
            resolver,
            ready,
            sub_path_decoding,
            rewriting,
            pass_through,
            cluster_domain,
            ..
        } = &*self.stages;
        if !ready.is_synced() {
            return Err(ProxyError::NotReady(ready.obstacle()));
        }
        if connect::asks_for_tunnel(&request.head.target, cluster_domain) {
            return Box::pin(self.connect(request, peer, record)).await;
        }
        let forward_proxy = forward_proxy::is_forward_proxy(&request.head.target, cluster_domain)?;
        if let Some(pass_through) = pass_through
            && !forward_proxy
            && !Target::is_named_by(request.head.target.path())
        {
            let passed = self.pass_through(pass_through, request, peer, interim, record);
            return Box::pin(passed).await;
        }
        // Borrowed on all levels: each that owned it would keep a copy in its future.
        let Request {
            head,
            body,
            protocol,
        } = request;
        // Boxed here and below: rare values and calls, whose room every request would carry.
        let upgrade = Upgrade::from_request(head, protocol.as_ref()).map(Box::new);
        let websocket = upgrade
            .as_ref()
            .is_some_and(|upgrade| upgrade.is_websocket());
        // Copied before authentication strips them: a tunnel is checked with the same credentials
        // for as long as it is open.
        let credentials = upgrade
            .is_some()
            .then(|| Box::new(authenticator.credentials(&head.headers)));
        let caller = if forward_proxy {
            Box::pin(authenticator.authenticate_proxy(&mut head.headers, peer))
                .await
                .map_err(forward_proxy::unauthenticated)?
        } else {
            authenticator
                .authenticate(&mut head.headers, peer, websocket)
                .await?
        };
        record.identity = Some(Arc::clone(&caller.identity));
        let impersonates = caller.impersonates.is_some();
        let identity = authorizer.acting(caller, record.client.into()).await?;
        record.impersonated_user = impersonates.then(|| Arc::clone(&identity));

        let client_target = head.target.clone();
        let target = forward_proxy::parse_target(&client_target, &self.stages.cluster_domain)?;
        // Extended CONNECT (RFC 8441) is authorized and forwarded as the GET of RFC 6455 (C21).
        // Other methods are forwarded unchanged, so that the authorized verb is the one that acts.
        let method = match upgrade.as_deref() {
            Some(Upgrade::Connect { .. }) => Method::GET,
            _ => head.method.clone(),
        };
        let verb = Verb::from_request(&method, !target.id.is_empty(), client_target.query());
        record.name(&target, verb);
        let permit = authorizer
            .authorize(&identity, verb, &target, record.client.into())
            .await?;
        if upgrade.is_some() {
            // A tunnel to a node can carry `exec`, which the verb of its GET does not cover.
            let granted = authorizer.authorize_upgrade(&identity, &target, record.client.into());
            Box::pin(granted).await?;
        }
        // After authorization, as in kube-apiserver: a caller without access gets 403, not 405.
        if !is_served(&method) {
            return Err(ProxyError::MethodNotAllowed);
        }

        let route = resolver.resolve(&permit).await?;
        if target.is_host() {
            // In a block, so that the future has no room for the parts while it waits.
            let forwarded = {
                let unrewritten = Unrewritten {
                    permit: &permit,
                    route: &route,
                    head,
                    body,
                    upgrade,
                    peer,
                    interim,
                };
                let grant = || {
                    let credentials = *credentials.unwrap_or_default();
                    Grant {
                        peer: peer.clone(),
                        credentials,
                        subject: Subject::upgrade(websocket, verb, &target, &client_target),
                    }
                };
                Box::pin(self.forward_unrewritten(unrewritten, grant, record))
            };
            return forwarded.await;
        }
        let lacks_slash = target.rest.is_empty() && upgrade.is_none();
        if lacks_slash && matches!(method, Method::GET | Method::HEAD) {
            // After the lookup, as in kube-apiserver: a missing target is a 404 and no redirect.
            let location = target.with_trailing_slash(client_target.query());
            return Ok(Reply::Response(respond::redirect(&location)));
        }

        let (cookies, tags) = rewrite::restore_headers(&target, &mut head.headers);
        let body = std::mem::replace(body, RequestBody::Empty);
        let has_body = !matches!(body, RequestBody::Empty);
        RequestHeaderRewriter {
            target: &target,
            decoding: *sub_path_decoding,
            keeps_path: route.keeps_path,
            address: peer.address,
            secure: peer.secure,
            host: peer.host.as_ref(),
            upgrade: upgrade.as_deref(),
            has_body,
        }
        .rewrite(head);
        if rewriting.is_enabled() {
            rewrite::narrow_accept_encoding(&method, &mut head.headers);
        }
        let outgoing = UpstreamRequest {
            head: &mut *head,
            body: self.outgoing_body(body, record),
            interim: None,
        };
        let (upstream, refuses_upgrade) = if let Some(upgrade) = &upgrade {
            let sent = self.upgrade(&permit, &route, outgoing, interim, upgrade, record);
            match Box::pin(sent).await? {
                UpgradeOutcome::Switched {
                    mut response,
                    upstream,
                    guard,
                } => {
                    if let Some(endpoint) = &record.endpoint {
                        let links = || self.links(&target, &route, endpoint.address, &head.headers);
                        cookies.leave(&target, response.headers_mut(), links);
                    }
                    let grant = Grant {
                        peer: peer.clone(),
                        credentials: *credentials.unwrap_or_default(),
                        subject: Subject::upgrade(websocket, verb, &target, &client_target),
                    };
                    let (sender, client) = oneshot::channel();
                    let tunnel = Tunnel {
                        client,
                        upstream,
                        guard,
                    };
                    let grant = Some(Box::new(grant));
                    let carrier = Carrier::Streams(tunnel);
                    return Ok(Reply::Upgrade(response, carrier, sender, grant));
                }
                UpgradeOutcome::Ignored(upstream) => (upstream, false),
                UpgradeOutcome::Refused(upstream) => (upstream, true),
            }
        } else {
            // Boxed, because it is the largest stage: the future of all others stays below 1 KiB.
            let sent = self.send(&permit, &route, outgoing, interim, record);
            (Box::pin(sent).await?, false)
        };
        let UpstreamResponse {
            mut response,
            endpoint,
        } = upstream;
        // The response is framed for the client's connection, whatever version the endpoint used.
        *response.version_mut() = Version::HTTP_11;
        sanitize_response_headers(response.headers_mut(), refuses_upgrade)?;
        let links = || self.links(&target, &route, endpoint.address, &head.headers);
        if refuses_upgrade {
            cookies.leave(&target, response.headers_mut(), links);
            // The client may already have sent bytes of the protocol that it wanted; read as a next
            // request they would reach the endpoint (CVE-2018-1002105).
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return Ok(Reply::Response(response.map(Body::upstream)));
        }
        rewrite::rewrite_headers(response.headers_mut(), &target, cookies, links)?;
        tags.describe_not_modified(&mut response);
        if method == Method::HEAD && rewriting.is_enabled() {
            rewrite::describe_head(response.headers_mut());
        }
        let start = response.body().peeked();
        let page = PageFormat::detect(&method, &response, start).and_then(|format| {
            let share = rewriting.reserve(format.held_bytes(), record.client.into())?;
            Some((format, share))
        });
        Ok(Reply::Response(match page {
            None => response.map(Body::upstream),
            Some((format, share)) => {
                rewrite::describe_rewritten(response.headers_mut());
                response.map(|body| Body::page(body, format, links(), share))
            }
        }))
    }

    /// Returns the body of a request for the endpoint, whose bytes the record counts.
    fn outgoing_body(&self, body: RequestBody, record: &mut Record) -> Option<OutgoingBody> {
        let has_body = !matches!(body, RequestBody::Empty);
        record.received = has_body.then(Rc::<Cell<u64>>::default);
        let received = record.received.clone()?;
        Some(OutgoingBody {
            body,
            received,
            trailers: self.trailer_filter(),
        })
    }

    /// Returns the filter for trailers of a request: those that identify a caller are removed, as
    /// from its headers.
    fn trailer_filter(&self) -> TrailerFilter {
        let stages = Arc::clone(&self.stages);
        TrailerFilter(Rc::new(move |trailers| {
            let is_identity = |name: &HeaderName| stages.authenticator.is_credential(name);
            sanitize_request_trailers(trailers, &is_identity);
        }))
    }
}

/// Returns true for the methods that kube-apiserver routes (C15).
fn is_served(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET
            | Method::POST
            | Method::PUT
            | Method::PATCH
            | Method::DELETE
            | Method::HEAD
            | Method::OPTIONS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the size of the future that a function returns, without calling it.
    fn size_of_future<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// An HTTP/2 stream copies its future when it is spawned, and each HTTP/1.1 connection holds one
    /// for as long as it is open. Rare paths are boxed for that reason.
    #[test]
    fn future_of_a_request_is_small() {
        type Arguments = (
            &'static Proxy,
            &'static mut Request,
            &'static Peer,
            &'static ConnectionGuard,
        );
        let size = size_of_future(|(proxy, request, peer, guard): Arguments| {
            proxy.handle(request, peer, guard, None)
        });
        assert!(size <= 1024, "{size} bytes");
    }
}
