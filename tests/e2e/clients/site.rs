//! A small site of several pages, as an app writes them that believes it lives at the root of its
//! host.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::websocket::echo;
use crate::support::app::{Body, answer, status};

const HTML: &str = "text/html; charset=utf-8";

/// Answers as the site does.
pub async fn site(request: Request<Incoming>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (method, path.as_str()) {
        (Method::GET, "/") => answer(HTML, include_str!("../../clients/site/front.html")),
        (Method::GET, "/second") => packed(
            &request,
            page("Second page", "", &format!("you came by {query}")),
        ),
        (Method::GET, "/framed") => answer(HTML, page("Framed", "", "you see a frame")),
        (Method::GET, "/search") => answer(
            HTML,
            page("Found", "", &format!("you searched for {query}")),
        ),
        (Method::GET, "/refreshed") => {
            let refresh = r#"<meta http-equiv="refresh" content="0; url=/elsewhere">"#;
            answer(HTML, page("Refreshed", refresh, "you do not stay here"))
        }
        (Method::GET, "/moved") => status(StatusCode::FOUND, header::LOCATION, "/elsewhere", ""),
        (Method::GET, "/moved/whole") => {
            // As frameworks do that make whole URLs of what a proxy tells them.
            let told = |name| {
                request
                    .headers()
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
            };
            let location = format!("{}://{}/elsewhere", told("x-forwarded-proto"), told("host"));
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
            answer(HTML, page("Elsewhere", "", &format!("hello, {user}")))
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
            answer("text/plain", body.to_string())
        }
        (Method::GET, "/events") => {
            // One after the other, and no end: the page must see each as it comes.
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
            answer("text/css", include_str!("../../clients/site/style.css"))
        }
        (Method::GET, "/assets/app.js") => {
            answer("text/javascript", include_str!("../../clients/site/app.js"))
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
    answer("image/svg+xml", text)
}

/// A page as most servers send theirs: compressed, and in pieces that end anywhere.
fn packed(request: &Request<Incoming>, page: String) -> Response<Body> {
    let accepted = request
        .headers()
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok());
    if !accepted.unwrap_or_default().contains("gzip") {
        return answer(HTML, page);
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

fn page(title: &str, head: &str, told: &str) -> String {
    let page = include_str!("../../clients/site/page.html");
    page.replace("{title}", title)
        .replace("{head}", head)
        .replace("{told}", &told.replace('&', "&amp;"))
}
