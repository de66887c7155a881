//! Headers of requests for endpoints, and of responses for clients.

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
    let request = || Request::get(format!("{PREFIX}/a?q")).header("x-forwarded-prefix", "/evil");
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
        let request = Request::get(format!("{PREFIX}{rest}")).header("x-forwarded-prefix", "/evil");
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
