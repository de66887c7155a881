//! Requests of browsers to the local listener.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::hosts::Hosts;
use super::site::{Answer, Site, Upstream};
use crate::desk::cross_site;
use crate::desk::proxy::Body;
use crate::forward::Tunnel;
use crate::http::h1::{RejectedLine, RequestError};
use crate::http::{Handler, Interim, Reply, Request};
use crate::model::error_chain;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Handler of all connections of the listener.
#[derive(Debug)]
pub struct SiteHandler {
    pub hosts: Hosts,
    /// In the order of the hosts.
    pub sites: Vec<Rc<Site>>,
    /// Port of the listener.
    pub port: u16,
    /// Tunnels, which outlive their requests.
    pub tasks: TaskTracker,
}

impl Handler for SiteHandler {
    type Body = Body;

    async fn handle(&self, request: &mut Request, interim: Option<Interim>) -> Reply<Body> {
        let Request { head, body, .. } = request;
        let Some(index) = self.hosts.find(head) else {
            // RFC 9110 section 15.5.20. A site whose name resolves to this host (DNS rebinding) must
            // not reach the targets.
            let hosts = self.hosts.list(self.port);
            let message = format!("This host is not one of an opened target. Use {hosts}\n");
            return text(StatusCode::MISDIRECTED_REQUEST, message);
        };
        if let Err(error) = cross_site::check(head) {
            let url = http_url(&self.hosts, index, self.port);
            let message = format!("Forbidden: {error}. Open {url} in the browser instead.\n");
            return text(StatusCode::FORBIDDEN, message);
        }
        let site = &self.sites[index];
        match site.forward(head, body, interim.as_ref()).await {
            Ok(Answer::Response(response)) => Reply {
                response,
                upgrade: None,
            },
            Ok(Answer::Switched(response, tunnel)) => self.open_tunnel(response, *tunnel),
            Err(error) => {
                let message = error_chain(&error);
                site.report(Some(message.clone()));
                let message = format!("{}: {message}\n", site.name());
                text(error.status(), message)
            }
        }
    }

    fn reject(&self, error: RequestError, _: RejectedLine) -> Response<Body> {
        text(error.status(), format!("{error}\n")).response
    }
}

impl SiteHandler {
    /// Joins the browser's connection with that of the target after the response.
    fn open_tunnel(&self, response: Response<()>, upstream: Upstream) -> Reply<Body> {
        let (sender, client) = oneshot::channel();
        let tunnel = Tunnel {
            client,
            upstream: upstream.connection,
            guard: upstream.guard,
        };
        self.tasks.spawn_local(async move {
            let (received, sent) = (Cell::new(0), Cell::new(0));
            if let Err(error) = tunnel.run(&received, &sent).await {
                tracing::debug!(%error, "a tunnel failed");
            }
        });
        Reply {
            response: response.map(|()| Body::empty()),
            upgrade: Some(sender),
        }
    }
}

fn http_url(hosts: &Hosts, index: usize, port: u16) -> String {
    super::hosts::url(hosts.host(index), port)
}

/// Returns a response of the listener itself.
fn text(status: StatusCode, message: String) -> Reply<Body> {
    let mut response = Response::new(Body::full(Bytes::from(message)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, TEXT);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Reply {
        response,
        upgrade: None,
    }
}
