//! Request targets: forms, bytes and percent-escapes (RFC 9112 section 3.2, RFC 3986).

use anyhow::Result;

use super::case::{Case, pass, reject, status};
use super::runner::run;

/// Characters that RFC 3986 does not allow in a target, and that clients send nevertheless.
const TOLERATED: &str = "\"<>{}|^`\\[]";

#[tokio::test]
async fn targets_are_strict() -> Result<()> {
    let mut cases = origin_form();
    cases.extend(other_forms());
    cases.extend(bytes());
    cases.extend(escapes());
    run("target", cases).await
}

/// A GET with a target and `Host: h`.
fn to(target: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET ", target.as_ref(), b" HTTP/1.1\r\n@A\r\n"].concat()
}

fn origin_form() -> Vec<Case> {
    let mut cases = Vec::new();
    for (sent, received) in [
        ("/", "/"),
        ("/a//b", "/a//b"),
        ("//a", "//a"),
        ("/a/", "/a/"),
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/../../b", "/b"),
        ("/%2e%2e/b", "/b"),
        ("/a%2Fb/c", "/a%2Fb/c"),
        ("/a/b%2fc", "/a/b%2fc"),
        ("/a%2Fb", "/a/b"),
        ("/a%2fb?c%2Fd", "/a/b?c%2Fd"),
        ("/@a%2Fb", "/@a%2Fb"),
        ("/a%00b", "/a%00b"),
        ("/a%0d%0aX:%20y", "/a%0d%0aX:%20y"),
        ("/a;b=c,d", "/a;b=c,d"),
        ("/a:b@c!$&'()*+,;=-._~", "/a:b@c!$&'()*+,;=-._~"),
        ("/x?", "/x?"),
        ("/x??a?b", "/x??a?b"),
        ("/x?a=b&a=c;d=/e/../f", "/x?a=b&a=c;d=/e/../f"),
        ("/x?http://h/", "/x?http://h/"),
        ("/http://h/", "/http://h/"),
        ("/x?q=+%20+", "/x?q=+%20+"),
    ] {
        let input = to(format!("@P{sent}"));
        cases.push(pass(
            format!("path {sent}"),
            input,
            format!("GET {received}"),
        ));
    }
    cases.push(pass(
        "query without a path",
        "DELETE @P?a=b HTTP/1.1\r\n@A\r\n",
        "DELETE /?a=b",
    ));
    cases
}

fn other_forms() -> Vec<Case> {
    let mut cases = Vec::new();
    for (target, host) in [
        ("http://h@P/x", "h"),
        ("https://h@P/x", "h"),
        ("HTTP://h@P/x", "h"),
        ("hTTps://other.example:8443@P/x", "other.example:8443"),
        ("http://127.0.0.1:80@P/x", "127.0.0.1:80"),
        ("http://[::1]:8080@P/x", "[::1]:8080"),
        ("http://h:65535@P/x", "h:65535"),
    ] {
        let input = to(target);
        let name = format!("absolute form {}", target.replace("@P", "/P"));
        cases.push(pass(name, input, "GET /x").host(host));
    }
    cases.push(
        pass(
            "absolute form with a query",
            to("http://h@P/x?a=http://b"),
            "GET /x?a=http://b",
        )
        .host("h"),
    );
    for target in ["http://h", "http://h/", "http://h?x=y", "http://h/?x=y"] {
        cases.push(status(
            format!("absolute form {target}"),
            to(target),
            &[404],
        ));
    }
    for target in [
        "http://u@h@P/x",
        "http://u:p@h@P/x",
        "http://@h@P/x",
        "http://h:@h@P/x",
        "http://@P/x",
        "http:/h@P/x",
        "http:h@P/x",
        "http:@P/x",
        "http//h@P/x",
        "://h@P/x",
        "//",
        "ftp://h@P/x",
        "ws://h@P/x",
        "file://@P/x",
        "javascript:alert(1)",
        "http://h:65536@P/x",
        "http://h:99999999999@P/x",
        "http://h:x@P/x",
        "http://h:-1@P/x",
        "http://h:80:80@P/x",
        "http://[::1@P/x",
        "http://::1@P/x",
        "http://[::1]x@P/x",
        "http://[g]@P/x",
        "http://h\\@P/x",
        "http://h<@P/x",
        "http://h%zz@P/x",
        "http://h\"@P/x",
        "http://\u{e9}@P/x",
        "http://h#@P/x",
    ] {
        // `//` is an origin form: a path that names no target.
        let name = format!("absolute form {}", target.replace("@P", "/P"));
        cases.push(if target == "//" {
            status(name, to(target), &[404])
        } else {
            reject(name, to(target), 400)
        });
    }
    let rejected: [(&str, &[u8]); 12] = [
        (
            "absolute form without Host",
            b"GET http://h@P/x HTTP/1.1\r\n@T\r\n",
        ),
        (
            "absolute form with two Hosts",
            b"GET http://h@P/x HTTP/1.1\r\n@H@A\r\n",
        ),
        (
            "absolute form with an invalid Host",
            b"GET http://h@P/x HTTP/1.1\r\nHost: a b\r\n@T\r\n",
        ),
        ("relative path", b"GET api/v1 HTTP/1.1\r\n@A\r\n"),
        ("query alone", b"GET ?x HTTP/1.1\r\n@A\r\n"),
        ("authority form with GET", b"GET h:80 HTTP/1.1\r\n@A\r\n"),
        ("host alone with GET", b"GET h HTTP/1.1\r\n@A\r\n"),
        ("asterisk with GET", b"GET * HTTP/1.1\r\n@A\r\n"),
        (
            "asterisk with POST",
            b"POST * HTTP/1.1\r\n@AContent-Length: 0\r\n\r\n",
        ),
        ("asterisk with a path", b"OPTIONS */x HTTP/1.1\r\n@A\r\n"),
        ("asterisk with a query", b"OPTIONS *?x HTTP/1.1\r\n@A\r\n"),
        ("two asterisks", b"OPTIONS ** HTTP/1.1\r\n@A\r\n"),
    ];
    cases.extend(rejected.map(|(name, input)| reject(name, input, 400)));
    cases.push(status(
        "asterisk with OPTIONS",
        "OPTIONS * HTTP/1.1\r\n@A\r\n",
        &[404],
    ));
    cases.push(status(
        "CONNECT with an authority",
        "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n@T\r\n",
        &[407],
    ));
    let connect = [
        (
            "CONNECT without a port",
            "CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT with an empty port",
            "CONNECT h: HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT without a host",
            "CONNECT :80 HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT to IPv6 without brackets",
            "CONNECT 2001:db8::1:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT with userinfo",
            "CONNECT u:p@h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT with a port beyond 65535",
            "CONNECT h:65536 HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT with an absolute URL",
            "CONNECT http://h:80/ HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        (
            "CONNECT with a length",
            "CONNECT h:80 HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n",
        ),
        (
            "CONNECT with chunks",
            "CONNECT h:80 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ];
    cases.extend(connect.map(|(name, input)| reject(name, input.as_bytes(), 400)));
    cases.push(status(
        "CONNECT with a path",
        "CONNECT @P/x HTTP/1.1\r\n@A\r\n",
        &[400, 405],
    ));
    cases
}

fn bytes() -> Vec<Case> {
    let mut cases = Vec::new();
    for char in TOLERATED.chars() {
        let query = format!("/x?q={char}a{char}");
        let path = format!("/a{char}b");
        cases.push(pass(
            format!("query with {char}"),
            to(format!("@P{query}")),
            format!("GET {query}"),
        ));
        cases.push(pass(
            format!("path with {char}"),
            to(format!("@P{path}")),
            format!("GET {path}"),
        ));
    }
    let utf8 = "/caf\u{e9}/\u{65e5}\u{672c}?q=\u{1f600}";
    cases.push(pass(
        "UTF-8",
        to(format!("@P{utf8}")),
        format!("GET {utf8}"),
    ));
    let rejected: [(&str, &[u8]); 16] = [
        ("fragment", b"@P/x#y"),
        ("fragment after a query", b"@P/x?a#y"),
        ("fragment alone", b"@P/#"),
        ("space in the path", b"@P/a b"),
        ("space in the query", b"@P/x?a b"),
        ("tab in the path", b"@P/a\tb"),
        ("NUL in the path", b"@P/a\0b"),
        ("NUL in the query", b"@P/x?a\0b"),
        ("control character in the path", b"@P/a\x01b"),
        ("escape character in the query", b"@P/x?\x1b[31m"),
        ("DEL in the path", b"@P/a\x7fb"),
        ("DEL in the query", b"@P/x?a\x7fb"),
        ("byte that is not UTF-8 in the path", b"@P/a\xffb"),
        ("byte that is not UTF-8 in the query", b"@P/x?\xe9"),
        ("overlong UTF-8", b"@P/\xc0\xaf"),
        ("surrogate in UTF-8", b"@P/\xed\xa0\x80"),
    ];
    cases.extend(rejected.map(|(name, target)| reject(name, to(target), 400)));
    cases.push(reject("empty target", "GET  HTTP/1.1\r\n@A\r\n", 400));
    cases
}

fn escapes() -> Vec<Case> {
    let mut cases = Vec::new();
    for escape in [
        "%", "%2", "%zz", "%2g", "%g2", "%u002e", "%%41", "%+1", "% 1", "%0x41", "%-1",
    ] {
        let input = to(format!("@P/a{escape}"));
        cases.push(reject(format!("path with {escape}"), input, 400));
        if !escape.contains(' ') {
            let query = format!("/x?q={escape}");
            cases.push(pass(
                format!("query with {escape}"),
                to(format!("@P{query}")),
                format!("GET {query}"),
            ));
        }
    }
    cases.push(reject("bad escape before a query", to("@P/a%?%41"), 400));
    cases.push(reject(
        "bad escape in the name",
        to("/api/v1/namespaces/default/pods/p%zz/proxy/x"),
        400,
    ));
    cases.push(reject(
        "bad escape in an absolute form",
        to("http://h@P/%zz"),
        400,
    ));
    cases
}
