//! Paths of targets, their ids and sub-paths.

use super::*;

fn parse(path: &str) -> Result<(Resource, String, String, &str), TargetError> {
    Target::parse(path).map(|t| {
        (
            t.resource,
            t.namespace.into_owned(),
            t.id.into_owned(),
            t.rest,
        )
    })
}

#[test]
fn parses_the_three_routes() {
    use Resource::{Nodes, Pods, Services};
    let cases = [
        ("/api/v1/nodes/n/proxy", Nodes, "", "n", ""),
        ("/api/v1/nodes/n:9100/proxy/", Nodes, "", "n:9100", "/"),
        (
            "/api/v1/namespaces/ns/pods/p/proxy/a/b",
            Pods,
            "ns",
            "p",
            "/a/b",
        ),
        (
            "/api/v1/namespaces/ns/services/https:s:443/proxy//x",
            Services,
            "ns",
            "https:s:443",
            "//x",
        ),
        (
            "/api/v1/namespaces/ns/services/http%3As%3A80/proxy/%2F",
            Services,
            "ns",
            "http:s:80",
            "/%2F",
        ),
        ("/api/v1/namespaces/ns/pods//proxy", Pods, "ns", "", ""),
        ("/api/v1/namespaces//pods/p/proxy", Pods, "", "p", ""),
        ("/api/v1/n%6Fdes/n/pr%6fxy/x", Nodes, "", "n", "/x"),
        (
            "/api/v1/nodes/proxy/proxy/proxy",
            Nodes,
            "",
            "proxy",
            "/proxy",
        ),
    ];
    for (path, resource, namespace, id, rest) in cases {
        assert_eq!(
            parse(path),
            Ok((resource, namespace.into(), id.into(), rest)),
            "{path}"
        );
    }
}

#[test]
fn rejects_other_routes() {
    for path in [
        "/",
        "*",
        "",
        "/api/v1",
        "/api/v1/nodes/n",
        "/api/v1/nodes/n/proxyx/",
        "/api/v1/proxy/nodes/n/x",
        "/api/v1/namespaces/ns/pods/p/log",
        "/api/v1/namespaces/ns/secrets/s/proxy/",
        "/apis/apps/v1/namespaces/ns/pods/p/proxy",
        "//api/v1/nodes/n/proxy",
        "/API/v1/nodes/n/proxy",
    ] {
        assert_eq!(parse(path), Err(TargetError::NoRoute), "{path}");
    }
}

#[test]
fn rejects_encoded_slash_and_invalid_utf8_before_proxy() {
    for path in [
        "/api/v1/nodes/a%2fb/proxy/",
        "/api/v1/namespaces/a%2Fpods/pods/b/proxy",
    ] {
        assert_eq!(parse(path), Err(TargetError::EncodedSlash), "{path}");
    }
    assert_eq!(parse("/api/v1/nodes/%ff/proxy"), Err(TargetError::NotUtf8));
}

/// CONFORMANCE C12.
#[test]
fn rejects_namespaces_and_ids_over_their_maximum_length() {
    let path = |namespace: usize, id: usize| {
        format!(
            "/api/v1/namespaces/{}/pods/{}/proxy/",
            "n".repeat(namespace),
            "p".repeat(id)
        )
    };
    assert!(Target::parse(&path(63, 512)).is_ok());
    assert_eq!(
        Target::parse(&path(64, 1)),
        Err(TargetError::TooLong("namespace"))
    );
    assert_eq!(
        Target::parse(&path(1, 513)),
        Err(TargetError::TooLong("id"))
    );
}

#[test]
fn splits_ids_into_scheme_name_and_port() {
    use Scheme::{Http, Https};
    let cases = [
        ("web", Some((None, "web", ""))),
        ("web:80", Some((None, "web", "80"))),
        ("web:", Some((None, "web", ""))),
        ("https:x", Some((None, "https", "x"))),
        (":web:80", Some((None, "web", "80"))),
        ("http:web:", Some((Some(Http), "web", ""))),
        ("https:web:tls", Some((Some(Https), "web", "tls"))),
        (":80", None),
        ("a:b:c", None),
        ("HTTP:x:", None),
        ("http::80", None),
        ("::", None),
        ("http:a:80:b", None),
    ];
    for (id, expected) in cases {
        let parsed = Id::parse(id).map(|id| (id.scheme, id.name, id.port));
        assert_eq!(parsed, expected, "{id}");
    }
}

#[test]
fn shows_the_prefix_as_the_request_spells_it() {
    for (prefix, shown) in [
        ("/api/v1/nodes/n/proxy", "/api/v1/nodes/n/proxy"),
        (
            "/api/v1/nodes/https%3An%3a1/proxy",
            "/api/v1/nodes/https%3An%3a1/proxy",
        ),
        (
            "/api/v1/nodes/http:n:/pr%6fxy",
            "/api/v1/nodes/http:n:/pr%6fxy",
        ),
        (
            "/api/v1/nodes/%6e\"<;/proxy",
            "/api/v1/nodes/n%22%3C;/proxy",
        ),
    ] {
        let path = format!("{prefix}/x");
        assert_eq!(Target::parse(&path).unwrap().shown_prefix(), shown);
    }
}

#[test]
fn quotes_the_whole_invalid_id() {
    let target = Target::parse("/api/v1/namespaces/ns/services/a:b:c/proxy/").unwrap();
    assert_eq!(
        target.id().unwrap_err().to_string(),
        r#"invalid service request "a:b:c""#
    );
}

#[test]
fn rejects_names_that_objects_cannot_have() {
    let cases = [
        (
            "..",
            Some(r#"Name parameter invalid: "..": may not be '..'"#),
        ),
        (
            "http:.:80",
            Some(r#"Name parameter invalid: ".": may not be '.'"#),
        ),
        (
            "a%",
            Some(r#"Name parameter invalid: "a%": may not contain '%'"#),
        ),
        ("...", None),
    ];
    for (id, error) in cases {
        assert_eq!(
            Id::parse(id).unwrap().name_error().as_deref(),
            error,
            "{id}"
        );
    }
}

#[test]
fn sub_path_keeps_bytes_and_resolves_dot_segments() {
    let cases = [
        ("", "/"),
        ("/", "/"),
        ("//", "//"),
        ("//x", "//x"),
        ("/a/", "/a/"),
        ("/a%2Fb/c", "/a%2Fb/c"),
        ("/(a)!*'[b]", "/(a)!*'[b]"),
        ("/%2", "/%2"),
        ("/.hidden/..x/...", "/.hidden/..x/..."),
        ("/.", "/"),
        ("/..", "/"),
        ("/../../x", "/x"),
        ("/%2e%2E/x", "/x"),
        ("/.%2e/x", "/x"),
        ("/a/./b", "/a/b"),
        ("/a/b/..", "/a"),
        ("/a/b/.", "/a/b"),
        ("/a/..", "/"),
        ("/a/b/../", "/a/"),
        ("/a//../b", "/a/b"),
        ("/a/%2e%2e%2fb", "/a/%2e%2e%2fb"),
    ];
    for (rest, expected) in cases {
        let path = format!("/api/v1/nodes/n/proxy{rest}");
        assert_eq!(
            Target::parse(&path)
                .unwrap()
                .sub_path(SubPathDecoding::default()),
            expected,
            "{rest}"
        );
    }
}

#[test]
fn redirect_keeps_the_query() {
    let target = Target::parse("/api/v1/namespaces/ns/pods/http%3Ap%3A80/proxy").unwrap();
    let prefix = "/api/v1/namespaces/ns/pods/http:p:80/proxy/";
    assert_eq!(target.with_trailing_slash(None), prefix);
    assert_eq!(
        target.with_trailing_slash(Some("a=%20b")),
        format!("{prefix}?a=%20b")
    );
}

#[test]
fn paths_that_an_api_server_could_read_as_targets_are_named() {
    for (path, expected) in [
        ("/api/v1/namespaces/a/services/b/proxy/x", true),
        ("/api/v1/nodes/b/proxy", true),
        ("/api/v1/namespaces/a/pods/b%2Fproxy/x", true),
        ("/api/v1/namespaces/a%2Fpods/b/%70roxy/x", true),
        ("/api%2Fv1/namespaces/a/pods/b/proxy/", true),
        ("//api/v1/namespaces/a/pods/b/proxy/", true),
        ("/x/../api/v1/namespaces/a/pods/b/proxy/", true),
        ("/api/v1/namespaces/a/pods/b/%2E/proxy/", true),
        ("/api/v1/namespaces/a/pods/b", false),
        ("/api/v1/namespaces/a/configmaps/proxy", false),
        ("/api/v1/namespaces/proxy/pods/b", false),
        ("/api/v1/namespaces/a%2Fb/configmaps/c", false),
        ("/apis/apps/v1/namespaces/a/deployments/proxy", false),
        ("/version", false),
    ] {
        assert_eq!(Target::is_named_by(path), expected, "{path}");
    }
}
