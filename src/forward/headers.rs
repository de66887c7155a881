//! Header rewriting of requests and responses (CONFORMANCE chapters 6 and 7).

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::ForwardError;
use super::upgrade::Upgrade;
use crate::http::{
    DEFAULT_CACHE_CONTROL, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, MAX_HEADERS,
    RequestHead, is_hop_by_hop, remove_hop_by_hop, rules_origin, speaks_for_origin,
};
use crate::model::Target;
use crate::model::path::SubPathDecoding;
use crate::model::text::push_ip;

const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// Characters escaped in `X-Forwarded-Uri`, which backends insert into pages: those that could end
/// an HTML attribute or begin a tag (C64).
const FORWARDED_URI_ESCAPES: &AsciiSet = &CONTROLS
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

/// Rewrites the head of a request for the backend.
#[derive(Debug)]
pub struct RequestHeaderRewriter<'a> {
    pub target: &'a Target<'a>,
    pub decoding: SubPathDecoding,
    /// The endpoint is asked for the whole path, with the prefix.
    pub keeps_path: bool,
    /// Address that is appended to `X-Forwarded-For`.
    pub address: IpAddr,
    /// The client uses TLS.
    pub secure: bool,
    /// Host that a trusted front proxy reports; without one, that of the request applies.
    pub host: Option<&'a HeaderValue>,
    pub upgrade: Option<&'a Upgrade>,
    pub has_body: bool,
}

impl RequestHeaderRewriter<'_> {
    /// Converts the client's request head: target to the path of the backend, `Host` kept or set to
    /// what a trusted front proxy reports, hop-by-hop headers and underscore variants of protected
    /// names removed, forwarded headers and those of the upgrade added.
    pub fn rewrite(&self, head: &mut RequestHead) {
        let prefix = self.target.plain_prefix();
        let sub_path = self.target.sub_path(self.decoding);
        // Read first: the authority is in the target, which is replaced below.
        let host = self.host.cloned().or_else(|| host(head));
        remove_hop_by_hop(&mut head.headers, is_underscore_variant);
        // After the removal, which would remove the new `Connection` and `Upgrade` headers.
        if let Some(upgrade) = self.upgrade {
            upgrade.write_request(head);
        }
        let headers = &mut head.headers;
        // `%` is not in the set, so the escapes of the path stay as they are.
        let escaped: Cow<'_, str> = utf8_percent_encode(&sub_path, FORWARDED_URI_ESCAPES).into();
        let uri = Bytes::from([&*prefix, &escaped].concat());
        // Describes the part of the path that was removed; applications put it before their links.
        set(
            headers,
            FORWARDED_PREFIX,
            (!self.keeps_path).then(|| uri.slice(..prefix.len())),
        );
        // kube-apiserver sets it on plain requests only (kubernetes#67878).
        if self.upgrade.is_none() {
            set(headers, FORWARDED_URI, Some(uri));
        }
        if head.version == Version::HTTP_2 {
            join_cookies(headers);
        }
        append_address(headers, self.address);
        // Scheme and host are replaced, not appended: values from the client are not trusted, and
        // those of a trusted front proxy have been read.
        headers.insert(FORWARDED_PROTO, if self.secure { HTTPS } else { HTTP });
        match host {
            Some(host) => {
                // `Connection` may have named it, which must not remove it.
                if self.host.is_some()
                    || head.target.authority().is_some()
                    || !headers.contains_key(header::HOST)
                {
                    headers.insert(header::HOST, host.clone());
                }
                headers.insert(FORWARDED_HOST, host);
            }
            None => {
                // HTTP/1.0, or HTTP/2 with neither `:authority` nor `Host`. A value of the client
                // must not take its place.
                headers.remove(FORWARDED_HOST);
            }
        }
        if !self.has_body && matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
            // Some backends require a length for methods that usually have a body (RFC 9110
            // section 8.6).
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        head.target = if self.keeps_path {
            head.target.with_path(&[&*prefix, &sub_path].concat())
        } else {
            head.target.with_path(&sub_path)
        };
    }
}

/// Replaces a header of the client by a value, or removes it if there is none or if the value is
/// not that of a header.
fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<Bytes>) {
    match value.map(HeaderValue::from_maybe_shared) {
        Some(Ok(value)) => {
            headers.insert(name, value);
        }
        Some(Err(_)) | None => {
            headers.remove(name);
        }
    }
}

/// Rewrites the head of a backend's response for the client: removes hop-by-hop headers (C72), and
/// those that speak for the origin (C70), except for grants of cross-origin access if it refuses an
/// upgrade; disables caching if the backend does not set `Cache-Control` (C71).
///
/// # Errors
/// [`ForwardError::TooManyHeaders`] if it has more than [`MAX_HEADERS`] fields.
pub fn sanitize_response_headers(
    headers: &mut HeaderMap,
    refuses_upgrade: bool,
) -> Result<(), ForwardError> {
    // Before any header is added: `HeaderMap` panics beyond its maximum size.
    if headers.len() > MAX_HEADERS {
        return Err(ForwardError::TooManyHeaders);
    }
    remove_hop_by_hop(
        headers,
        if refuses_upgrade {
            rules_origin
        } else {
            speaks_for_origin
        },
    );
    // It describes requests only.
    headers.remove(header::TE);
    // Responses depend on the caller's permissions, so a shared cache must not keep them by
    // default.
    if let Entry::Vacant(vacant) = headers.entry(header::CACHE_CONTROL) {
        vacant.insert(DEFAULT_CACHE_CONTROL);
    }
    Ok(())
}

/// Removes the header fields of an interim response that stay on its hop: hop-by-hop fields, those
/// that speak for the origin, and the framing of a body, which it does not have (RFC 9112 section
/// 6.1).
pub(super) fn sanitize_interim_headers(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers, |name| {
        speaks_for_origin(name) || matches!(name, "content-length" | "trailer")
    });
    headers.remove(header::TE);
}

/// Removes trailers of a request that an endpoint could mistake for headers of the bastion, in any
/// spelling. The codec has removed those that frame, route or authenticate.
pub fn sanitize_request_trailers(
    trailers: &mut HeaderMap,
    is_identity: &dyn Fn(&HeaderName) -> bool,
) {
    let removed: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            is_identity(name)
                || is_underscore_variant(name.as_str())
                || name.as_str().starts_with("x-forwarded-")
                || *name == "audit-id"
        })
        .cloned()
        .collect();
    for name in removed {
        trailers.remove(name);
    }
}

/// Returns true if CGI-like backends (WSGI, PHP) confuse the name with a header that the bastion
/// removes or sets. They convert `-` to `_`, so `X_Forwarded_Host` would replace or duplicate the
/// real `X-Forwarded-Host` (C60). The `authenticate` module removes such variants of identity and
/// impersonation headers, whose names are configured there.
fn is_underscore_variant(name: &str) -> bool {
    // Most names need only this search for one byte.
    if !name.as_bytes().contains(&b'_') {
        return false;
    }
    let name = name.replace('_', "-");
    is_hop_by_hop(&name)
        || name.starts_with("x-forwarded-")
        || matches!(&*name, "accept-encoding" | "audit-id" | "content-length")
}

/// Returns the client's `Host`, or `:authority` of HTTP/2 (C59).
fn host(head: &RequestHead) -> Option<HeaderValue> {
    // The authority replaces a `Host` header, both in HTTP/2 (RFC 9113 section 8.3.1) and in the
    // absolute form of HTTP/1.1 (RFC 9112 section 3.2.2).
    let authority = head
        .target
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority).ok());
    authority.or_else(|| head.headers.get(header::HOST).cloned())
}

/// Appends the address of the connection to the `X-Forwarded-For` of earlier proxies, joined into
/// one header (C63).
fn append_address(headers: &mut HeaderMap, address: IpAddr) {
    let mut value = Vec::with_capacity(48);
    // One line is equivalent to several (RFC 9110 section 5.3), of which some backends read only
    // one.
    for earlier in headers.get_all(FORWARDED_FOR) {
        value.extend_from_slice(earlier.as_bytes());
        value.extend_from_slice(b", ");
    }
    push_ip(&mut value, address);
    let value = HeaderValue::from_maybe_shared(Bytes::from(value));
    headers.insert(
        FORWARDED_FOR,
        value.expect("header values joined with an address are a valid header value"),
    );
}

/// Joins the `Cookie` headers of HTTP/2 into one, because HTTP/1.1 allows only one (RFC 9113
/// section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        // The separator of RFC 9113. A comma would become part of a cookie.
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
            .expect("joined header values are a valid header value");
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, request};

    fn rewritten(request: request::Builder, upgrade: bool) -> RequestHead {
        rewritten_with(request, upgrade, false, None)
    }

    fn rewritten_with(
        request: request::Builder,
        upgrade: bool,
        keeps_path: bool,
        host: Option<&'static str>,
    ) -> RequestHead {
        let mut head = crate::testing::head(request);
        let path = head.target.clone();
        let target = Target::parse(path.path()).unwrap();
        let upgrade = upgrade.then(|| Upgrade::from_request(&head, None).unwrap());
        RequestHeaderRewriter {
            target: &target,
            decoding: SubPathDecoding::default(),
            keeps_path,
            address: [192, 0, 2, 7].into(),
            secure: true,
            host: host.map(HeaderValue::from_static).as_ref(),
            upgrade: upgrade.as_ref(),
            has_body: false,
        }
        .rewrite(&mut head);
        head
    }

    const PREFIX: &str = "/api/v1/namespaces/ns/pods/p/proxy";

    #[test]
    fn keeps_bytes_of_path_and_query() {
        let parts = rewritten(
            Request::get(format!("{PREFIX}/a%2Fb//(c)?q=%20&q=+;x=%zz")),
            false,
        );
        assert_eq!(parts.target.path_and_query(), "/a%2Fb//(c)?q=%20&q=+;x=%zz");
        assert_eq!(parts.headers[FORWARDED_URI], format!("{PREFIX}/a%2Fb//(c)"));
        assert_eq!(
            rewritten(Request::get(format!("{PREFIX}/?")), false)
                .target
                .path_and_query(),
            "/?"
        );
        assert_eq!(
            rewritten(Request::post(PREFIX), false)
                .target
                .path_and_query(),
            "/"
        );
    }

    #[test]
    fn forwards_the_prefix_that_the_endpoint_does_not_see() {
        let request =
            || Request::get(format!("{PREFIX}/a?q")).header("x-forwarded-prefix", "/evil");
        for upgrade in [false, true] {
            let request = request()
                .header("connection", "upgrade")
                .header("upgrade", "websocket");
            let head = rewritten(request, upgrade);
            assert_eq!(head.headers[FORWARDED_PREFIX], PREFIX);
            assert_eq!(head.target.path_and_query(), "/a?q");
        }
        let escaped = Request::get("/api/v1/namespaces/ns/pods/http%3Ap%3a80/proxy/a");
        assert_eq!(
            rewritten(escaped, false).headers[FORWARDED_PREFIX],
            "/api/v1/namespaces/ns/pods/http:p:80/proxy"
        );
    }

    #[test]
    fn keeps_the_prefix_in_the_path_on_request() {
        for (rest, path, uri) in [
            ("/a/../b%20c?q=%20", "/b%20c?q=%20", "/b%20c"),
            ("/", "/", "/"),
            ("/../../..", "/", "/"),
            (
                "/metrics%2Fcadvisor",
                "/metrics/cadvisor",
                "/metrics/cadvisor",
            ),
        ] {
            let request =
                Request::get(format!("{PREFIX}{rest}")).header("x-forwarded-prefix", "/evil");
            let head = rewritten_with(request, false, true, None);
            assert_eq!(head.target.path_and_query(), format!("{PREFIX}{path}"));
            assert_eq!(head.headers[FORWARDED_URI], format!("{PREFIX}{uri}"));
            // Applications would put it before links that begin with it.
            assert_eq!(head.headers.get(FORWARDED_PREFIX), None);
        }
    }

    #[test]
    fn escapes_markup_in_forwarded_uri() {
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
    fn removes_hop_by_hop_headers() {
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
            "x-forwarded-prefix",
            "x-forwarded-proto",
            "x-forwarded-uri",
        ];
        assert_eq!(names, [&["host"][..], &forwarded, &["x-kept"]].concat());
    }

    #[test]
    fn keeps_te_trailers() {
        let headers = rewritten(Request::get(PREFIX).header("te", "gzip, Trailers"), false).headers;
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn upgrade_has_single_connection_and_upgrade_header() {
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
        let forwarded = [
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded-proto",
        ];
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
    fn removes_http2_settings_not_named_by_connection() {
        let request = Request::get(PREFIX).header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA");
        assert!(
            rewritten(request, false)
                .headers
                .get("http2-settings")
                .is_none()
        );
    }

    #[test]
    fn removes_underscore_variants_of_protected_names_only() {
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
    fn rejects_response_with_too_many_fields() {
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
    fn appends_client_and_replaces_forwarded_host_and_scheme() {
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

    /// CONFORMANCE C59, C65.
    #[test]
    fn reported_host_replaces_that_of_the_request() {
        let http2 = || Request::get(format!("https://inner{PREFIX}")).version(Version::HTTP_2);
        for (request, upgrade) in [
            (Request::get(PREFIX).header("host", "inner"), false),
            (Request::get(PREFIX).header("connection", "host"), false),
            (Request::get(PREFIX).header("upgrade", "x"), true),
            (http2(), false),
        ] {
            let request = request
                .header("x-forwarded-host", "inner")
                .header("connection", "upgrade");
            let headers = rewritten_with(request, upgrade, false, Some("a.example")).headers;
            for name in [header::HOST, FORWARDED_HOST] {
                let values: Vec<_> = headers.get_all(&name).iter().collect();
                assert_eq!(values, ["a.example"], "{name}");
            }
        }
    }

    #[test]
    fn converts_http2_request_to_http1() {
        let request = Request::get(format!("https://bastion.example{PREFIX}/x"))
            .version(Version::HTTP_2)
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let parts = rewritten(request, false);
        assert_eq!(parts.target.path_and_query(), "/x");
        assert_eq!(parts.headers["host"], "bastion.example");
        assert_eq!(parts.headers["cookie"], "a=1; b=2");
    }

    #[test]
    fn removes_hop_by_hop_headers_and_cors_grants_from_responses() {
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
            "the backend's value is kept"
        );
    }
}
