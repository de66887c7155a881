//! Chunked bodies of requests: sizes, extensions, data and trailers (RFC 9112 section 7.1).

use anyhow::Result;

use super::case::{Case, cut, pass, post};
use super::runner::run;

#[tokio::test]
async fn chunked_bodies_are_strict() -> Result<()> {
    let mut cases = sizes();
    cases.extend(extensions());
    cases.extend(data());
    cases.extend(trailers());
    run("chunked", cases).await
}

fn chunked(body: impl AsRef<[u8]>) -> Vec<u8> {
    post("TE: trailers\r\nTransfer-Encoding: chunked\r\n", body)
}

fn passes(name: impl Into<String>, input: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Case {
    pass(name, chunked(input), "POST /x").body(body)
}

fn cuts(name: impl Into<String>, input: impl AsRef<[u8]>) -> Case {
    cut(name, chunked(input))
}

fn sizes() -> Vec<Case> {
    let mut cases = vec![
        passes("one chunk", "5\r\nhello\r\n0\r\n\r\n", "hello"),
        passes("two chunks", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        passes("no chunk", "0\r\n\r\n", ""),
        passes(
            "byte by byte",
            "2;a=\"b\"\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "hello",
        )
        .dripped(),
        passes(
            "lower-case digit",
            "a\r\n0123456789\r\n0\r\n\r\n",
            "0123456789",
        ),
        passes(
            "upper-case digit",
            "A\r\n0123456789\r\n0\r\n\r\n",
            "0123456789",
        ),
        passes("leading zeros", "0005\r\nhello\r\n0\r\n\r\n", "hello"),
        passes(
            "16 digits",
            "0000000000000005\r\nhello\r\n0\r\n\r\n",
            "hello",
        ),
        passes("last chunk of zeros", "5\r\nhello\r\n0000\r\n\r\n", "hello"),
        passes(
            "last chunk of 16 zeros",
            "5\r\nhello\r\n0000000000000000\r\n\r\n",
            "hello",
        ),
        passes(
            "data that looks like chunks",
            "5\r\n0\r\n\r\n\r\n0\r\n\r\n",
            "0\r\n\r\n",
        ),
        passes(
            "data that looks like a request",
            "23\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n\r\n0\r\n\r\n",
            "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
        passes(
            "large chunk",
            format!("186a0\r\n{}\r\n0\r\n\r\n", "x".repeat(100_000)),
            "x".repeat(100_000),
        ),
        passes(
            "many chunks",
            format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(3000)),
            "x".repeat(3000),
        ),
    ];
    for size in [
        "00000000000000005",
        "10000000000000005",
        "10000000000000000",
        "fffffffffffffffff",
        "0x5",
        "+5",
        "-5",
        "",
        " ",
        " 5",
        "5 ",
        "5\t",
        "\t5",
        "g",
        "5g",
        "5h",
        "5.0",
        "5,",
        "5_",
        "\"5\"",
        "\u{665}",
        "5\u{0}",
        "\u{0}5",
        "5\u{b}",
        "5 5",
        "5:",
        "0x",
        "-0",
        "5\r",
    ] {
        let input = format!("{size}\r\nhello\r\n0\r\n\r\n");
        cases.push(cuts(format!("size {size:?}"), input));
    }
    cases
}

fn extensions() -> Vec<Case> {
    let mut cases = Vec::new();
    for extension in [
        ";a",
        ";a=b",
        ";a=\"b\"",
        ";a=\"\"",
        ";a=\"b;c=\\\"d\\\"\"",
        ";a;b;c=d",
        " ;a",
        "; a",
        "\t;\ta",
        ";a = b",
        ";a=b ;c",
        ";a=\"\u{e9}\"",
        ";a=\"b\tc\"",
        ";!#$%&'*+-.^_`|~=1",
    ] {
        let input = format!("5{extension}\r\nhello\r\n0\r\n\r\n");
        cases.push(passes(format!("extension {extension:?}"), input, "hello"));
    }
    for extension in [
        ";",
        ";;a",
        ";=b",
        ";a=",
        ";a=\"",
        ";a=\"b",
        ";a=b\"",
        ";a=\"b\"c",
        ";a b",
        ";a=b c",
        ";a=\u{e9}",
        ";\u{e9}",
        ";a\u{0}",
        ";a=\"\u{0}\"",
        ";a=\"\\\u{0}\"",
        ";a\rb",
        ";a=\"\r\"",
        ";a=\"\n\"",
        ";a\n",
        ";a\u{1}",
        ";a\u{7f}",
        ";a=\"\r\n\"",
        ";a=(b)",
        ";a:b",
        ";a,b",
        ";a=b=c",
        "a;",
        "\u{a0};a",
    ] {
        let input = format!("5{extension}\r\nhello\r\n0\r\n\r\n");
        cases.push(cuts(format!("extension {extension:?}"), input));
    }
    let long = |count: usize| format!(";a={}", "b".repeat(count));
    let chunks = |count: usize, extension: &str| {
        format!(
            "{}0\r\n\r\n",
            format!("1{extension}\r\nx\r\n").repeat(count)
        )
    };
    cases.push(passes(
        "extension on the last chunk",
        "5\r\nhello\r\n0;a=b\r\n\r\n",
        "hello",
    ));
    cases.push(cuts(
        "bad extension on the last chunk",
        "5\r\nhello\r\n0;\r\n\r\n",
    ));
    cases.push(passes(
        "extension of 4,000 bytes",
        chunks(1, &long(4000)),
        "x",
    ));
    cases.push(cuts("extension above 4 KiB", chunks(1, &long(4200))));
    cases.push(cuts(
        "extension above 4 KiB on the last chunk",
        format!("0{}\r\n\r\n", long(4200)),
    ));
    cases.push(passes(
        "extensions of 15,000 bytes",
        chunks(5, &long(3000)),
        "xxxxx",
    ));
    cases.push(cuts("extensions above 16 KiB", chunks(6, &long(3000))));
    cases.push(cuts(
        "many short extensions above 16 KiB",
        chunks(9000, ";a"),
    ));
    cases
}

fn data() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        ("data longer than its size", "5\r\nhelloX\r\n0\r\n\r\n"),
        ("data longer by a CRLF", "5\r\nhello\r\n\r\n0\r\n\r\n"),
        ("data shorter than its size", "5\r\nhell\r\n0\r\n\r\n"),
        ("no CRLF after the data", "5\r\nhello0\r\n\r\n"),
        ("LF after the data", "5\r\nhello\n0\r\n\r\n"),
        ("CR after the data", "5\r\nhello\r0\r\n\r\n"),
        ("LF CR after the data", "5\r\nhello\n\r0\r\n\r\n"),
        ("two bytes instead of CRLF", "5\r\nhelloXX0\r\n\r\n"),
        (
            "space before CRLF after the data",
            "5\r\nhello \r\n0\r\n\r\n",
        ),
        ("LF after the size", "5\nhello\r\n0\r\n\r\n"),
        ("CR after the size", "5\rhello\r\n0\r\n\r\n"),
        ("CR CR LF after the size", "5\r\r\nhello\r\n0\r\n\r\n"),
        ("LF after the last chunk", "5\r\nhello\r\n0\n\r\n"),
        ("LF at the end", "5\r\nhello\r\n0\r\n\n"),
        ("LF LF at the end", "5\r\nhello\r\n0\n\n"),
        ("CR at the end", "5\r\nhello\r\n0\r\n\rX"),
        ("CR CR LF at the end", "5\r\nhello\r\n0\r\n\r\r\n"),
        ("CRLF before the first size", "\r\n5\r\nhello\r\n0\r\n\r\n"),
    ]
    .into_iter()
    .map(|(name, input)| cuts(name, input))
    .collect();
    cases.push(
        passes(
            "a request after the body",
            "5\r\nhello\r\n0\r\n\r\nGET @P/y HTTP/1.1\r\n@A\r\n",
            "hello",
        )
        .and("GET /y"),
    );
    cases.push(
        passes(
            "garbage after the body",
            "5\r\nhello\r\n0\r\n\r\nX\r\n\r\n",
            "hello",
        )
        .then_rejects(400),
    );
    cases
}

fn trailers() -> Vec<Case> {
    let with = |lines: &str| format!("5\r\nhello\r\n0\r\n{lines}\r\n");
    let mut cases = vec![
        passes("trailer", with("X-Sum: 7\r\n"), "hello").trailers(&["X-Sum: 7"]),
        passes("trailer, byte by byte", with("X-Sum: 7\r\n"), "hello")
            .trailers(&["X-Sum: 7"])
            .dripped(),
        passes("announced trailer", "", "hello").announced(&with("X-Sum: 7\r\n")),
        passes(
            "repetition of trailers",
            with("x-B: 2\r\nX-a: 1\r\nX-b: 3\r\n"),
            "hello",
        )
        // Equal names are sent together, and spelled like `Content-Type`.
        .trailers(&["X-B: 2", "X-B: 3", "X-A: 1"]),
        passes("empty trailer", with("X-Sum:\r\n"), "hello").trailers(&["X-Sum: "]),
        passes("trailer after an empty body", "0\r\nX-Sum: 0\r\n\r\n", "").trailers(&["X-Sum: 0"]),
        passes("trailer beyond ASCII", with("X-Sum: \u{e9}\r\n"), "hello")
            .trailers(&["X-Sum: \u{e9}"]),
    ];
    for name in [
        "Content-Length",
        "content-length",
        "Transfer-Encoding",
        "Host",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Authorization",
        "X-Remote-User",
        "x-remote-group",
        "X-Remote-Extra-A",
        "X_Remote_User",
        "Impersonate-User",
        "Impersonate_Group",
        "Impersonate-Extra-A",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X_Forwarded_Proto",
        "X-Forwarded-Uri",
        "HTTP2-Settings",
        "Content_Length",
    ] {
        cases.push(
            passes(
                format!("{name} in trailers"),
                with(&format!("X-A: 1\r\n{name}: 5\r\nX-B: 2\r\n")),
                "hello",
            )
            .trailers(&["X-A: 1", "X-B: 2"]),
        );
    }
    for line in [
        "X : 1\r\n",
        "X\t: 1\r\n",
        ": 1\r\n",
        "X\r\n",
        "X Y: 1\r\n",
        " X: 1\r\n",
        "X: 1\r\n 2\r\n",
        "X: 1\n",
        "X: 1\nY: 2\r\n",
        "X: 1\rY: 2\r\n",
        "X: 1\r\r\n",
        "X: \u{0}\r\n",
        "X\u{0}: 1\r\n",
        "X: \u{1}\r\n",
        "X\u{e9}: 1\r\n",
        "X(: 1\r\n",
        "GET / HTTP/1.1\r\n",
    ] {
        cases.push(cuts(format!("trailer {line:?}"), with(line)));
    }
    let many: String = (0..1100).map(|n| format!("X-{n}: 1\r\n")).collect();
    cases.push(cuts("1,100 trailers", with(&many)));
    cases
}

/// Announcement of trailers.
trait Announced {
    fn announced(self, body: &str) -> Case;
}

impl Announced for Case {
    /// Replaces the input by a request with `Trailer: X-Sum` and `body`.
    fn announced(mut self, body: &str) -> Case {
        let fields = "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n";
        self.parts = vec![post(fields, body)];
        self.fields(&["Trailer: X-Sum"]).trailers(&["X-Sum: 7"])
    }
}
