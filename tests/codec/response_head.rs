//! Heads of responses: tolerated and rejected forms (RFC 9112 sections 4 and 5).

use anyhow::Result;

use super::case::{Case, answer, bad_gateway, failure};
use super::runner::run;

#[tokio::test]
async fn response_heads_are_repaired_or_rejected() -> Result<()> {
    let mut cases = status_lines();
    cases.extend(repaired());
    cases.extend(dropped());
    cases.extend(rejected());
    cases.extend(interim());
    run("response head", cases).await
}

/// A response of two bytes with further field lines.
fn ok(lines: impl AsRef<[u8]>) -> Vec<u8> {
    [
        b"HTTP/1.1 200 OK\r\n",
        lines.as_ref(),
        b"Content-Length: 2\r\n\r\nok",
    ]
    .concat()
}

fn status_lines() -> Vec<Case> {
    let with = |line: &str| format!("{line}\r\nContent-Length: 2\r\n\r\nok");
    let mut cases = Vec::new();
    for (line, status, reason) in [
        ("HTTP/1.1 200 OK", 200, "OK"),
        ("HTTP/1.1 200 ", 200, "OK"),
        ("HTTP/1.1 200 Fine  by me", 200, "Fine  by me"),
        ("HTTP/1.1 404 Nope", 404, "Nope"),
        ("HTTP/1.1 599 Odd", 599, "Odd"),
        ("HTTP/1.1 999 Odd", 999, "Odd"),
    ] {
        cases.push(
            answer(format!("status line {line:?}"), with(line), status)
                .reason(reason)
                .body("ok")
                .reuse(true),
        );
    }
    cases.push(answer("no reason and no space", with("HTTP/1.1 200"), 200).body("ok"));
    cases.push(
        answer(
            "reason in Latin-1",
            b"HTTP/1.1 200 caf\xe9\r\nContent-Length: 2\r\n\r\nok",
            200,
        )
        .body("ok"),
    );
    cases.push(
        answer("HTTP/1.0 with a length", with("HTTP/1.0 200 OK"), 200)
            .body("ok")
            .reuse(false),
    );
    cases.push(
        answer(
            "byte order of a plain response",
            ok("X-B: 1\r\nx-a: 2\r\nX-b: 3\r\n"),
            200,
        )
        .fields(&["X-B: 1", "x-a: 2", "X-b: 3"])
        .own(&["Content-Length: 2"])
        .body("ok"),
    );
    for line in [
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1 abc OK",
        "HTTP/1.1 -20 OK",
        "HTTP/1.1 +200 OK",
        "HTTP/1.1 099 Odd",
        "HTTP/1.1 000 Odd",
    ] {
        let name = format!("status line {line:?}");
        cases.push(bad_gateway(name, with(line), "status"));
    }
    for line in [
        "HTTP/2.0 200 OK",
        "HTTP/2 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/3.0 200 OK",
        "HTTP/1.x 200 OK",
        "HTTP/11 200 OK",
    ] {
        let name = format!("version of {line:?}");
        cases.push(bad_gateway(name, with(line), "version"));
    }
    for line in [
        "HTTP/1.1",
        "HTTP/1.1 ",
        "http/1.1 200 OK",
        "ICY 200 OK",
        "HTTP 200 OK",
        " HTTP/1.1 200 OK",
        "200 OK",
    ] {
        let name = format!("malformed status line {line:?}");
        cases.push(bad_gateway(name, with(line), ""));
    }
    for (name, input) in [
        ("text without a head", "hello\r\n\r\n"),
        ("empty lines", "\r\n\r\n\r\n\r\n"),
        ("a page without a head", "<html></html>\n\n"),
        ("TLS alert", "\u{15}\u{3}\u{1}\u{0}\u{2}\u{2}\u{50}"),
    ] {
        cases.push(bad_gateway(name, input, "").endpoint_closes());
    }
    cases
}

fn repaired() -> Vec<Case> {
    let repaired: [(&str, &[u8], &[u8]); 13] = [
        ("space before the colon", b"X-A : 1\r\n", b"X-A: 1"),
        (
            "spaces and tabs before the colon",
            b"X-A \t : 1\r\n",
            b"X-A: 1",
        ),
        ("no space after the colon", b"X-A:1\r\n", b"X-A: 1"),
        ("whitespace around a value", b"X-A: \t1\t \r\n", b"X-A: 1"),
        ("empty value", b"X-A:\r\n", b"X-A: "),
        ("folded by a space", b"X-A: 1\r\n 2\r\n", b"X-A: 1 2"),
        (
            "folded by tabs and spaces",
            b"X-A: 1 \r\n\t  \t2\r\n",
            b"X-A: 1 2",
        ),
        ("folded twice", b"X-A: 1\r\n 2\r\n 3\r\n", b"X-A: 1 2 3"),
        ("folded after an empty value", b"X-A:\r\n 1\r\n", b"X-A: 1"),
        (
            "folded line with a colon",
            b"X-A: 1\r\n X-B: 2\r\n",
            b"X-A: 1 X-B: 2",
        ),
        ("LF at the end of a field", b"X-A: 1\n", b"X-A: 1"),
        ("Latin-1 in a value", b"X-A: caf\xe9\r\n", b"X-A: caf\xe9"),
        ("tab in a value", b"X-A: 1\t2\r\n", b"X-A: 1\t2"),
    ];
    let mut cases: Vec<Case> = repaired
        .into_iter()
        .map(|(name, lines, field)| {
            answer(name, ok([lines, b"X-Z: z\r\n"].concat()), 200)
                .fields(&[field, b"X-Z: z"])
                .body("ok")
                .reuse(true)
        })
        .collect();
    cases.push(
        answer(
            "all lines end with LF",
            "HTTP/1.1 200 OK\nX-A: 1\nContent-Length: 2\n\nok",
            200,
        )
        .fields(&["X-A: 1"])
        .body("ok"),
    );
    cases.push(
        answer(
            "the last line ends with LF",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok",
            200,
        )
        .body("ok"),
    );
    cases.push(
        answer("folded with LF", ok("X-A: 1\n 2\n"), 200)
            .fields(&["X-A: 1 2"])
            .body("ok"),
    );
    cases.push(
        answer(
            "space before the colon of a length",
            "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
            200,
        )
        .own(&["Content-Length: 2"])
        .body("ok"),
    );
    cases.push(
        answer(
            "space before the colon of a coding",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
        )
        .body("ok"),
    );
    cases
}

fn dropped() -> Vec<Case> {
    let dropped: [(&str, &[u8]); 13] = [
        ("space in a name", b"X A: 1\r\n"),
        ("tab in a name", b"X\tA: 1\r\n"),
        ("parenthesis in a name", b"X(A): 1\r\n"),
        ("slash in a name", b"X/A: 1\r\n"),
        ("at sign in a name", b"X@A: 1\r\n"),
        ("quote in a name", b"\"X\": 1\r\n"),
        ("brackets in a name", b"[X]: 1\r\n"),
        ("equals sign in a name", b"X=A: 1\r\n"),
        ("UTF-8 in a name", b"X\xc3\xa9: 1\r\n"),
        ("invalid name and a folded line", b"X A: 1\r\n X-B: 2\r\n"),
        ("CORS grant", b"Access-Control-Allow-Origin: *\r\n"),
        (
            "Keep-Alive",
            b"Keep-Alive: timeout=5\r\nConnection: keep-alive\r\n",
        ),
        (
            "field named by Connection",
            b"Connection: X-Hop\r\nX-Hop: 1\r\n",
        ),
    ];
    dropped
        .into_iter()
        .map(|(name, lines)| {
            answer(
                name,
                ok([b"X-Y: y\r\n", lines, b"X-Z: z\r\n"].concat()),
                200,
            )
            .fields(&["X-Y: y", "X-Z: z"])
            .body("ok")
            .reuse(true)
        })
        .collect()
}

fn rejected() -> Vec<Case> {
    let many: String = (0..1100).map(|n| format!("X-{n}: 1\r\n")).collect();
    let value = "v".repeat(100_000);
    let large: String = (0..8).map(|n| format!("X-{n}: {value}\r\n")).collect();
    let large_listed: Vec<_> = (0..8).map(|n| format!("X-{n}: {value}")).collect();
    let within: String = (0..990).map(|n| format!("X-{n}: 1\r\n")).collect();
    let within_listed: Vec<_> = (0..990).map(|n| format!("X-{n}: 1")).collect();
    vec![
        bad_gateway("NUL in a value", ok(b"X-Odd: a\0b\r\n"), "x-odd"),
        bad_gateway(
            "control character in a value",
            ok(b"X-Odd: a\x01b\r\n"),
            "x-odd",
        ),
        // It may have been meant to frame the body.
        bad_gateway(
            "space in a length's name",
            ok(b"Content Length: 9\r\n"),
            "content length",
        ),
        bad_gateway("bare CR in a value", ok(b"X-Odd: a\rb\r\n"), "x-odd"),
        bad_gateway("1,100 fields", ok(many), "1000 header fields"),
        bad_gateway(
            "head above 1 MiB",
            ok(format!("X: {}\r\n", "v".repeat(1 << 20))),
            "",
        ),
        bad_gateway(
            "head without end",
            format!("HTTP/1.1 200 OK\r\n{}", "X: v\r\n".repeat(200_000)),
            "",
        ),
        answer("head of 800 KB", ok(large), 200)
            .fields(&large_listed)
            .body("ok"),
        answer("990 fields", ok(within), 200)
            .fields(&within_listed)
            .body("ok"),
        bad_gateway("end within the status line", "HTTP/1.1 2", "").endpoint_closes(),
        bad_gateway("end within a field", "HTTP/1.1 200 OK\r\nX-A: 1", "").endpoint_closes(),
        bad_gateway(
            "end before the empty line",
            "HTTP/1.1 200 OK\r\nX-A: 1\r\n",
            "",
        )
        .endpoint_closes(),
    ]
}

fn interim() -> Vec<Case> {
    let then = |interim: &str| [interim.as_bytes(), &ok("")].concat();
    let old = "GET @P/x HTTP/1.0\r\n@A\r\n";
    vec![
        answer(
            "103",
            then("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
            200,
        )
        .interim(&[103])
        .body("ok")
        .reuse(true),
        answer(
            "two interim responses",
            then("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"),
            200,
        )
        .interim(&[102, 103])
        .body("ok"),
        answer("199", then("HTTP/1.1 199 Odd\r\n\r\n"), 200)
            .interim(&[199])
            .body("ok"),
        answer(
            "interim response with LF",
            then("HTTP/1.1 103 Early Hints\nLink: </a>\n\n"),
            200,
        )
        .interim(&[103])
        .body("ok"),
        answer(
            "interim response without a reason",
            then("HTTP/1.1 103\r\n\r\n"),
            200,
        )
        .interim(&[103])
        .body("ok"),
        answer(
            "interim response with a length",
            then("HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n"),
            200,
        )
        .interim(&[103])
        .body("ok"),
        answer(
            "interim response to HTTP/1.0",
            then("HTTP/1.1 103 Early Hints\r\n\r\n"),
            200,
        )
        .to(old)
        .interim(&[])
        .body("ok"),
        failure(
            "101 that was not requested",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
            500,
        ),
        failure(
            "101 without a protocol",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            500,
        ),
        bad_gateway(
            "end after an interim response",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
            "",
        )
        .endpoint_closes(),
    ]
}
