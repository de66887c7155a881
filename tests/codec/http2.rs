//! Requests over HTTP/2 that must be rejected or lead to well-formed requests of HTTP/1.1 (RFC 9113
//! sections 8.1 to 8.3).

use anyhow::Result;

use super::case::{Case, cut, pass, reject, reject_any};
use super::streams::{Stream, exact, list, request, run, with};

#[tokio::test]
async fn http2_requests_are_strict() -> Result<()> {
    run("http2", streams()).await
}

fn streams() -> Vec<Stream> {
    let mut streams = pseudo_fields();
    streams.extend(authorities());
    streams.extend(paths());
    streams.extend(fields());
    streams.extend(bodies());
    streams
}

fn refused(name: impl Into<String>) -> Case {
    reject(name, "", 400)
}

fn pseudo_fields() -> Vec<Stream> {
    let get = || request("GET", "https", "h", "@P/x");
    let without = |name: &str| {
        let mut fields = get().to_vec();
        fields.retain(|(it, _)| *it != name);
        exact(refused(format!("without {name}")), &fields)
    };
    let twice = |name: &str| {
        let mut fields = get().to_vec();
        fields.extend(get().into_iter().filter(|(it, _)| *it == name));
        exact(refused(format!("{name} twice")), &fields)
    };
    let mut streams = vec![
        exact(pass("plain", "", "GET /x"), &get()),
        without(":method"),
        without(":scheme"),
        without(":path"),
        twice(":method"),
        twice(":scheme"),
        twice(":path"),
        twice(":authority"),
        exact(
            refused("neither :authority nor host"),
            &[(":method", "GET"), (":scheme", "https"), (":path", "@P/x")],
        ),
        exact(
            pass("host instead of :authority", "", "GET /x").host("a:1"),
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "@P/x"),
                ("host", "a:1"),
            ],
        ),
        exact(
            refused("invalid host instead of :authority"),
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "@P/x"),
                ("host", "u@h"),
            ],
        ),
        exact(
            refused("two hosts instead of :authority"),
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "@P/x"),
                ("host", "h"),
                ("host", "h"),
            ],
        ),
        with(refused("unknown pseudo-header"), &[(":x", b"1")]),
        with(refused(":status in a request"), &[(":status", b"200")]),
        exact(
            refused("pseudo-header after a field"),
            &[
                (":method", "GET"),
                (":scheme", "https"),
                ("x-a", "1"),
                (":authority", "h"),
                (":path", "@P/x"),
            ],
        ),
        with(
            refused(":protocol without CONNECT"),
            &[(":protocol", b"websocket")],
        ),
    ];
    for method in ["", "G T", "G\tT", "G:T", "G\r\nT", "G(T", "G\u{e9}T"] {
        streams.push(exact(
            refused(format!(":method {method:?}")),
            &request(method, "https", "h", "@P/x"),
        ));
    }
    for scheme in [
        "",
        " ",
        "ht tp",
        "https:",
        "https://h",
        "1http",
        "h\u{e9}",
        "http\r\n",
        "-",
    ] {
        streams.push(exact(
            refused(format!(":scheme {scheme:?}")),
            &request("GET", scheme, "h", "@P/x"),
        ));
    }
    streams
}

fn authorities() -> Vec<Stream> {
    let mut streams = Vec::new();
    for host in ["h", "h:80", "[::1]:443", "A.b", "127.0.0.1"] {
        let case = pass(format!(":authority {host:?}"), "", "GET /x").host(host);
        streams.push(exact(case, &request("GET", "https", host, "@P/x")));
    }
    for host in [
        "",
        "u@h",
        "u:p@h",
        "h:x",
        "h:65536",
        "h:-1",
        "h:80:80",
        "h/",
        "h?x",
        "h#x",
        "h\\",
        "a b",
        "a\tb",
        "h<",
        "h\"",
        "h{",
        "h|",
        "h^",
        "h`",
        "h%",
        "h%zz",
        "[::1",
        "::1",
        "[::1]x",
        "[g]",
        "http://h",
        "h\r\nx: y",
        "h\u{0}",
        "h\u{e9}",
        " h",
        "h ",
    ] {
        streams.push(exact(
            refused(format!(":authority {host:?}")),
            &request("GET", "https", host, "@P/x"),
        ));
    }
    streams
}

fn paths() -> Vec<Stream> {
    let mut streams = Vec::new();
    for (path, target) in [
        ("@P/a//b?", "/a//b?"),
        ("@P/x?q={}|^`\\", "/x?q={}|^`\\"),
        ("@P/x?q=%zz&%", "/x?q=%zz&%"),
        ("@P/caf\u{e9}", "/caf\u{e9}"),
        ("@P/a%2fb/c", "/a%2fb/c"),
        ("@P/a%2fb", "/a/b"),
    ] {
        let case = pass(format!(":path {path:?}"), "", format!("GET {target}"));
        streams.push(exact(case, &request("GET", "https", "h", path)));
    }
    for path in [
        "",
        "*",
        "x",
        "api/v1",
        "?x",
        "http://h@P/x",
        "@P/a b",
        "@P/a\tb",
        "@P/%zz",
        "@P/%",
        "@P/%2",
        "@P/a\u{0}b",
        "@P/a\r\nb",
        "@P/x HTTP/1.1\r\nx: y",
        "@P/a\u{7f}b",
    ] {
        let name = format!(":path {path:?}");
        // h2 gives these two a path, which names no target.
        let case = if matches!(path, "*" | "?x") {
            reject_any(name, "", &[400, 404])
        } else {
            refused(name)
        };
        streams.push(exact(case, &request("GET", "https", "h", path)));
    }
    streams
}

fn fields() -> Vec<Stream> {
    let mut streams = vec![
        with(
            pass("fields", "", "GET /x").fields(&["x-b: 1", "x-a: 2", "x-a: 3"]),
            &[("x-b", b"1"), ("x-a", b"2"), ("x-a", b"3")],
        ),
        with(
            pass("te: trailers", "", "GET /x").own(&["TE: trailers"]),
            &[("te", b"trailers")],
        ),
        with(
            pass("cookies are joined", "", "GET /x").fields(&["cookie: a=1; b=2"]),
            &[("cookie", b"a=1"), ("cookie", b"b=2")],
        ),
        with(pass("equal host", "", "GET /x"), &[("host", b"h")]),
        with(
            pass("length of 0", "", "GET /x"),
            &[("content-length", b"0")],
        ),
        with(
            pass("byte FF in a value", "", "GET /x").fields(&[b"x-a: \xff"]),
            &[("x-a", b"\xff")],
        ),
        with(
            pass("identity", "", "GET /x"),
            &[
                ("x-remote-user", b"admin"),
                ("x_remote_group", b"system:masters"),
            ],
        ),
    ];
    for (name, value) in [
        ("connection", "close"),
        ("connection", "x-a"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "1"),
        ("x a", "1"),
        ("x:a", "1"),
        ("x\r\na", "1"),
        ("x\u{0}", "1"),
        ("x(", "1"),
        ("x\u{e9}", "1"),
        ("", "1"),
        ("x-a", "1\r\nx-b: 2"),
        ("x-a", "1\n2"),
        ("x-a", "1\r2"),
        ("x-a", "1\u{0}2"),
        ("content-length", "x"),
        ("content-length", "+0"),
        ("content-length", ""),
        ("content-length", "0, 0"),
        ("content-length", "5"),
    ] {
        streams.push(with(
            refused(format!("field {name:?} with {value:?}")),
            &[(name, value.as_bytes())],
        ));
    }
    streams.push(with(
        refused("two equal lengths"),
        &[("content-length", b"0"), ("content-length", b"0")],
    ));
    streams.push(with(
        refused("two different lengths"),
        &[("content-length", b"0"), ("content-length", b"1")],
    ));
    streams
}

fn bodies() -> Vec<Stream> {
    let post = |case: Case, fields: &[(&str, &[u8])], data, trailers: &[(&str, &[u8])]| {
        let mut stream = exact(case, &request("POST", "https", "h", "@P/x"));
        stream.fields.extend(list(fields));
        stream.data = Some(data);
        stream.trailers = (!trailers.is_empty()).then(|| list(trailers));
        stream
    };
    let passes = |name: &str| pass(name, "", "POST /x").body("hello");
    let mut streams = vec![
        post(passes("body"), &[], "hello", &[]),
        post(
            passes("body with a length"),
            &[("content-length", b"5")],
            "hello",
            &[],
        ),
        post(
            cut("body shorter than its length", ""),
            &[("content-length", b"6")],
            "hello",
            &[],
        ),
        post(
            cut("body longer than its length", ""),
            &[("content-length", b"4")],
            "hello",
            &[],
        ),
        post(
            passes("trailers").trailers(&["x-sum: 7", "x-b: 8"]),
            &[],
            "hello",
            &[("x-sum", b"7"), ("x-b", b"8")],
        ),
    ];
    for name in [
        "content-length",
        "host",
        "authorization",
        "x-remote-user",
        "x-remote-group",
        "impersonate-user",
        "x-forwarded-for",
        "x-forwarded-host",
        "trailer",
        "proxy-authorization",
        "x_remote_user",
    ] {
        streams.push(post(
            passes(&format!("{name} in trailers")).trailers(&["x-a: 1", "x-b: 2"]),
            &[],
            "hello",
            &[("x-a", b"1"), (name, b"5"), ("x-b", b"2")],
        ));
    }
    // h2 drops pseudo-header fields of trailers.
    for (name, value) in [
        (":path", "x"),
        (":method", "x"),
        (":authority", "x"),
        (":scheme", "x"),
        (":status", "200"),
    ] {
        streams.push(post(
            passes(&format!("{name} in trailers")),
            &[],
            "hello",
            &[(name, value.as_bytes())],
        ));
    }
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("X-Upper", "1"),
        ("x a", "1"),
        ("x-a", "1\r\nx-b: 2"),
    ] {
        streams.push(post(
            cut(format!("{name:?} with {value:?} in trailers"), ""),
            &[],
            "hello",
            &[(name, value.as_bytes())],
        ));
    }
    streams
}
