//! `Content-Length` and `Transfer-Encoding` of requests (RFC 9112 section 6).

use anyhow::Result;

use super::case::{Case, cut, get, pass, post, reject, reject_any};
use super::runner::run;

const CHUNKED_BODY: &str = "5\r\nhello\r\n0\r\n\r\n";

#[tokio::test]
async fn framing_is_unambiguous() -> Result<()> {
    let mut cases = lengths();
    cases.extend(codings());
    cases.extend(both());
    cases.extend(truncated());
    run("framing", cases).await
}

fn lengths() -> Vec<Case> {
    let mut cases = vec![
        pass("length", post("Content-Length: 5\r\n", "hello"), "POST /x").body("hello"),
        pass("length 0", post("Content-Length: 0\r\n", ""), "POST /x").own(&["Content-Length: 0"]),
        pass(
            "length, byte by byte",
            post("Content-Length: 5\r\n", "hello"),
            "POST /x",
        )
        .body("hello")
        .dripped(),
        pass(
            "length with GET",
            get("Content-Length: 5\r\n").tap("hello"),
            "GET /x",
        )
        .body("hello"),
        pass("length 0 with GET", get("Content-Length: 0\r\n"), "GET /x"),
        pass(
            "length with whitespace around",
            post("Content-Length: \t5 \t\r\n", "hello"),
            "POST /x",
        )
        .body("hello"),
        pass(
            "length without a space",
            post("content-length:5\r\n", "hello"),
            "POST /x",
        )
        .body("hello"),
        pass(
            "length with leading zeros",
            post("Content-Length: 005\r\n", "hello"),
            "POST /x",
        )
        .body("hello"),
        pass(
            "length of 19 digits",
            post("Content-Length: 0000000000000000005\r\n", "hello"),
            "POST /x",
        )
        .body("hello"),
        pass(
            "length named by Connection",
            post(
                "Connection: Content-Length\r\nContent-Length: 5\r\n",
                "hello",
            ),
            "POST /x",
        )
        .body("hello"),
        pass(
            "body that looks like a request",
            post(
                "Content-Length: 35\r\n",
                "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
            ),
            "POST /x",
        )
        .body("GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"),
        pass(
            "length with an underscore",
            post("Content_Length: 5\r\n", ""),
            "POST /x",
        )
        .absent(&["content_length"])
        .own(&["Content-Length: 0"]),
    ];
    for value in [
        "",
        "+5",
        "-5",
        "-0",
        "5 5",
        "5,5",
        "5, 5",
        "5,",
        ",5",
        "5,6",
        "5;",
        "5;x=y",
        "0x5",
        "5h",
        "5.0",
        "5e0",
        "five",
        "\"5\"",
        "5\u{b2}",
        "\u{665}",
        "1_0",
        "5 hello",
        "00000000000000000005",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        let input = post(format!("Content-Length: {value}\r\n"), "hello");
        cases.push(reject(format!("length {value:?}"), input, 400));
    }
    let rejected: [(&str, &[u8]); 14] = [
        (
            "two equal lengths",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
        ),
        (
            "two different lengths",
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
        ),
        (
            "two lengths apart",
            b"Content-Length: 5\r\nX: y\r\ncontent-length: 5\r\n",
        ),
        (
            "length and empty length",
            b"Content-Length: 5\r\nContent-Length:\r\n",
        ),
        ("length and folded length", b"Content-Length: 5\r\n 5\r\n"),
        ("length folded", b"Content-Length:\r\n 5\r\n"),
        (
            "space before the colon of a length",
            b"Content-Length : 5\r\n",
        ),
        (
            "tab before the colon of a length",
            b"Content-Length\t: 5\r\n",
        ),
        ("space in the name of a length", b"Content Length: 5\r\n"),
        ("length with NUL", b"Content-Length: 5\0\r\n"),
        ("length with a vertical tab", b"Content-Length: \x0b5\r\n"),
        ("length with a form feed", b"Content-Length: 5\x0c\r\n"),
        ("length with a no-break space", b"Content-Length: \xa05\r\n"),
        ("length after a bare CR", b"X: y\rContent-Length: 5\r\n"),
    ];
    cases.extend(rejected.map(|(name, fields)| reject(name, post(fields, "hello"), 400)));
    cases
}

fn codings() -> Vec<Case> {
    let mut cases = Vec::new();
    for line in [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding:chunked",
        "transfer-encoding: Chunked",
        "TRANSFER-ENCODING: CHUNKED",
        "Transfer-Encoding: \t chunked \t",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
        "TE: trailers\r\nTransfer-Encoding: chunked",
    ] {
        let input = post(format!("{line}\r\n"), CHUNKED_BODY);
        cases.push(
            pass(format!("coding {line:?}"), input, "POST /x")
                .body("hello")
                .absent(&["content-length"]),
        );
    }
    cases.push(
        pass(
            "chunked with GET",
            get("Transfer-Encoding: chunked\r\n").tap(CHUNKED_BODY),
            "GET /x",
        )
        .body("hello"),
    );
    for value in [
        "gzip, chunked",
        "deflate, gzip, chunked",
        "gzip,chunked",
        "compress , chunked",
    ] {
        let input = post(format!("Transfer-Encoding: {value}\r\n"), CHUNKED_BODY);
        cases.push(reject(format!("coding {value:?}"), input, 501));
    }
    for value in ["identity, chunked", "x, chunked"] {
        let input = post(format!("Transfer-Encoding: {value}\r\n"), CHUNKED_BODY);
        cases.push(reject_any(format!("coding {value:?}"), input, &[400, 501]));
    }
    for value in [
        "",
        ",",
        "gzip",
        "identity",
        "chunked, chunked",
        "chunked,chunked",
        "chunked, gzip",
        "chunked, identity",
        "chunked,",
        ",chunked",
        ", chunked",
        "chunked;q=1",
        "chunked; x",
        "\"chunked\"",
        "'chunked'",
        "xchunked",
        "chunkedx",
        "x-chunked",
        "chun ked",
        "chunked chunked",
        "chunke",
        "chunk\u{e9}d",
        "c\u{1d}hunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "chunked\0",
        "trailers",
        "chunked/1",
        "[chunked]",
        "chunk\u{212a}ed",
    ] {
        let input = post(format!("Transfer-Encoding: {value}\r\n"), CHUNKED_BODY);
        cases.push(reject(format!("coding {value:?}"), input, 400));
    }
    let rejected: [(&str, &[u8]); 13] = [
        (
            "chunked twice",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "chunked and identity",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        ),
        (
            "chunked and empty",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
        ),
        (
            "empty and chunked",
            b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("chunked folded", b"Transfer-Encoding:\r\n chunked\r\n"),
        (
            "chunked and a folded coding",
            b"Transfer-Encoding: chunked\r\n , gzip\r\n",
        ),
        (
            "space before the colon of a coding",
            b"Transfer-Encoding : chunked\r\n",
        ),
        (
            "tab before the colon of a coding",
            b"Transfer-Encoding\t: chunked\r\n",
        ),
        (
            "space before the name of a coding",
            b" Transfer-Encoding: chunked\r\n",
        ),
        (
            "folded line that looks like a coding",
            b"X: y\r\n Transfer-Encoding: chunked\r\n",
        ),
        (
            "coding after a bare LF",
            b"X: y\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "coding after a bare CR",
            b"X: y\rTransfer-Encoding: chunked\r\n",
        ),
        (
            "NUL in the name of a coding",
            b"Transfer-\0Encoding: chunked\r\n",
        ),
    ];
    cases.extend(rejected.map(|(name, fields)| reject(name, post(fields, CHUNKED_BODY), 400)));
    cases.push(reject_any(
        "gzip and chunked on two lines",
        post(
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
            CHUNKED_BODY,
        ),
        &[400, 501],
    ));
    for fields in [
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
    ] {
        let input = format!("POST @P/x HTTP/1.0\r\n@A{fields}\r\n{CHUNKED_BODY}");
        cases.push(reject(
            format!("HTTP/1.0 with {}", fields.trim_end()),
            input,
            400,
        ));
    }
    cases
}

fn both() -> Vec<Case> {
    let body = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut cases: Vec<Case> = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Content-Length: 44\r\nTransfer-Encoding: CHUNKED\r\n",
        "Content-Length: 5\r\nX: y\r\nTransfer-Encoding:\tchunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
        "Content-Length: 5\r\nTransfer-Encoding:\r\n",
        "Content-Length:\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: Content-Length\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n",
    ]
    .into_iter()
    .map(|fields| reject(format!("both {fields:?}"), post(fields, body), 400))
    .collect();
    cases.push(reject_any(
        "both with gzip",
        post(
            "Content-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n",
            body,
        ),
        &[400, 501],
    ));
    cases.push(reject(
        "HTTP/1.0 with both",
        format!(
            "POST @P/x HTTP/1.0\r\n@AContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ),
        400,
    ));
    cases.push(
        pass(
            "length and a coding with an underscore",
            post(
                "Content-Length: 5\r\nTransfer_Encoding: chunked\r\n",
                "hello",
            ),
            "POST /x",
        )
        .body("hello")
        .absent(&["transfer_encoding"]),
    );
    cases
}

/// Requests that the client does not complete before it closes its side.
fn truncated() -> Vec<Case> {
    [
        ("length", "Content-Length: 5\r\n", "hell"),
        ("length without a byte", "Content-Length: 5\r\n", ""),
        ("size", "Transfer-Encoding: chunked\r\n", "5"),
        ("data", "Transfer-Encoding: chunked\r\n", "5\r\nhell"),
        ("chunk", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        (
            "last chunk",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n",
        ),
        (
            "trailers",
            "Transfer-Encoding: chunked\r\n",
            "0\r\nX-Sum: 1\r\n",
        ),
    ]
    .into_iter()
    .map(|(name, fields, body)| {
        cut(format!("end within the {name}"), post(fields, body)).client_ends()
    })
    .chain([
        cut("end within the request line", "GET @P/x").client_ends(),
        cut("end within the fields", "GET @P/x HTTP/1.1\r\n@A").client_ends(),
    ])
    .collect()
}

/// Appends bytes.
trait Tap {
    fn tap(self, rest: &str) -> Self;
}

impl Tap for Vec<u8> {
    fn tap(mut self, rest: &str) -> Self {
        self.extend_from_slice(rest.as_bytes());
        self
    }
}
