//! Pipelines and offers of upgrades (RFC 9112 section 9.3, RFC 9110 section 7.8).

use anyhow::Result;

use super::case::{Case, get, pass, post};
use super::runner::run;

#[tokio::test]
async fn requests_of_a_connection_stay_apart() -> Result<()> {
    let mut cases = pipelines();
    cases.extend(upgrades());
    run("exchange", cases).await
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn pipelines() -> Vec<Case> {
    let other = b"GET @P/y HTTP/1.1\r\n@A\r\n".to_vec();
    let mut many = pass("20 requests", get("").repeat(20), "GET /x");
    for _ in 1..20 {
        many = many.and("GET /x");
    }
    vec![
        pass("two requests", joined(&[get(""), other.clone()]), "GET /x").and("GET /y"),
        pass(
            "two requests, byte by byte",
            joined(&[get(""), other.clone()]),
            "GET /x",
        )
        .and("GET /y")
        .dripped(),
        many,
        pass(
            "bodies of a pipeline",
            joined(&[
                post("Content-Length: 2\r\n", "ab"),
                other.clone(),
                post("Transfer-Encoding: chunked\r\n", "2\r\ncd\r\n0\r\n\r\n"),
                other.clone(),
            ]),
            "POST /x",
        )
        .body("ab")
        .and("GET /y")
        .and("POST /x")
        .body("cd")
        .and("GET /y"),
        pass(
            "trailers in a pipeline",
            joined(&[
                post("Transfer-Encoding: chunked\r\n", "0\r\nX-Sum: 1\r\n\r\n"),
                other.clone(),
            ]),
            "POST /x",
        )
        .trailers(&["X-Sum: 1"])
        .and("GET /y"),
        pass(
            "a request after Connection: close",
            joined(&[get("Connection: close\r\n"), other.clone()]),
            "GET /x",
        )
        .closes(),
        pass(
            "a request after Connection: Close, x",
            joined(&[get("Connection: x, Close\r\n"), other.clone()]),
            "GET /x",
        )
        .closes(),
        pass(
            "a request after HTTP/1.0",
            joined(&[b"GET @P/x HTTP/1.0\r\n@A\r\n".to_vec(), other.clone()]),
            "GET /x",
        )
        .closes(),
        pass(
            "an empty line between",
            joined(&[get(""), b"\r\n".to_vec(), other.clone()]),
            "GET /x",
        )
        .and("GET /y"),
        pass(
            "an empty line after a body",
            joined(&[post("Content-Length: 2\r\n", "ab\r\n"), other.clone()]),
            "POST /x",
        )
        .body("ab")
        .and("GET /y"),
        pass(
            "two empty lines between",
            joined(&[get(""), b"\r\n\r\n".to_vec(), other.clone()]),
            "GET /x",
        )
        .then_rejects(400),
        pass(
            "a malformed second request",
            joined(&[get(""), get("X : 1\r\n")]),
            "GET /x",
        )
        .then_rejects(400),
        pass(
            "an ambiguous second request",
            joined(&[
                get(""),
                post(
                    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                    "0\r\n\r\n",
                ),
            ]),
            "GET /x",
        )
        .then_rejects(400),
        pass(
            "a second request without a host",
            joined(&[get(""), b"GET @P/y HTTP/1.1\r\n@T\r\n".to_vec()]),
            "GET /x",
        )
        .then_rejects(400),
        pass(
            "garbage after a request",
            joined(&[get(""), b"\x16\x03\x01\r\n\r\n".to_vec()]),
            "GET /x",
        )
        .then_rejects(400),
        pass(
            "a body longer than its length",
            post("Content-Length: 5\r\n", "helloGET @P/y HTTP/1.1\r\n@A\r\n"),
            "POST /x",
        )
        .body("hello")
        .and("GET /y"),
        pass(
            "HEAD in a pipeline",
            joined(&[b"HEAD @P/x HTTP/1.1\r\n@A\r\n".to_vec(), other]),
            "HEAD /x",
        )
        .and("GET /y"),
    ]
}

fn upgrades() -> Vec<Case> {
    let mut cases = Vec::new();
    for offer in [
        "h2c",
        "H2C",
        "h2",
        "HTTP/2.0",
        "HTTP/1.1",
        "TLS/1.0",
        "h2c, HTTP/2.0",
        "h2c,h2",
        "",
    ] {
        let input = get(format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\nHTTP2-Settings: AAMAAABk\r\n"
        ));
        cases.push(
            pass(format!("offer of {offer:?}"), input, "GET /x").absent(&[
                "upgrade",
                "connection",
                "http2-settings",
            ]),
        );
    }
    for (lines, left) in [
        ("Upgrade: odd/9\r\n", "Upgrade: odd/9"),
        ("Upgrade: h2c, odd/9\r\n", "Upgrade: odd/9"),
        ("Upgrade: odd/9\r\nUpgrade: h2c\r\n", "Upgrade: odd/9"),
        ("Upgrade: h2c\r\nUpgrade: odd/9\r\n", "Upgrade: odd/9"),
        (
            "Upgrade: HTTP/2.0, TLS/1.3, odd/9, h2\r\n",
            "Upgrade: odd/9",
        ),
        ("Upgrade:h2c,,odd/9,\r\n", "Upgrade: odd/9"),
    ] {
        let input = get(format!("Connection: Upgrade\r\n{lines}"));
        cases.push(
            pass(format!("offer {lines:?}"), input, "GET /x")
                .own(&[left, "Connection: Upgrade"])
                .absent(&["http2-settings"]),
        );
    }
    cases.push(
        pass(
            "offer of h2c with a body",
            post(
                "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n",
                "hello",
            ),
            "POST /x",
        )
        .body("hello")
        .absent(&["upgrade", "connection"]),
    );
    cases.push(
        pass(
            "offer of h2c before a pipelined request",
            joined(&[get("Connection: Upgrade\r\nUpgrade: h2c\r\n"), get("")]),
            "GET /x",
        )
        .and("GET /x"),
    );
    cases
}
