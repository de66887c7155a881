//! `Expect` (RFC 9110 section 10.1.1).

use anyhow::Result;

use super::case::{Case, get, pass, post, status};
use super::runner::run;

#[tokio::test]
async fn expectations_reach_the_endpoint_or_fail() -> Result<()> {
    run("expect", cases()).await
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        pass(
            "the client waits",
            post("Expect: 100-continue\r\nContent-Length: 5\r\n", ""),
            "POST /x",
        )
        .own(&["Expect: 100-continue"])
        .then("hello")
        .body("hello"),
        pass(
            "the client waits before chunks",
            post("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", ""),
            "POST /x",
        )
        .own(&["Expect: 100-continue"])
        .then("5\r\nhello\r\n0\r\n\r\n")
        .body("hello"),
        pass(
            "the client does not wait",
            post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
            "POST /x",
        )
        .body("hello"),
        pass(
            "the client does not wait before chunks",
            post(
                "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n",
                "5\r\nhello\r\n0\r\n\r\n",
            ),
            "POST /x",
        )
        .body("hello"),
        pass("without a body", get("Expect: 100-continue\r\n"), "GET /x"),
        pass(
            "with a length of 0",
            post("Expect: 100-continue\r\nContent-Length: 0\r\n", ""),
            "POST /x",
        ),
        // RFC 9110 section 10.1.1: a 100 is not sent to a client of HTTP/1.0.
        pass(
            "HTTP/1.0",
            "POST @P/x HTTP/1.0\r\n@AExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
            "POST /x",
        )
        .body("hello")
        .closes(),
    ];
    for value in ["100-Continue", "100-CONTINUE", " \t100-continue "] {
        cases.push(
            pass(
                format!("value {value:?}"),
                post(format!("Expect: {value}\r\nContent-Length: 5\r\n"), ""),
                "POST /x",
            )
            .then("hello")
            .body("hello"),
        );
    }
    for value in [
        "200-ok",
        "100-continue-x",
        "100",
        "continue",
        "100-continue; x",
        "x=y",
        "\"100-continue\"",
    ] {
        cases.push(status(
            format!("value {value:?}"),
            post(format!("Expect: {value}\r\nContent-Length: 0\r\n"), ""),
            &[417],
        ));
    }
    cases.push(status(
        "unknown expectation with a body",
        post("Expect: later\r\nContent-Length: 5\r\n", "hello"),
        &[417],
    ));
    cases
}
