//! Headers on the way there and back (CONFORMANCE chapters 6 and 7).

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Version, request};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::ForwardError;
use super::upgrade::Upgrade;
use crate::http::{MAX_HEADERS, is_hop_by_hop, remove_hop_by_hop};
use crate::model::Target;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");
/// What the apiserver says of answers that say nothing themselves (C71).
const NOT_CACHED: HeaderValue = HeaderValue::from_static("no-cache, private");

/// What a path may hold unescaped in `X-Forwarded-Uri`: whatever could end an attribute
/// or begin a tag may not (C64).
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'\\')
    .add(b'^')
    .add(b'|');

/// What the backend is told of the way that a request came.
#[derive(Debug)]
pub struct RequestHeaderRewriter<'a> {
    pub target: &'a Target<'a>,
    pub client: IpAddr,
    pub secure: bool,
    pub upgrade: Option<&'a Upgrade>,
    pub has_body: bool,
}

impl RequestHeaderRewriter<'_> {
    /// Makes the head of a client's request the head of the backend's: URI in origin form, `Host`
    /// as the client sent it, hop-by-hop headers and names in disguise off, forwarded headers on,
    /// and the upgrade's own where there is one.
    pub fn rewrite(&self, parts: &mut request::Parts) {
        let path = self.target.backend_path();
        let host = host(parts);
        remove_hop_by_hop(&mut parts.headers, is_disguised);
        if let Some(upgrade) = self.upgrade {
            upgrade.ask(parts);
        }
        let headers = &mut parts.headers;
        if self.upgrade.is_none() {
            let escaped: Cow<'_, str> = utf8_percent_encode(&path, ESCAPED).into();
            if let Ok(value) =
                HeaderValue::try_from([&*self.target.plain_prefix(), &escaped].concat())
            {
                headers.insert(FORWARDED_URI, value);
            }
        }
        if parts.version == Version::HTTP_2 {
            join_cookies(headers);
        }
        append_client(headers, self.client);
        headers.insert(FORWARDED_PROTO, if self.secure { HTTPS } else { HTTP });
        match host {
            Some(host) => {
                headers.insert(FORWARDED_HOST, host.clone());
                headers.insert(header::HOST, host);
            }
            None => {
                headers.remove(FORWARDED_HOST);
            }
        }
        if !self.has_body && matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            // There are backends that ask for a length where a body could be (RFC 9110 section
            // 8.6).
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        if self.has_body && !headers.contains_key(header::CONTENT_LENGTH) {
            // Said, because of a GET or HEAD hyper would believe that it has none (C69).
            headers.insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
        parts.uri = origin_form(path, parts.uri.query());
        parts.version = Version::HTTP_11;
    }
}

/// Makes the head of a backend's answer the head of ours: hop-by-hop headers off (C72), and CORS
/// grants (C70) unless it refuses an upgrade; where the backend says nothing of caching, nothing is
/// cached (C71).
///
/// # Errors
/// [`ForwardError::TooManyHeaders`] where it has more fields than are passed on.
pub fn sanitize_response_headers(
    headers: &mut HeaderMap,
    refuses_upgrade: bool,
) -> Result<(), ForwardError> {
    if headers.len() > MAX_HEADERS {
        return Err(ForwardError::TooManyHeaders);
    }
    remove_hop_by_hop(
        headers,
        if refuses_upgrade {
            |_| false
        } else {
            is_cors_grant
        },
    );
    if let Entry::Vacant(vacant) = headers.entry(header::CACHE_CONTROL) {
        vacant.insert(NOT_CACHED);
    }
    Ok(())
}

/// What stays behind of an interim answer: it has no body to be framed, and grants nothing (RFC
/// 9112 section 6.1).
pub(super) fn stays_on_hop(name: &HeaderName) -> bool {
    let name = name.as_str();
    is_hop_by_hop(name) || is_cors_grant(name) || matches!(name, "content-length" | "trailer")
}

/// Whether CGI-like backends (WSGI, PHP) read the name as that of a header which the bastion
/// removes or sets, because they turn `-` into `_` in all names: `X_Forwarded_Host` would stand
/// beside the true `X-Forwarded-Host`, or for it (C60). Identity and impersonation
/// headers in disguise are dropped by `identify`, which knows their names.
fn is_disguised(name: &str) -> bool {
    // One search for a byte is all that most names cost.
    if !name.as_bytes().contains(&b'_') {
        return false;
    }
    let name = name.replace('_', "-");
    is_hop_by_hop(&name)
        || name.starts_with("x-forwarded-")
        || matches!(&*name, "accept-encoding" | "audit-id" | "content-length")
}

/// What would let pages of other origins read through the bastion, which is one origin for all apps
/// (C70).
fn is_cors_grant(name: &str) -> bool {
    matches!(
        name,
        "access-control-allow-credentials"
            | "access-control-allow-headers"
            | "access-control-allow-methods"
            | "access-control-allow-origin"
    )
}

/// The client's `Host`, or what stands for it in HTTP/2 (C59).
fn host(parts: &request::Parts) -> Option<HeaderValue> {
    let authority = parts
        .uri
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    authority.or_else(|| parts.headers.get(header::HOST).cloned())
}

/// Appends the client to what proxies before us wrote, in one header (C63).
fn append_client(headers: &mut HeaderMap, client: IpAddr) {
    let client = client.to_string();
    let mut parts: Vec<&[u8]> = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    parts.push(client.as_bytes());
    let value = HeaderValue::from_bytes(&parts.join(&b", "[..]));
    headers.insert(
        FORWARDED_FOR,
        value.expect("header values and an address make a header value"),
    );
}

/// HTTP/2 splits cookies into headers of their own, HTTP/1.1 knows only one (RFC 9113 section
/// 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
            .expect("header values make a header value");
        headers.insert(header::COOKIE, joined);
    }
}

/// The path with the query as it came, byte for byte (C28).
fn origin_form(path: Cow<'_, str>, query: Option<&str>) -> Uri {
    let text = match query {
        Some(query) => [&*path, "?", query].concat(),
        None => path.into_owned(),
    };
    let path = PathAndQuery::try_from(text).expect("a part of a URI that was parsed");
    Uri::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn rewritten(request: request::Builder, upgrade: bool) -> request::Parts {
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let uri = parts.uri.clone();
        let target = Target::parse(uri.path()).unwrap();
        let client = "192.0.2.7".parse().unwrap();
        let asked =
            upgrade.then(|| Upgrade::asked(&Request::from_parts(parts.clone(), ())).unwrap());
        RequestHeaderRewriter {
            target: &target,
            client,
            secure: true,
            upgrade: asked.as_ref(),
            has_body: false,
        }
        .rewrite(&mut parts);
        parts
    }

    const PREFIX: &str = "/api/v1/namespaces/ns/pods/p/proxy";

    #[test]
    fn path_and_query_leave_as_they_came() {
        let parts = rewritten(
            Request::get(format!("{PREFIX}/a%2Fb//(c)?q=%20&q=+;x=%zz")),
            false,
        );
        assert_eq!(parts.uri, "/a%2Fb//(c)?q=%20&q=+;x=%zz");
        assert_eq!(parts.headers[FORWARDED_URI], format!("{PREFIX}/a%2Fb//(c)"));
        assert_eq!(
            rewritten(Request::get(format!("{PREFIX}/?")), false).uri,
            "/?"
        );
        assert_eq!(rewritten(Request::post(PREFIX), false).uri, "/");
    }

    #[test]
    fn the_forwarded_uri_cannot_break_out_of_markup() {
        let parts = rewritten(
            Request::get(format!("{PREFIX}/logs/log.log%00\"x{{")),
            false,
        );
        assert_eq!(
            parts.headers[FORWARDED_URI],
            format!("{PREFIX}/logs/log.log%00%22x%7B")
        );
    }

    #[test]
    fn hop_by_hop_headers_stay_on_their_hop() {
        let request = Request::get(PREFIX)
            .header("host", "bastion.example")
            .header("connection", "keep-alive, X-Secret, te")
            .header("x-secret", "1")
            .header("te", "gzip, trailers;q=0.5")
            .header("keep-alive", "1")
            .header("proxy-connection", "keep-alive")
            .header("proxy-authorization", "Basic x")
            .header("upgrade", "h2c")
            .header("transfer-encoding", "chunked")
            .header("x-kept", "1");
        let headers = rewritten(request, false).headers;
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let forwarded = [
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-uri",
        ];
        assert_eq!(names, [&["host"][..], &forwarded, &["x-kept"]].concat());
    }

    #[test]
    fn te_trailers_is_kept() {
        let headers = rewritten(Request::get(PREFIX).header("te", "gzip, Trailers"), false).headers;
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn an_upgrade_has_one_connection_and_one_upgrade_and_no_other_hop_by_hop_header() {
        let request = Request::get(PREFIX)
            .header("host", "bastion.example")
            .header("connection", "X-Mine, Upgrade, \u{e9}")
            .header("connection", "HTTP2-Settings, keep-alive")
            .header("upgrade", "h2c, websocket")
            .header("upgrade", "TLS/1.2")
            .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
            .header("x-mine", "1")
            .header("keep-alive", "timeout=5")
            .header("te", "gzip")
            .header("proxy-authorization", "Basic x")
            .header("proxy-connection", "keep-alive")
            .header("sec-websocket-version", "13");
        let headers = rewritten(request, true).headers;
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        // No X-Forwarded-Uri (kubernetes#67878).
        let forwarded = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        let own = ["connection", "host", "sec-websocket-version", "upgrade"];
        assert_eq!(names, [&own[..], &forwarded].concat());
        assert_eq!(headers.len(), names.len(), "one line each");
        assert!(
            headers["connection"] == "Upgrade" && headers["upgrade"] == "websocket",
            "{headers:?}"
        );
        assert_eq!(headers[FORWARDED_FOR], "192.0.2.7");
    }

    #[test]
    fn settings_of_h2c_go_no_further_even_where_connection_does_not_name_them() {
        let request = Request::get(PREFIX).header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA");
        assert!(
            rewritten(request, false)
                .headers
                .get("http2-settings")
                .is_none()
        );
    }

    #[test]
    fn names_in_disguise_are_dropped_and_other_underscores_pass() {
        for (name, dropped) in [
            ("x_forwarded_host", true),
            ("x-forwarded_proto", true),
            ("x_forwarded-for", true),
            ("x_forwarded_uri", true),
            ("audit_id", true),
            ("transfer_encoding", true),
            ("content_length", true),
            ("accept_encoding", true),
            ("proxy_authorization", true),
            ("keep_alive", true),
            ("http2_settings", true),
            ("x_forwarded", false),
            ("x_request_id", false),
            ("_", false),
            ("x_audit_id", false),
        ] {
            let headers = rewritten(Request::get(PREFIX).header(name, "evil"), false).headers;
            assert_eq!(headers.get(name).is_none(), dropped, "{name}");
            assert!(
                headers.values().filter(|value| *value == "evil").count() == usize::from(!dropped),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn answers_of_too_many_fields_are_rejected() {
        let mut headers = HeaderMap::new();
        for n in 0..MAX_HEADERS {
            headers.append(
                HeaderName::try_from(format!("x-{}", n % 900)).unwrap(),
                HeaderValue::from_static("1"),
            );
        }
        assert!(sanitize_response_headers(&mut headers.clone(), false).is_ok());
        headers.append("x-1", HeaderValue::from_static("1"));
        assert!(matches!(
            sanitize_response_headers(&mut headers, false),
            Err(ForwardError::TooManyHeaders)
        ));
    }

    #[test]
    fn the_client_is_appended_and_its_claims_of_host_and_scheme_are_dropped() {
        let request = Request::get(PREFIX)
            .header("host", "bastion.example")
            .header("x-forwarded-for", "198.51.100.1")
            .header("x-forwarded-for", "198.51.100.2")
            .header("x-forwarded-host", "evil.example")
            .header("x-forwarded-proto", "gopher")
            .header("x-forwarded-uri", "/evil");
        let headers = rewritten(request, false).headers;
        assert_eq!(
            headers[FORWARDED_FOR],
            "198.51.100.1, 198.51.100.2, 192.0.2.7"
        );
        assert_eq!(headers.get_all(FORWARDED_FOR).iter().count(), 1);
        assert_eq!(
            (&headers[FORWARDED_HOST], &headers[FORWARDED_PROTO]),
            (&"bastion.example".parse().unwrap(), &HTTPS)
        );
        assert_eq!(headers[FORWARDED_URI], format!("{PREFIX}/"));
    }

    #[test]
    fn http2_becomes_http1() {
        let request = Request::get(format!("https://bastion.example{PREFIX}/x"))
            .version(Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let parts = rewritten(request, false);
        assert_eq!(
            (parts.uri.to_string().as_str(), parts.version),
            ("/x", Version::HTTP_11)
        );
        assert_eq!(parts.headers["host"], "bastion.example");
        assert_eq!(parts.headers["cookie"], "a=1; b=2");
    }

    #[test]
    fn answers_lose_hops_and_cors_grants() {
        let mut headers = HeaderMap::new();
        for name in [
            "connection",
            "keep-alive",
            "access-control-allow-origin",
            "access-control-max-age",
            "trailer",
        ] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        sanitize_response_headers(&mut headers, false).unwrap();
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["access-control-max-age", "cache-control", "trailer"]
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=9"));
        sanitize_response_headers(&mut headers, false).unwrap();
        assert_eq!(
            headers[header::CACHE_CONTROL],
            "max-age=9",
            "the backend's own wins"
        );
    }
}
