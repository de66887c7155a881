//! Bodies of responses: lengths, chunks, the end of the connection, and surplus bytes (RFC 9112
//! section 6.3).

use anyhow::Result;

use super::case::{Case, answer, bad_gateway};
use super::runner::run;

const HEAD_REQUEST: &str = "HEAD @P/x HTTP/1.1\r\n@A\r\n";
const TRAILERS_REQUEST: &str = "GET @P/x HTTP/1.1\r\n@ATE: trailers\r\n\r\n";
const OLD_REQUEST: &str = "GET @P/x HTTP/1.0\r\n@A\r\n";

#[tokio::test]
async fn response_bodies_are_complete_or_cut() -> Result<()> {
    let mut cases = lengths();
    cases.extend(codings());
    cases.extend(chunks());
    cases.extend(closed());
    cases.extend(without_body());
    cases.extend(surplus());
    run("response framing", cases).await
}

fn with(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for lines in [
        "Content-Length: 2\r\n",
        "content-length:2\r\n",
        "Content-Length: \t2 \r\n",
        "Content-Length: 002\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nX-A: 1\r\ncontent-length: 2\r\n",
        "Content-Length: 2, 2\r\n",
        "Content-Length: 2,2 ,2\r\n",
        "Content-Length: 2, 2\r\nContent-Length: 2\r\n",
    ] {
        cases.push(
            answer(format!("length {lines:?}"), with(lines, "ok"), 200)
                .body("ok")
                .reuse(true),
        );
    }
    for lines in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nContent-Length: 2\r\n",
        "Content-Length: 2, 3\r\n",
        "Content-Length: 2\r\nContent-Length:\r\n",
        "Content-Length:\r\n",
        "Content-Length: ,\r\n",
        "Content-Length: 2;\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: -2\r\n",
        "Content-Length: 0x2\r\n",
        "Content-Length: 2 2\r\n",
        "Content-Length: two\r\n",
        "Content-Length: 2.0\r\n",
        "Content-Length: 2\r\n 2\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 99999999999999999999999\r\n",
    ] {
        cases.push(bad_gateway(
            format!("length {lines:?}"),
            with(lines, "ok"),
            "content-length",
        ));
    }
    cases.push(
        answer(
            "fewer bytes than the length",
            with("Content-Length: 10\r\n", "ok"),
            200,
        )
        .body("ok")
        .endpoint_closes()
        .cut(),
    );
    cases.push(
        answer(
            "no byte of the length",
            with("Content-Length: 10\r\n", ""),
            200,
        )
        .endpoint_closes()
        .cut(),
    );
    cases.push(
        answer("length 0", with("Content-Length: 0\r\n", ""), 200)
            .own(&["Content-Length: 0"])
            .reuse(true),
    );
    cases.push(
        answer(
            "length and Connection: close",
            with("Content-Length: 2\r\nConnection: close\r\n", "ok"),
            200,
        )
        .body("ok")
        .endpoint_closes()
        .reuse(false),
    );
    cases
}

fn codings() -> Vec<Case> {
    let mut cases = Vec::new();
    let body = "2\r\nok\r\n0\r\n\r\n";
    for lines in [
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:CHUNKED\r\n",
        "Transfer-Encoding: \tchunked \r\n",
    ] {
        cases.push(
            answer(format!("coding {lines:?}"), with(lines, body), 200)
                .body("ok")
                .absent(&["content-length"])
                .reuse(true),
        );
    }
    for lines in [
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Content-Length: 12\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: Chunked\r\n",
    ] {
        cases.push(
            answer(format!("both {lines:?}"), with(lines, body), 200)
                .body("ok")
                .absent(&["content-length"]),
        );
    }
    for lines in [
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\nContent-Length: 2\r\n",
    ] {
        cases.push(bad_gateway(
            format!("coding {lines:?}"),
            with(lines, body),
            "transfer-encoding",
        ));
    }
    cases
}

fn chunks() -> Vec<Case> {
    let chunked = |body: &str| with("Transfer-Encoding: chunked\r\n", body);
    let mut cases = vec![
        answer("extensions", chunked("2;a=b;c=\"d\"\r\nok\r\n0;e\r\n\r\n"), 200).body("ok"),
        answer("upper-case size", chunked("A\r\n0123456789\r\n0\r\n\r\n"), 200).body("0123456789"),
        answer("leading zeros of a size", chunked("0002\r\nok\r\n000\r\n\r\n"), 200).body("ok"),
        answer("trailers", chunked("2\r\nok\r\n0\r\nX-Sum: 7\r\nx-b: 8\r\n\r\n"), 200)
            .body("ok")
            .trailers(&["X-Sum: 7", "X-B: 8"])
            .to(TRAILERS_REQUEST)
            .reuse(true),
        answer(
            "announced trailers",
            with("Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"),
            200,
        )
        .body("ok")
        .trailers(&["X-Sum: 7"])
        .to(TRAILERS_REQUEST),
        answer(
            "framing in trailers",
            chunked("2\r\nok\r\n0\r\nContent-Length: 9\r\nX-Sum: 7\r\nTransfer-Encoding: gzip\r\nConnection: close\r\n\r\n"),
            200,
        )
        .body("ok")
        .trailers(&["X-Sum: 7"])
        .to(TRAILERS_REQUEST),
        answer("chunked to HTTP/1.0", chunked("2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"), 200)
            .to(OLD_REQUEST)
            .body("ok")
            .absent(&["transfer-encoding"]),
    ];
    for (name, body) in [
        ("end within the data", "5\r\nhe"),
        ("end after a chunk", "2\r\nok\r\n"),
        ("end after the last size", "2\r\nok\r\n0\r\n"),
        ("end within the trailers", "2\r\nok\r\n0\r\nX-Sum: 7\r\n"),
        ("size that is not a number", "2\r\nok\r\nxyz\r\n"),
        ("empty size", "2\r\nok\r\n\r\n0\r\n\r\n"),
        ("negative size", "2\r\nok\r\n-1\r\n"),
        (
            "size of 17 digits",
            "2\r\nok\r\n00000000000000002\r\nok\r\n0\r\n\r\n",
        ),
        ("size above 64 bits", "2\r\nok\r\n10000000000000000\r\nok"),
        ("data longer than the size", "2\r\nokX\r\n0\r\n\r\n"),
        ("no CRLF after the data", "2\r\nok0\r\n\r\n"),
        ("trailer with NUL", "2\r\nok\r\n0\r\nX-Sum: \0\r\n\r\n"),
    ] {
        let expected = if body.starts_with('5') { "he" } else { "okX" };
        cases.push(
            answer(name, chunked(body), 200)
                .body(expected)
                .endpoint_closes()
                .cut(),
        );
    }
    cases
}

fn closed() -> Vec<Case> {
    vec![
        answer("no length", with("", "hello"), 200)
            .body("hello")
            .endpoint_closes()
            .reuse(false),
        answer("no length and no body", with("", ""), 200).endpoint_closes(),
        answer(
            "no length, with Connection: close",
            with("Connection: close\r\n", "hello"),
            200,
        )
        .body("hello")
        .endpoint_closes(),
        answer(
            "HTTP/1.0 without a length",
            "HTTP/1.0 200 OK\r\n\r\nhello",
            200,
        )
        .body("hello")
        .endpoint_closes(),
        answer("no length, to HTTP/1.0", with("", "hello"), 200)
            .to(OLD_REQUEST)
            .body("hello")
            .endpoint_closes(),
        answer("HTTP/1.0 with LF", "HTTP/1.0 200 OK\n\nhello", 200)
            .body("hello")
            .endpoint_closes(),
        answer(
            "error without a length",
            "HTTP/1.1 500 Oops\r\n\r\nsorry",
            500,
        )
        .body("sorry")
        .endpoint_closes(),
    ]
}

fn without_body() -> Vec<Case> {
    vec![
        answer("HEAD with a length", with("Content-Length: 5\r\n", ""), 200)
            .to(HEAD_REQUEST)
            .own(&["Content-Length: 5"])
            .reuse(true),
        answer(
            "HEAD with chunked",
            with("Transfer-Encoding: chunked\r\n", ""),
            200,
        )
        .to(HEAD_REQUEST)
        .reuse(true),
        answer("HEAD without a length", with("", ""), 200)
            .to(HEAD_REQUEST)
            .reuse(true),
        answer("204", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", 204)
            .fields(&["X-A: 1"])
            .reuse(true),
        answer(
            "204 with a length of 0",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            204,
        )
        .absent(&["content-length"])
        .reuse(true),
        answer(
            "304",
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            304,
        )
        .fields(&["ETag: \"a\""])
        .reuse(true),
        answer(
            "304 with a length",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            304,
        )
        .reuse(true),
        answer(
            "304 with chunked",
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
            304,
        ),
    ]
}

/// Bytes that belong to no response must not be read as the response to the next request.
fn surplus() -> Vec<Case> {
    let other = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    vec![
        answer(
            "bytes after the length",
            with("Content-Length: 2\r\n", "ok!"),
            200,
        )
        .body("ok")
        .reuse(false),
        answer(
            "a response after the length",
            with("Content-Length: 2\r\n", &format!("ok{other}")),
            200,
        )
        .body("ok")
        .reuse(false),
        answer(
            "a response after the last chunk",
            with(
                "Transfer-Encoding: chunked\r\n",
                &format!("2\r\nok\r\n0\r\n\r\n{other}"),
            ),
            200,
        )
        .body("ok")
        .reuse(false),
        answer(
            "a body after HEAD",
            with("Content-Length: 2\r\n", "ok"),
            200,
        )
        .to(HEAD_REQUEST)
        .reuse(false),
        answer(
            "a response after HEAD",
            with("Content-Length: 2\r\n", other),
            200,
        )
        .to(HEAD_REQUEST)
        .reuse(false),
        answer("a body after 204", "HTTP/1.1 204 No Content\r\n\r\nok", 204).reuse(false),
        answer(
            "a response after 204",
            format!("HTTP/1.1 204 No Content\r\n\r\n{other}"),
            204,
        )
        .reuse(false),
        answer(
            "a body after 304",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok",
            304,
        )
        .reuse(false),
        answer(
            "a response after a length of 0",
            with("Content-Length: 0\r\n", other),
            200,
        )
        .reuse(false),
    ]
}
