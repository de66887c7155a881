//! `Host` (RFC 9112 section 3.2, RFC 9110 section 7.2, RFC 3986 section 3.2).

use anyhow::Result;

use super::case::{Case, pass, reject};
use super::runner::run;

#[tokio::test]
async fn host_is_strict() -> Result<()> {
    let mut cases = accepted();
    cases.extend(rejected());
    cases.extend(counts());
    run("host", cases).await
}

fn with(host: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET @P/x HTTP/1.1\r\nHost: ", host.as_ref(), b"\r\n@T\r\n"].concat()
}

fn accepted() -> Vec<Case> {
    [
        "h",
        "h.",
        "H.Example",
        "h:80",
        "h:0",
        "h:00080",
        "h:65535",
        "127.0.0.1",
        "127.0.0.1:6443",
        "1.2.3.4.5",
        "a_b",
        "a-b.c~d",
        "!$&'()*+,;=",
        "h%41",
        "[::1]",
        "[::]",
        "[::1]:443",
        "[1:2:3:4:5:6:7:8]",
        "[2001:DB8::1]",
        "[::ffff:192.0.2.1]",
        "[v1.a:b]",
    ]
    .into_iter()
    .map(|host| {
        pass(format!("Host {host}"), with(host), "GET /x")
            .host(host)
            .own(&["X-Forwarded-Proto: https"])
    })
    .collect()
}

fn rejected() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "h:65536",
        "h:99999999999999999999",
        "h:x",
        "h:80x",
        "h:-1",
        "h:+80",
        "h: 80",
        "h :80",
        "h:80:80",
        "h:0x50",
        "u@h",
        "u:p@h",
        "@h",
        "h@",
        "h/",
        "/h",
        "http://h",
        "h?x",
        "h#x",
        "h\\x",
        "h<",
        "h>",
        "h\"",
        "\"h\"",
        "h{",
        "h}",
        "h|",
        "h^",
        "h`",
        "a b",
        "a\tb",
        "h%",
        "h%4",
        "h%zz",
        "[::1",
        "::1",
        "::1]",
        "[::1]x",
        "[::1]:x",
        "[::1]:65536",
        "[]",
        "[g::1]",
        "[1.2.3.4]",
        "[12345::]",
        "[1:2:3]",
        "[1::2::3]",
        "[1:2:3:4:5:6:7:8:9]",
        "[::1.2.3]",
        "[::1.2.3.256]",
        "[v.a]",
        "[vg.a]",
        "[[::1]]",
        "a[::1]",
        "h]",
        "h\u{e9}",
    ]
    .into_iter()
    .map(|host| reject(format!("Host {host}"), with(host), 400))
    .collect();
    cases.push(reject("Host beyond UTF-8", with(b"h\xff"), 400));
    cases.push(reject("Host with NUL", with(b"h\0"), 400));
    cases.push(reject("Host with DEL", with(b"h\x7f"), 400));
    cases
}

fn counts() -> Vec<Case> {
    let mut cases = vec![
        pass("empty", "GET @P/x HTTP/1.1\r\nHost:\r\n@T\r\n", "GET /x").host(""),
        pass(
            "no space after the colon",
            "GET @P/x HTTP/1.1\r\nHost:a\r\n@T\r\n",
            "GET /x",
        )
        .host("a"),
        pass(
            "whitespace around",
            "GET @P/x HTTP/1.1\r\nhOST: \t a \t\r\n@T\r\n",
            "GET /x",
        )
        .host("a"),
        pass(
            "as the last field",
            "GET @P/x HTTP/1.1\r\n@THost: a\r\n\r\n",
            "GET /x",
        )
        .host("a"),
        pass(
            "named by Connection",
            "GET @P/x HTTP/1.1\r\n@AConnection: Host\r\n\r\n",
            "GET /x",
        ),
        pass(
            "X-Forwarded-Host of the client",
            "GET @P/x HTTP/1.1\r\n@AX-Forwarded-Host: evil\r\n\r\n",
            "GET /x",
        )
        .own(&["X-Forwarded-Host: h"]),
        pass(
            "HTTP/1.0 without Host",
            "GET @P/x HTTP/1.0\r\n@T\r\n",
            "GET /x",
        )
        .host("@E")
        .closes(),
        pass(
            "HTTP/1.0 with Host",
            "GET @P/x HTTP/1.0\r\nHost: a:1\r\n@T\r\n",
            "GET /x",
        )
        .host("a:1")
        .closes(),
        pass(
            "HTTP/1.0 with an absolute form",
            "GET http://a@P/x HTTP/1.0\r\n@T\r\n",
            "GET /x",
        )
        .host("a")
        .closes(),
    ];
    let rejected: [(&str, &[u8]); 11] = [
        ("missing", b"GET @P/x HTTP/1.1\r\n@T\r\n"),
        (
            "missing, but X-Forwarded-Host",
            b"GET @P/x HTTP/1.1\r\nX-Forwarded-Host: h\r\n@T\r\n",
        ),
        ("twice, equal", b"GET @P/x HTTP/1.1\r\n@H@A\r\n"),
        (
            "twice, different",
            b"GET @P/x HTTP/1.1\r\n@AHost: b\r\n\r\n",
        ),
        (
            "twice, different case",
            b"GET @P/x HTTP/1.1\r\n@AHOST: h\r\n\r\n",
        ),
        ("twice, one empty", b"GET @P/x HTTP/1.1\r\n@AHost:\r\n\r\n"),
        (
            "space before the colon",
            b"GET @P/x HTTP/1.1\r\nHost : h\r\n@T\r\n",
        ),
        (
            "folded",
            b"GET @P/x HTTP/1.1\r\nHost: h\r\n .example\r\n@T\r\n",
        ),
        (
            "with LF in the value",
            b"GET @P/x HTTP/1.1\r\nHost: h\nX: y\r\n@T\r\n",
        ),
        ("HTTP/1.0 with two", b"GET @P/x HTTP/1.0\r\n@H@A\r\n"),
        (
            "HTTP/1.0 with an invalid one",
            b"GET @P/x HTTP/1.0\r\nHost: a b\r\n@T\r\n",
        ),
    ];
    cases.extend(rejected.map(|(name, input)| reject(name, input, 400)));
    cases
}
