//! The life of one request, top to bottom in `Proxy::route`.

mod body;
mod respond;
mod tunnel;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

pub use body::Body;
pub use tunnel::TunnelPolicy;

use respond::AcceptPreference;
use tunnel::Grant;

use crate::authenticate::{AuthenticationError, Authenticator, Peer};
use crate::authorize::{AuthorizeError, Authorizer};
use crate::connection::ConnectionGuard;
use crate::drain::Drain;
use crate::forward::{
    ForwardError, Forwarder, RequestHeaderRewriter, Tunnel, Upgrade, Upgraded, UpstreamRequest,
    UpstreamResponse, sanitize_response_headers,
};
use crate::http::{Interim, MAX_HEADERS};
use crate::metrics::Metrics;
use crate::model::status::Cause;
use crate::model::target::TargetError;
use crate::model::{ClientAddress, Endpoint, ServiceAddress, Target, Verb};
use crate::ready::Ready;
use crate::resolve::{ResolveError, Resolver, Route};
use crate::rewrite::{self, InvalidUrl, LinkRewriter, PageFormat};
use crate::telemetry::{Record, Recorder};

pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// The stages that all workers share.
#[derive(Debug)]
pub struct Stages {
    pub authenticator: Authenticator,
    pub authorizer: Authorizer,
    pub resolver: Resolver,
    pub ready: Ready,
    pub metrics: Metrics,
    pub cluster_domain: Arc<str>,
    pub tunnels: TunnelPolicy,
    /// Memory for the pages that are being rewritten.
    pub rewriting: rewrite::Budget,
}

/// How a request that was let through goes on.
enum Reply {
    Response(Response<Body>),
    /// The head of the answer, and the tunnel that opens behind it with the grant that it lives by.
    Upgrade(Response<()>, Tunnel, Box<Grant>),
}

/// Serves requests on one worker.
#[derive(Debug)]
pub struct Proxy {
    pub stages: Arc<Stages>,
    pub forwarder: Forwarder,
    pub recorder: Rc<Recorder>,
    pub drain: Drain,
    /// The worker's tasks: a tunnel outlives the connection that it came from, and is waited for
    /// all the same.
    pub tasks: TaskTracker,
}

/// Why a request got no answer from its target: one variant for each stage that can say no.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    /// The first full set of facts is not in yet: what is not known may exist all the same.
    #[error("the bastion is starting and does not know the cluster yet")]
    NotReady,
    /// Looked at before all else: what adds a header to them counts on room.
    #[error("the request has more than {} header fields; send fewer", MAX_HEADERS)]
    TooManyHeaders,
    /// HTTP/1.1 wants one (RFC 9112 section 3.2).
    #[error("the request has no Host header, or several: send one")]
    Host,
    #[error(transparent)]
    Authenticate(#[from] AuthenticationError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Authorize(#[from] AuthorizeError),
    #[error("the server does not allow this method on the requested resource")]
    Method,
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("error trying to parse Location header: {0}")]
    Location(#[from] InvalidUrl),
}

impl Proxy {
    /// Answers a request: with what its target says, or with a `Status` that says why not.
    pub async fn handle(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        guard: &ConnectionGuard,
        interim: Option<&Interim>,
    ) -> Response<Body> {
        let held = guard.track_request();
        // Before the first insert.
        let fits = request.headers().len() <= MAX_HEADERS;
        let audit_id = audit_id(request.headers_mut());
        let accept = AcceptPreference::from_headers(request.headers());
        let (method, uri, version) = (
            request.method().clone(),
            request.uri().clone(),
            request.version(),
        );
        let client = peer.address.ip().to_canonical();
        let mut record = Record::start(
            &self.recorder,
            method,
            uri,
            version,
            client,
            audit_id.clone(),
        );
        if let Some(interim) = interim {
            interim.begin().await;
        }
        let routed = if fits {
            self.route(request, peer, interim, &mut record).await
        } else {
            Err(ProxyError::TooManyHeaders)
        };
        if let Some(interim) = interim {
            interim.end();
        }
        let mut response = match routed {
            Ok(Reply::Response(response)) => response,
            Ok(Reply::Upgrade(mut response, tunnel, grant)) => {
                response.headers_mut().insert(AUDIT_ID, audit_id);
                record.code = response.status();
                let stages = Arc::clone(&self.stages);
                self.tasks.spawn_local(tunnel::run(
                    tunnel,
                    grant,
                    record,
                    held,
                    self.drain.clone(),
                    stages,
                ));
                return response.map(|()| Body::empty());
            }
            Err(error) => {
                record.error = Some(match &error {
                    ProxyError::Forward(error) => error.log_text(),
                    error => error.to_string(),
                });
                let form = accept.form(record.uri.query());
                respond::refuse(&error, self.causes(&error, &record).await, form)
            }
        };
        response.headers_mut().insert(AUDIT_ID, audit_id);
        record.code = response.status();
        response.map(|body| body.recorded(record, held))
    }

    async fn route(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        interim: Option<&Interim>,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        let Stages {
            authenticator,
            authorizer,
            resolver,
            ready,
            ..
        } = &*self.stages;
        if !ready.is_synced() {
            return Err(ProxyError::NotReady);
        }
        if request.version() == Version::HTTP_11
            && request.headers().get_all(header::HOST).iter().count() != 1
        {
            return Err(ProxyError::Host);
        }
        let upgrade = Upgrade::asked(&request);
        let websocket = upgrade.as_ref().is_some_and(Upgrade::is_websocket);
        let credentials = upgrade
            .is_some()
            .then(|| authenticator.credentials(request.headers()));
        let caller = authenticator
            .authenticate(request.headers_mut(), peer, websocket)
            .await?;
        record.identity = Some(Arc::clone(&caller.identity));
        let client = ClientAddress::from(record.client);
        let identity = match caller.impersonates {
            None => caller.identity,
            Some(wanted) => {
                let identity = authorizer
                    .impersonate(&caller.identity, wanted, client)
                    .await?;
                record.impersonated_user = Some(Arc::clone(&identity));
                identity
            }
        };

        let uri = record.uri.clone();
        let target = Target::parse(uri.path())?;
        // An extended CONNECT becomes a GET (C21, RFC 8441). Nothing else becomes anything: the
        // method that is asked for is the one that the endpoint gets.
        let method = match &upgrade {
            Some(Upgrade::Connect { .. }) => Method::GET,
            _ => request.method().clone(),
        };
        let verb = Verb::from_method(&method, !target.id.is_empty());
        record.name(&target, verb);
        let permit = authorizer
            .authorize(&identity, verb, &target, client)
            .await?;
        if upgrade.is_some() {
            authorizer
                .authorize_upgrade(&identity, &target, client)
                .await?;
        }
        if !is_served(&method) {
            return Err(ProxyError::Method);
        }

        let route = resolver.resolve(&permit).await?;
        let on_client = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        if upgrade.is_none()
            && target.rest.is_empty()
            && matches!(method, Method::GET | Method::HEAD)
        {
            return Ok(Reply::Response(respond::redirect(
                &target.with_trailing_slash(uri.query()),
            )));
        }

        let client = record.client;
        let has_body = !body.is_end_stream();
        let (secure, asked) = (peer.secure, upgrade.as_ref());
        RequestHeaderRewriter {
            target: &target,
            client,
            secure,
            upgrade: asked,
            has_body,
        }
        .rewrite(&mut parts);
        if self.stages.rewriting.is_enabled() {
            rewrite::narrow_accept_encoding(&method, &mut parts.headers);
        }
        let client_host = parts.headers.get(header::HOST).cloned();
        record.received = has_body.then(Rc::<Cell<u64>>::default);
        let outgoing = UpstreamRequest {
            parts,
            body,
            received: record.received.clone(),
            interim: interim.cloned(),
        };
        let (forwarder, dialed) = (&self.forwarder, &mut record.endpoint);
        let (
            UpstreamResponse {
                mut response,
                endpoint,
            },
            refuses_upgrade,
        ) = match &upgrade {
            None => (
                forwarder
                    .send(&permit, &route, outgoing, client, dialed)
                    .await?,
                false,
            ),
            Some(asked) => {
                match forwarder
                    .upgrade(&permit, &route, outgoing, client, on_client, asked, dialed)
                    .await?
                {
                    Upgraded::Switched { response, tunnel } => {
                        let grant =
                            Grant::new(peer, credentials.unwrap_or_default(), websocket, verb);
                        return Ok(Reply::Upgrade(response, tunnel, Box::new(grant)));
                    }
                    Upgraded::Ignored(answer) => (answer, false),
                    Upgraded::Refused(answer) => (answer, true),
                }
            }
        };
        // Whatever the endpoint speaks: our answer is framed as the client's connection wants it.
        *response.version_mut() = Version::HTTP_11;
        sanitize_response_headers(response.headers_mut(), refuses_upgrade)?;
        if refuses_upgrade {
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
            return Ok(Reply::Response(response.map(Body::upstream)));
        }
        let links = || self.links(&target, &route, &endpoint, client_host.as_ref());
        rewrite::rewrite_location(response.headers_mut(), links)?;
        let reading = PageFormat::detect(&method, &response);
        let page = reading.and_then(|reading| {
            Some((
                reading,
                self.stages
                    .rewriting
                    .reserve(reading.held_bytes(), record.client.into())?,
            ))
        });
        Ok(Reply::Response(match page {
            None => response.map(Body::upstream),
            Some((reading, share)) => {
                // The length is that of the page as it came.
                response.headers_mut().remove(header::CONTENT_LENGTH);
                response.map(|body| Body::page(body, reading, links(), share))
            }
        }))
    }

    /// How an answer of the endpoint may spell where it comes from.
    fn links(
        &self,
        target: &Target<'_>,
        route: &Route,
        endpoint: &Endpoint,
        client_host: Option<&HeaderValue>,
    ) -> LinkRewriter {
        let name = target.id().map(|id| id.name.to_owned()).unwrap_or_default();
        let namespace = target.namespace.clone().into_owned();
        LinkRewriter {
            prefix: target.plain_prefix().into_owned(),
            client_host: client_host
                .and_then(|host| host.to_str().ok())
                .map(str::to_owned),
            endpoint: endpoint.address,
            scheme: route.transport.scheme(),
            service: route.service_port.map(|port| ServiceAddress {
                namespace,
                name,
                port,
            }),
            cluster_domain: Arc::clone(&self.stages.cluster_domain),
        }
    }

    /// What helps a caller to see why, where they may see the target.
    async fn causes(&self, error: &ProxyError, record: &Record) -> Vec<Cause> {
        let causes = respond::status_causes(error);
        let identity = record
            .impersonated_user
            .as_ref()
            .or(record.identity.as_ref());
        match (identity, Target::parse(record.uri.path())) {
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

/// The client's audit id as it is (CONFORMANCE C68), else a new one; forwarded and returned.
fn audit_id(headers: &mut HeaderMap) -> HeaderValue {
    // A map that is full (24,576 names) cannot take one more; its request is rejected, with an id
    // all the same.
    if let Ok(entry) = headers.try_entry(AUDIT_ID) {
        return entry.or_insert_with(new_audit_id).clone();
    }
    headers.get(AUDIT_ID).cloned().unwrap_or_else(new_audit_id)
}

/// A random UUID (RFC 9562, version 4). It tells requests apart and protects nothing, so a fast
/// generator will do.
fn new_audit_id() -> HeaderValue {
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut id = [b'-'; 36];
    let places = (0..36).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    for (place, nibble) in places.zip((0..32).rev().map(|nibble| (random >> (nibble * 4)) & 0xf)) {
        id[place] = b"0123456789abcdef"[nibble as usize];
    }
    HeaderValue::from_bytes(&id).expect("hex digits and dashes make a header value")
}

/// The methods that the apiserver routes (C15).
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

    #[test]
    fn audit_ids_are_random_uuids_unless_the_client_brings_one() {
        let id = new_audit_id();
        let id = id.to_str().unwrap();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!("89ab".contains(&id[19..20]), "{id}");
        assert_ne!(new_audit_id(), new_audit_id());
        let mut headers = HeaderMap::new();
        headers.insert(AUDIT_ID, HeaderValue::from_static("mine"));
        assert_eq!(audit_id(&mut headers), "mine");
    }

    #[test]
    fn a_full_map_of_headers_gets_an_audit_id_without_a_panic() {
        let mut headers = HeaderMap::new();
        let mut n = 0;
        while headers
            .try_append(
                HeaderName::try_from(format!("x{n}")).unwrap(),
                HeaderValue::from_static("1"),
            )
            .is_ok()
        {
            n += 1;
        }
        assert_eq!(audit_id(&mut headers).len(), 36, "{n} names");
    }
}
