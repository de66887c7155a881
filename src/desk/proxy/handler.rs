//! Requests of local clients: prefix, filter, then the API or a file.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use http::{HeaderValue, Method, Response, StatusCode, header};
use tokio::sync::OwnedSemaphorePermit;

use super::body::{Body, not_found, text_response};
use super::files::Files;
use super::filter::{Filter, Rejection};
use super::path::{self, Prefix};
use super::upstream::{Sent, Upstream};
use crate::http::h1::{RejectedLine, RequestError};
use crate::http::{Handler, Interim, Reply, Request};

/// Proxy of one listener.
#[derive(Debug)]
pub struct Proxy {
    pub api_prefix: Prefix,
    pub files: Option<(Prefix, Files)>,
    /// `None` accepts all requests.
    pub filter: Option<Filter>,
    pub upstream: Upstream,
    /// Logs a line per request.
    pub verbose: bool,
}

/// Connection of a local client.
#[derive(Debug)]
pub(super) struct ClientConnection {
    pub proxy: Rc<Proxy>,
    /// `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// Place among the connections that are open at a time. A tunnel keeps it.
    pub permit: Rc<OwnedSemaphorePermit>,
}

/// Server of a path.
#[derive(Debug, PartialEq, Eq)]
enum Destination<'a> {
    /// The API, with the path that is forwarded.
    Api(&'a str),
    /// A file, with the path below the prefix.
    File(&'a str),
    /// The path lacks the slash at the end of a prefix.
    Redirect(&'a Prefix),
    None,
}

impl Proxy {
    /// Finds what serves a path. The longer one of two prefixes counts.
    fn destination<'a>(&'a self, path: &'a str) -> Destination<'a> {
        let files = self.files.as_ref().map(|(prefix, _)| prefix);
        let mut prefixes = files.into_iter().chain([&self.api_prefix]);
        if let Some(prefix) = prefixes.find(|prefix| prefix.lacks_slash(path)) {
            return Destination::Redirect(prefix);
        }
        let api = self.api_prefix.strip(path);
        if let Some(prefix) = files
            && let Some(rest) = prefix.strip(path)
            && (api.is_none() || prefix.as_str().len() > self.api_prefix.as_str().len())
        {
            return Destination::File(rest);
        }
        match api {
            // As in kubectl, prefixes such as /api/ are part of the paths of the API.
            Some(_) if self.api_prefix.as_str().starts_with("/api") => Destination::Api(path),
            Some(rest) => Destination::Api(rest),
            None => Destination::None,
        }
    }

    /// Responds to a request.
    async fn route(
        &self,
        request: &mut Request,
        interim: Option<Interim>,
        client: &ClientConnection,
    ) -> Sent {
        let head = &request.head;
        let target = head.target.path();
        if target == "*" {
            // About the proxy itself (RFC 9110 section 9.3.7).
            return Response::new(Body::empty()).into();
        }
        if target.is_empty() {
            // CONNECT to another host.
            return not_found().into();
        }
        if head.method == Method::CONNECT {
            return text_response(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed").into();
        }
        // Before the filter: kubectl redirects such paths instead, also for rejected requests.
        let path = path::clean(target).into_owned();
        let check_sender = || match &self.filter {
            Some(filter) => filter.check_sender(head),
            None => Ok(()),
        };
        let forwarded = match self.destination(&path) {
            Destination::Api(forwarded) => forwarded,
            Destination::File(rest) => {
                let Some((_, files)) = &self.files else {
                    return not_found().into();
                };
                if let Err(rejection) = check_sender() {
                    return forbidden(&rejection).into();
                }
                return files.serve(head, rest).await.into();
            }
            Destination::Redirect(prefix) => {
                if let Err(rejection) = check_sender() {
                    return forbidden(&rejection).into();
                }
                return redirect(&head.method, prefix.as_str(), head.target.query()).into();
            }
            Destination::None => return not_found().into(),
        };
        if let Some(filter) = &self.filter
            && let Err(rejection) = filter.check(head, forwarded)
        {
            return forbidden(&rejection).into();
        }
        request.head.target = request.head.target.with_path(forwarded);
        Box::pin(self.upstream.send(request, interim, client)).await
    }
}

impl Handler for ClientConnection {
    type Body = Body;

    async fn handle(&self, request: &mut Request, interim: Option<Interim>) -> Reply<Body> {
        let started = Instant::now();
        let line = self
            .proxy
            .verbose
            .then(|| (request.head.method.clone(), request.head.target.clone()));
        let Sent { reply, server } = self.proxy.route(request, interim, self).await;
        if let Some((method, target)) = line {
            tracing::info!(
                %method,
                path = target.path(),
                status = reply.response.status().as_u16(),
                milliseconds = started.elapsed().as_millis(),
                server = server.as_ref().map(|server| &*server.config.name),
                "request"
            );
        }
        reply
    }

    fn reject(&self, error: RequestError, _: RejectedLine) -> Response<Body> {
        let status = error.status();
        text_response(status, &format!("{status}: {error}"))
    }
}

impl From<Response<Body>> for Sent {
    /// Response of the proxy itself.
    fn from(response: Response<Body>) -> Self {
        Self {
            reply: Reply {
                response,
                upgrade: None,
            },
            server: None,
        }
    }
}

/// Returns the response to a rejected request. The first line is kubectl's whole response.
fn forbidden(rejection: &Rejection) -> Response<Body> {
    text_response(StatusCode::FORBIDDEN, &format!("Forbidden\n{rejection}"))
}

/// Redirects to a prefix, with the response of Go's `http.Redirect`.
fn redirect(method: &Method, prefix: &str, query: Option<&str>) -> Response<Body> {
    let location = match query {
        Some(query) => format!("{prefix}?{query}"),
        None => prefix.to_owned(),
    };
    let body = if *method == Method::GET {
        let shown = location
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;");
        Body::full(format!("<a href=\"{shown}\">Temporary Redirect</a>.\n\n"))
    } else {
        Body::empty()
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    // A query may have characters outside of ASCII, which a header value may have, too.
    if let Ok(location) = HeaderValue::from_bytes(location.as_bytes()) {
        headers.insert(header::LOCATION, location);
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, html);
    }
    response
}
