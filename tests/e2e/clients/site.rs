//! A small site with several pages that assumes to be at the root of its host.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::websocket::echo;
use crate::support::app::{Body, response, status};

const HTML: &str = "text/html; charset=utf-8";

/// Serves the site.
pub async fn site(request: Request<Incoming>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (method, path.as_str()) {
        (Method::GET, "/") => response(HTML, include_str!("../../clients/site/front.html")),
        (Method::GET, "/second") => packed(
            &request,
            page("Second page", "", &format!("you came by {query}")),
        ),
        (Method::GET, "/framed") => response(HTML, page("Framed", "", "you see a frame")),
        (Method::GET, "/search") => response(
            HTML,
            page("Found", "", &format!("you searched for {query}")),
        ),
        (Method::GET, "/refreshed") => {
            let refresh = r#"<meta http-equiv="refresh" content="0; url=/elsewhere">"#;
            response(HTML, page("Refreshed", refresh, "you do not stay here"))
        }
        (Method::GET, "/moved") => status(StatusCode::FOUND, header::LOCATION, "/elsewhere", ""),
        (Method::GET, "/moved/whole") => {
            // As frameworks build absolute URLs from forwarding headers.
            let forwarded = |name| {
                request
                    .headers()
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
            };
            let location = format!(
                "{}://{}/elsewhere",
                forwarded("x-forwarded-proto"),
                forwarded("host")
            );
            status(
                StatusCode::MOVED_PERMANENTLY,
                header::LOCATION,
                &location,
                "",
            )
        }
        (Method::GET, "/elsewhere") => {
            let cookies = request.headers().get_all(header::COOKIE).iter();
            let mut cookies = cookies
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split("; "));
            let user = cookies
                .find_map(|cookie| cookie.strip_prefix("user="))
                .unwrap_or("stranger");
            response(HTML, page("Elsewhere", "", &format!("hello, {user}")))
        }
        (Method::POST, "/login" | "/login/guest") => {
            let body = request
                .into_body()
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let body = String::from_utf8_lossy(&body).into_owned();
            let user = if path == "/login" {
                body.strip_prefix("user=").unwrap_or("nobody")
            } else {
                "guest"
            };
            let mut response = status(StatusCode::SEE_OTHER, header::LOCATION, "/elsewhere", "");
            let cookie =
                HeaderValue::try_from(format!("user={user}; Path=/; HttpOnly; SameSite=Lax"));
            response.headers_mut().insert(
                header::SET_COOKIE,
                cookie.expect("a form's value is encoded"),
            );
            response
        }
        (Method::POST, "/upload") => {
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes().len())
                .unwrap_or_default();
            response("text/plain", body.to_string())
        }
        (Method::GET, "/events") => {
            // An endless stream: the page must receive each event when it is sent.
            let events = (1..=3)
                .map(|count| Ok(Frame::data(Bytes::from(format!("data: event {count}\n\n")))));
            let events = futures::stream::iter(events).chain(futures::stream::pending());
            let mut response = Response::new(StreamBody::new(events).boxed_unsync());
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/event-stream"),
            );
            response
        }
        (Method::GET, "/socket") => echo(request),
        (Method::GET, "/assets/style.css") => {
            response("text/css", include_str!("../../clients/site/style.css"))
        }
        (Method::GET, "/assets/app.js") => {
            response("text/javascript", include_str!("../../clients/site/app.js"))
        }
        (Method::GET, "/assets/small.svg") => image(include_str!("../../clients/site/small.svg")),
        (Method::GET, "/assets/large.svg") => image(include_str!("../../clients/site/large.svg")),
        (Method::GET, "/assets/tile.svg") => image(include_str!("../../clients/site/tile.svg")),
        (Method::GET, "/assets/icon.svg") => image(include_str!("../../clients/site/icon.svg")),
        _ => status(
            StatusCode::NOT_FOUND,
            header::CONTENT_TYPE,
            "text/plain",
            "the site has no such page",
        ),
    }
}

fn image(text: &'static str) -> Response<Body> {
    response("image/svg+xml", text)
}

/// Returns a page as common servers send it: compressed, in chunks of any size.
fn packed(request: &Request<Incoming>, page: String) -> Response<Body> {
    let accepted = request
        .headers()
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok());
    if !accepted.unwrap_or_default().contains("gzip") {
        return response(HTML, page);
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let packed = gzip
        .write_all(page.as_bytes())
        .and_then(|()| gzip.finish())
        .expect("memory takes what is written");
    let pieces: Vec<_> = packed
        .chunks(7)
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let mut response = Response::new(StreamBody::new(futures::stream::iter(pieces)).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(HTML));
    response
        .headers_mut()
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

fn page(title: &str, head: &str, content: &str) -> String {
    let page = include_str!("../../clients/site/page.html");
    page.replace("{title}", title)
        .replace("{head}", head)
        .replace("{content}", &content.replace('&', "&amp;"))
}
