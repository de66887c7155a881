//! Field lines of requests (RFC 9112 section 5, RFC 9110 sections 5 and 7.6).

use anyhow::Result;

use super::case::{Case, get, pass, reject};
use super::runner::run;

/// Visible characters, except the colon, that are not part of a token.
const DELIMITERS: &[u8] = b"\"(),/;<=>?@[\\]{}";

#[tokio::test]
async fn field_lines_are_strict() -> Result<()> {
    let mut cases = names();
    cases.extend(values());
    cases.extend(lines());
    cases.extend(hop_by_hop());
    cases.extend(identity());
    cases.extend(sizes());
    run("fields", cases).await
}

fn names() -> Vec<Case> {
    let mut cases: Vec<Case> = DELIMITERS
        .iter()
        .map(|byte| {
            let line = [b"X", &[*byte][..], b"Y: 1\r\n"].concat();
            reject(format!("name with {}", char::from(*byte)), get(line), 400)
        })
        .collect();
    let rejected: [(&str, &[u8]); 12] = [
        ("empty name", b": 1\r\n"),
        ("empty name of a space", b" : 1\r\n"),
        ("space before the colon", b"X : 1\r\n"),
        ("tab before the colon", b"X\t: 1\r\n"),
        ("space in a name", b"X Y: 1\r\n"),
        ("tab in a name", b"X\tY: 1\r\n"),
        ("NUL in a name", b"X\0Y: 1\r\n"),
        ("control character in a name", b"X\x01Y: 1\r\n"),
        ("DEL in a name", b"X\x7fY: 1\r\n"),
        ("UTF-8 in a name", b"X\xc3\xa9: 1\r\n"),
        ("byte FF in a name", b"\xff: 1\r\n"),
        ("line without a colon", b"X\r\n"),
    ];
    cases.extend(rejected.map(|(name, line)| reject(name, get(line), 400)));
    cases.push(
        pass(
            "all characters of a token",
            get("!#$%&'*+-.^_`|~09azAZ: 1\r\n"),
            "GET /x",
        )
        .fields(&["!#$%&'*+-.^_`|~09azAZ: 1"]),
    );
    cases.push(
        pass(
            "order, spelling and repetition",
            get("x-B: 2\r\nX-a: 1\r\nX-b: 3\r\nACCEPT: */*\r\nx-A: 4\r\n"),
            "GET /x",
        )
        .fields(&["x-B: 2", "X-a: 1", "X-b: 3", "ACCEPT: */*", "x-A: 4"]),
    );
    let long = format!("X-{}", "n".repeat(5000));
    cases.push(
        pass("long name", get(format!("{long}: 1\r\n")), "GET /x").fields(&[format!("{long}: 1")]),
    );
    cases.push(pass("digits as a name", get("0: 1\r\n"), "GET /x").fields(&["0: 1"]));
    cases
}

fn values() -> Vec<Case> {
    let accepted: [(&str, &[u8], &[u8]); 11] = [
        ("empty value", b"X:\r\n", b"X: "),
        ("value of spaces", b"X:   \r\n", b"X: "),
        ("value without a space", b"X:1\r\n", b"X: 1"),
        (
            "value with whitespace around",
            b"X: \t1 2\t \r\n",
            b"X: 1 2",
        ),
        ("tab in a value", b"X: 1\t2\r\n", b"X: 1\t2"),
        ("colons in a value", b"X:: a:b:\r\n", b"X: : a:b:"),
        (
            "quotes and commas in a value",
            b"X: \"a, b\", 'c'\r\n",
            b"X: \"a, b\", 'c'",
        ),
        ("Latin-1 in a value", b"X: caf\xe9\r\n", b"X: caf\xe9"),
        (
            "UTF-8 in a value",
            b"X: \xe6\x97\xa5\r\n",
            b"X: \xe6\x97\xa5",
        ),
        ("byte FF in a value", b"X: \xff\r\n", b"X: \xff"),
        (
            "two cookies",
            b"Cookie: a=1; b=2\r\nCookie: c=3\r\n",
            b"Cookie: a=1; b=2",
        ),
    ];
    let mut cases: Vec<Case> = accepted
        .into_iter()
        .map(|(name, line, received)| {
            let mut fields = vec![received];
            if name == "two cookies" {
                fields.push(b"Cookie: c=3");
            }
            pass(name, get(line), "GET /x").fields(&fields)
        })
        .collect();
    let rejected: [(&str, &[u8]); 9] = [
        ("NUL in a value", b"X: a\0b\r\n"),
        ("NUL alone as a value", b"X: \0\r\n"),
        ("bare CR in a value", b"X: a\rb\r\n"),
        ("bare CR at the end of a value", b"X: a\r\r\n"),
        ("control character in a value", b"X: a\x01b\r\n"),
        ("backspace in a value", b"X: a\x08b\r\n"),
        ("vertical tab in a value", b"X: a\x0bb\r\n"),
        ("escape character in a value", b"X: \x1b[1m\r\n"),
        ("DEL in a value", b"X: a\x7fb\r\n"),
    ];
    cases.extend(rejected.map(|(name, line)| reject(name, get(line), 400)));
    cases
}

fn lines() -> Vec<Case> {
    let rejected: [(&str, &[u8]); 16] = [
        (
            "bare LF after a field",
            b"GET @P/x HTTP/1.1\r\n@AX: a\nY: b\r\n\r\n",
        ),
        (
            "bare CR after a field",
            b"GET @P/x HTTP/1.1\r\n@AX: a\rY: b\r\n\r\n",
        ),
        (
            "LF at the end of the head",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n\n",
        ),
        (
            "LF LF at the end of the head",
            b"GET @P/x HTTP/1.1\r\n@AX: a\n\n",
        ),
        (
            "LF CR LF at the end of the head",
            b"GET @P/x HTTP/1.1\r\n@AX: a\n\r\n",
        ),
        (
            "CR CR LF at the end of the head",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n\r\r\n",
        ),
        (
            "CR CR at the end of the head",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n\r\rx",
        ),
        (
            "folded by a space",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n b\r\n\r\n",
        ),
        (
            "folded by a tab",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n\tb\r\n\r\n",
        ),
        (
            "folded to nothing",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n \r\n\r\n",
        ),
        (
            "folded after an empty value",
            b"GET @P/x HTTP/1.1\r\n@AX:\r\n a\r\n\r\n",
        ),
        (
            "folded field line",
            b"GET @P/x HTTP/1.1\r\n@AX: a\r\n Y: b\r\n\r\n",
        ),
        (
            "space before the first field",
            b"GET @P/x HTTP/1.1\r\n X: a\r\n@A\r\n",
        ),
        (
            "tab before the first field",
            b"GET @P/x HTTP/1.1\r\n\tX: a\r\n@A\r\n",
        ),
        (
            "line of spaces before the fields",
            b"GET @P/x HTTP/1.1\r\n  \r\n@A\r\n",
        ),
        ("NUL as a line", b"GET @P/x HTTP/1.1\r\n\0\r\n@A\r\n"),
    ];
    rejected
        .into_iter()
        .map(|(name, input)| reject(name, input, 400))
        .collect()
}

fn hop_by_hop() -> Vec<Case> {
    let dropped: [(&str, &str, &[&'static str]); 14] = [
        (
            "field named by Connection",
            "Connection: X-Hop\r\nX-Hop: 1\r\n",
            &["x-hop", "connection"],
        ),
        (
            "field named in another case",
            "X-Hop: 1\r\nconnection: x-HOP\r\n",
            &["x-hop"],
        ),
        (
            "fields named by two Connections",
            "Connection: A\r\nA: 1\r\nConnection: b , c\r\nB: 2\r\nC: 3\r\n",
            &["a", "b", "c"],
        ),
        (
            "empty elements of Connection",
            "Connection: , ,X-Hop,,\r\nX-Hop: 1\r\n",
            &["x-hop"],
        ),
        (
            "Connection: keep-alive",
            "Connection: keep-alive\r\n",
            &["connection"],
        ),
        ("Keep-Alive", "Keep-Alive: timeout=5\r\n", &["keep-alive"]),
        (
            "Proxy-Connection",
            "Proxy-Connection: keep-alive\r\n",
            &["proxy-connection"],
        ),
        (
            "Proxy-Authorization",
            "Proxy-Authorization: Basic eDp5\r\n",
            &["proxy-authorization"],
        ),
        ("TE", "TE: gzip\r\n", &["te"]),
        (
            "Upgrade without Connection",
            "Upgrade: odd/9\r\n",
            &["upgrade", "connection"],
        ),
        (
            "HTTP2-Settings",
            "HTTP2-Settings: AAMAAABk\r\n",
            &["http2-settings"],
        ),
        (
            "underscores of hop-by-hop fields",
            "Keep_Alive: 1\r\nProxy_Authorization: x\r\n",
            &["keep_alive", "proxy_authorization"],
        ),
        (
            "underscores of forwarded fields",
            "X_Forwarded_Host: evil\r\nX-Forwarded_For: evil\r\n",
            &["x_forwarded_host", "x-forwarded_for"],
        ),
        (
            "authorization named by Connection",
            "Connection: Authorization\r\n",
            &["authorization"],
        ),
    ];
    let mut cases: Vec<Case> = dropped
        .into_iter()
        .map(|(name, fields, absent)| pass(name, get(fields), "GET /x").absent(absent))
        .collect();
    cases
        .push(pass("TE: trailers", get("TE: trailers, gzip\r\n"), "GET /x").own(&["TE: trailers"]));
    cases.push(
        pass(
            "X-Forwarded-For named by Connection",
            get("Connection: X-Forwarded-For\r\n"),
            "GET /x",
        )
        .own(&["X-Forwarded-For: @C"]),
    );
    cases.push(
        pass(
            "X-Forwarded-For of two proxies",
            get("X-Forwarded-For: 192.0.2.1\r\nx-forwarded-for: 192.0.2.2\r\n"),
            "GET /x",
        )
        .own(&["X-Forwarded-For: 192.0.2.1, 192.0.2.2, @C"]),
    );
    cases
}

fn identity() -> Vec<Case> {
    [
        "X-Remote-User",
        "x-remote-group",
        "X-Remote-Uid",
        "X-Remote-Extra-Scopes",
        "X_Remote_User",
        "X-Remote_Group",
        "X_Remote_Extra_Scopes",
        "Impersonate_User",
        "IMPERSONATE_GROUP",
    ]
    .into_iter()
    .map(|name| {
        pass(
            format!("identity in {name}"),
            get(format!("{name}: admin\r\n")),
            "GET /x",
        )
        .absent(&["x-remote-user", "impersonate-user"])
    })
    .collect()
}

fn sizes() -> Vec<Case> {
    let mib = 1 << 20;
    let many = |count: usize| {
        (0..count)
            .map(|n| format!("X-{n}: 1\r\n"))
            .collect::<String>()
    };
    let listed = |count: usize| (0..count).map(|n| format!("X-{n}: 1")).collect::<Vec<_>>();
    let query = format!("/x?{}", "q".repeat(65_500 - 200));
    let value = "v".repeat(100_000);
    let large: String = (0..8).map(|n| format!("X-{n}: {value}\r\n")).collect();
    let large_listed: Vec<_> = (0..8).map(|n| format!("X-{n}: {value}")).collect();
    vec![
        // `Host` and `Authorization` count.
        pass("1,000 fields", get(many(998)), "GET /x").fields(&listed(998)),
        reject("1,001 fields", get(many(999)), 431),
        reject("5,000 fields", get(many(4998)), 431),
        reject("10,000 equal fields", get("X: 1\r\n".repeat(10_000)), 431),
        pass("head of 800 KB", get(large), "GET /x").fields(&large_listed),
        pass(
            "long query",
            format!("GET @P{query} HTTP/1.1\r\n@A\r\n"),
            format!("GET {query}"),
        ),
        reject(
            "head above 1 MiB",
            get(format!("X: {}\r\n", "v".repeat(mib))),
            431,
        ),
        reject(
            "head above 1 MiB in many fields",
            get(format!("X: {}\r\n", "v".repeat(10_000)).repeat(110)),
            431,
        ),
        reject(
            "request line above 1 MiB",
            format!("GET @P/x?{} HTTP/1.1\r\n@A\r\n", "q".repeat(mib)),
            414,
        ),
        reject(
            "name above 1 MiB",
            get(format!("{}: 1\r\n", "n".repeat(mib))),
            431,
        ),
    ]
}
