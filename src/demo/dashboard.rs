//! The page of the demo: a single-page application that assumes to be at the root of its host, and
//! the switches of the endpoints.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::watch;

const HTML: &str = "text/html; charset=utf-8";
/// Without resources of other hosts, scripts in the page, or frames around it.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; \
                      form-action 'self'; frame-ancestors 'none'";

const INDEX: &str = include_str!("page/index.html");
/// Name, content type and content of the files below `/static/`.
const FILES: &[(&str, &str, &str)] = &[
    ("app.js", "text/javascript", include_str!("page/app.js")),
    ("paths.js", "text/javascript", include_str!("page/paths.js")),
    (
        "traffic.js",
        "text/javascript",
        include_str!("page/traffic.js"),
    ),
    (
        "socket.js",
        "text/javascript",
        include_str!("page/socket.js"),
    ),
    ("links.js", "text/javascript", include_str!("page/links.js")),
    (
        "access.js",
        "text/javascript",
        include_str!("page/access.js"),
    ),
    ("style.css", "text/css", include_str!("page/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// An endpoint that the page can switch off and on.
#[derive(Debug)]
pub(super) struct Switch {
    pub endpoint: &'static str,
    pub on: watch::Sender<bool>,
}

/// Data that the page displays and changes.
#[derive(Clone, Debug)]
pub(super) struct Dashboard {
    pub switches: Arc<[Switch]>,
    /// Path of the manifest with the permissions of the page.
    pub permissions_file: Arc<str>,
}

/// Routes of the page. All paths without a file return the same HTML, because the views of the
/// application are paths of its own.
pub(super) fn routes(dashboard: Dashboard) -> Router {
    Router::new()
        .route("/static/{file}", get(file))
        .route("/moved", get(moved))
        .route("/api/endpoints", get(endpoints))
        .route("/api/endpoints/{endpoint}/{state}", post(switch))
        .route("/api/permissions", get(permissions))
        .fallback(get(index))
        .with_state(dashboard)
}

async fn index() -> Response {
    let policy = (header::CONTENT_SECURITY_POLICY, POLICY);
    content(HTML, [policy, NO_CACHE], INDEX)
}

async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(file, ..)| *file == name) {
        Some((_, kind, text)) => content(kind, [NO_CACHE], *text),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Redirects like an application at the root of its host.
async fn moved() -> Response {
    (StatusCode::FOUND, [(header::LOCATION, "/links")]).into_response()
}

async fn endpoints(State(dashboard): State<Dashboard>) -> Response {
    let states = dashboard.switches.iter();
    let states =
        states.map(|Switch { endpoint, on }| json!({"name": endpoint, "on": *on.borrow()}));
    data(&Value::Array(states.collect()))
}

async fn switch(
    State(dashboard): State<Dashboard>,
    Path((endpoint, state)): Path<(String, String)>,
) -> StatusCode {
    let switches = &dashboard.switches;
    let found = switches.iter().find(|switch| switch.endpoint == endpoint);
    match (found, &*state) {
        (Some(switch), "off") => {
            switch.on.send_replace(false);
            tracing::info!("{endpoint} refuses connections; its EndpointSlice remains as it is");
        }
        (Some(switch), "on") => {
            switch.on.send_replace(true);
            tracing::info!("{endpoint} accepts connections");
        }
        _ => return StatusCode::NOT_FOUND,
    }
    StatusCode::NO_CONTENT
}

async fn permissions(State(dashboard): State<Dashboard>) -> Response {
    data(&json!({"file": &*dashboard.permissions_file, "rules": super::manifests::PAGE_RBAC}))
}

const NO_CACHE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-cache");

fn data(value: &Value) -> Response {
    content("application/json", [NO_CACHE], value.to_string())
}

fn content<const N: usize>(
    kind: &'static str,
    headers: [(HeaderName, &'static str); N],
    body: impl IntoResponse,
) -> Response {
    ([(header::CONTENT_TYPE, kind)], headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_refers_to_existing_files_and_no_other_host() {
        for (name, text) in FILES
            .iter()
            .map(|(name, _, text)| (*name, *text))
            .chain([("index.html", INDEX)])
        {
            for (position, _) in text.match_indices("/static/") {
                let path = &text[position + "/static/".len()..];
                let end = path.find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
                let file = &path[..end.unwrap_or(path.len())];
                assert!(
                    FILES.iter().any(|(known, ..)| *known == file),
                    "{name} refers to /static/{file}"
                );
            }
            // The namespace of SVG is a name, not an address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for scheme in ["http://", "https://", "url("] {
                assert!(!text.contains(scheme), "{name} contains {scheme}");
            }
        }
    }
}
