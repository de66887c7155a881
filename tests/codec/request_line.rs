//! Request lines: line ends, whitespace, methods and versions (RFC 9112 sections 2 and 3).

use anyhow::Result;

use super::case::{Case, get, pass, post, reject, reject_any, status};
use super::runner::run;

/// Visible characters that are not part of a token.
const DELIMITERS: &[u8] = b"\"(),/:;<=>?@[\\]{}";

#[tokio::test]
async fn request_lines_are_strict() -> Result<()> {
    let mut cases = whitespace();
    cases.extend(methods());
    cases.extend(versions());
    run("request line", cases).await
}

fn whitespace() -> Vec<Case> {
    let mut cases = vec![
        pass("simple", get(""), "GET /x"),
        pass("byte by byte", get("X-A: 1\r\n"), "GET /x")
            .fields(&["X-A: 1"])
            .dripped(),
        pass(
            "empty line before",
            b"\r\nGET @P/x HTTP/1.1\r\n@A\r\n",
            "GET /x",
        ),
        pass(
            "empty line before, byte by byte",
            b"\r\nGET @P/x HTTP/1.1\r\n@A\r\n",
            "GET /x",
        )
        .dripped(),
    ];
    let rejected: [(&str, &[u8]); 25] = [
        (
            "two empty lines before",
            b"\r\n\r\nGET @P/x HTTP/1.1\r\n@A\r\n",
        ),
        ("bare LF before", b"\nGET @P/x HTTP/1.1\r\n@A\r\n"),
        ("bare CR before", b"\rGET @P/x HTTP/1.1\r\n@A\r\n"),
        ("space before", b" GET @P/x HTTP/1.1\r\n@A\r\n"),
        ("tab before", b"\tGET @P/x HTTP/1.1\r\n@A\r\n"),
        (
            "line of a space before",
            b" \r\nGET @P/x HTTP/1.1\r\n@A\r\n",
        ),
        ("NUL before", b"\0GET @P/x HTTP/1.1\r\n@A\r\n"),
        (
            "byte order mark before",
            b"\xef\xbb\xbfGET @P/x HTTP/1.1\r\n@A\r\n",
        ),
        (
            "two spaces after the method",
            b"GET  @P/x HTTP/1.1\r\n@A\r\n",
        ),
        (
            "two spaces before the version",
            b"GET @P/x  HTTP/1.1\r\n@A\r\n",
        ),
        ("space after the version", b"GET @P/x HTTP/1.1 \r\n@A\r\n"),
        ("tab after the version", b"GET @P/x HTTP/1.1\t\r\n@A\r\n"),
        ("tab after the method", b"GET\t@P/x HTTP/1.1\r\n@A\r\n"),
        ("tab before the version", b"GET @P/x\tHTTP/1.1\r\n@A\r\n"),
        (
            "vertical tab as separator",
            b"GET @P/x\x0bHTTP/1.1\r\n@A\r\n",
        ),
        ("form feed as separator", b"GET\x0c@P/x HTTP/1.1\r\n@A\r\n"),
        (
            "no-break space as separator",
            b"GET @P/x\xa0HTTP/1.1\r\n@A\r\n",
        ),
        ("bare LF at the end", b"GET @P/x HTTP/1.1\n@A\r\n"),
        ("bare CR at the end", b"GET @P/x HTTP/1.1\r@A\r\n"),
        ("CR CR LF at the end", b"GET @P/x HTTP/1.1\r\r\n@A\r\n"),
        ("LF CR at the end", b"GET @P/x HTTP/1.1\n\r@A\r\n"),
        ("bare CR as separator", b"GET\r@P/x HTTP/1.1\r\n@A\r\n"),
        ("bare CR after the target", b"GET @P/x\r HTTP/1.1\r\n@A\r\n"),
        ("bare LF after the method", b"GET \n@P/x HTTP/1.1\r\n@A\r\n"),
        (
            "all lines end with LF",
            b"GET @P/x HTTP/1.1\nHost: h\nAuthorization: Bearer t\n\n",
        ),
    ];
    cases.extend(rejected.map(|(name, input)| reject(name, input, 400)));
    cases
}

fn methods() -> Vec<Case> {
    let mut cases: Vec<Case> = DELIMITERS
        .iter()
        .map(|byte| {
            let name = format!("method with {}", char::from(*byte));
            let input = [b"G", &[*byte][..], b"T @P/x HTTP/1.1\r\n@A\r\n"].concat();
            reject(name, input, 400)
        })
        .collect();
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let input = format!("{method} @P/x HTTP/1.1\r\n@A\r\n");
        cases.push(
            pass(method, input, format!("{method} /x"))
                .absent(&["content-length", "transfer-encoding"]),
        );
    }
    for method in ["POST", "PUT", "PATCH"] {
        let input = format!("{method} @P/x HTTP/1.1\r\n@A\r\n");
        let name = format!("{method} without a body");
        cases.push(pass(name, input, format!("{method} /x")).own(&["Content-Length: 0"]));
        let input = format!("{method} @P/x HTTP/1.1\r\n@AContent-Length: 3\r\n\r\nabc");
        let name = format!("{method} with a body");
        cases.push(
            pass(name, input, format!("{method} /x"))
                .own(&["Content-Length: 3"])
                .body("abc"),
        );
    }
    for method in [
        "PURGE",
        "get",
        "Get",
        "M-SEARCH",
        "PROPFIND",
        "X!#$%&'*+.^_`|~",
        "TRACE",
    ] {
        let input = format!("{method} @P/x HTTP/1.1\r\n@A\r\n");
        cases.push(status(format!("unknown method {method}"), input, &[405]));
    }
    let rejected: [(&str, &[u8]); 7] = [
        ("no method", b" @P/x HTTP/1.1\r\n@A\r\n"),
        ("method of a space", b"  @P/x HTTP/1.1\r\n@A\r\n"),
        ("method with NUL", b"G\0T @P/x HTTP/1.1\r\n@A\r\n"),
        (
            "method with a control character",
            b"G\x01T @P/x HTTP/1.1\r\n@A\r\n",
        ),
        ("method with DEL", b"G\x7fT @P/x HTTP/1.1\r\n@A\r\n"),
        ("method beyond ASCII", b"G\xc3\xa9T @P/x HTTP/1.1\r\n@A\r\n"),
        ("method with a tab", b"G\tT @P/x HTTP/1.1\r\n@A\r\n"),
    ];
    cases.extend(rejected.map(|(name, input)| reject(name, input, 400)));
    cases.push(reject(
        "a second request line as a field",
        "GET @P/x HTTP/1.1\r\nGET @P/y HTTP/1.1\r\n@A\r\n",
        400,
    ));
    cases.push(
        pass(
            "bytes after a request without a body",
            post("", "hello\r\n\r\n"),
            "POST /x",
        )
        .then_rejects(400),
    );
    cases
}

fn versions() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in ["0.9", "1.2", "1.9", "2.0", "3.0", "9.9", "0.0"] {
        let input = format!("GET @P/x HTTP/{version}\r\n@A\r\n");
        cases.push(reject(format!("version HTTP/{version}"), input, 505));
    }
    for version in [
        "http/1.1",
        "Http/1.1",
        "HTTP/1",
        "HTTP/1.",
        "HTTP/.1",
        "HTTP/1.10",
        "HTTP/01.1",
        "HTTP/1.01",
        "HTTP/11",
        "HTTP/+1.1",
        "HTTP/-1.1",
        "HTTP/1,1",
        "HTTP/1.1.1",
        "HTTP/1.a",
        "HTTP/a.1",
        "HTTP/1.1x",
        "HTTP /1.1",
        "HTTP/ 1.1",
        "HTTP/1. 1",
        "HTTP",
        "HTTP/",
        "1.1",
        "HTTPS/1.1",
        "XHTTP/1.1",
        "ICY/1.1",
        "HTTP\\1.1",
        "HTTP/1.\u{661}",
        "HTTP/1.1;x",
    ] {
        let input = format!("GET @P/x {version}\r\n@A\r\n");
        cases.push(reject(format!("malformed version {version:?}"), input, 400));
    }
    cases.push(reject("no version", "GET @P/x\r\n@A\r\n", 400));
    cases.push(reject(
        "no version, but a space",
        "GET @P/x \r\n@A\r\n",
        400,
    ));
    cases.push(reject(
        "version with NUL",
        "GET @P/x HTTP/1.1\0\r\n@A\r\n",
        400,
    ));
    cases.push(reject("method alone", "GET\r\n@A\r\n", 400));
    cases.push(reject_any(
        "preface of HTTP/2",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[400, 505],
    ));
    cases.push(
        pass("HTTP/1.0", "GET @P/x HTTP/1.0\r\n@A\r\n", "GET /x")
            .absent(&["connection"])
            .closes(),
    );
    cases.push(
        pass(
            "HTTP/1.0 with a length",
            "POST @P/x HTTP/1.0\r\n@AContent-Length: 3\r\n\r\nabc",
            "POST /x",
        )
        .body("abc")
        .closes(),
    );
    cases.push(
        pass(
            "HTTP/1.0, byte by byte",
            "GET @P/x HTTP/1.0\r\n@A\r\n",
            "GET /x",
        )
        .dripped()
        .closes(),
    );
    cases.push(
        pass(
            "Connection: close",
            "GET @P/x HTTP/1.1\r\n@AConnection: close\r\n\r\n",
            "GET /x",
        )
        .absent(&["connection"])
        .closes(),
    );
    cases
}
