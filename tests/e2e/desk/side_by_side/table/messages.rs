//! Headers of requests, responses, upgrades and bodies.

use super::{ADMIN, APPENDING, CUSTOM, ECHO, Long, Short, TOKEN};
use crate::desk::side_by_side::compare::Expected::{Differs, Forbidden, Guessed, Same};

pub const HEADER_ROWS: &[Short] = &[
    (ECHO, "GET /a", "User-Agent: test/1", Same),
    (ECHO, "GET /a", "Accept-Encoding: br", Same),
    (
        ECHO,
        "GET /a",
        "X-Forwarded-For: 192.0.2.1\nX-Forwarded-For: 192.0.2.2",
        Same,
    ),
    (
        ECHO,
        "GET /a",
        "X-Forwarded-Host: a\nX-Forwarded-Proto: https\nForwarded: for=a",
        Same,
    ),
    (
        ECHO,
        "GET /a",
        "Connection: X-Foo\nX-Foo: 1\nX-Bar: 2",
        Same,
    ),
    (
        ECHO,
        "GET /a",
        "Keep-Alive: timeout=5\nProxy-Connection: keep-alive",
        Same,
    ),
    (ECHO, "GET /a", "TE: trailers, deflate", Same),
    (ECHO, "GET /a", "Proxy-Authorization: Basic YTpi", Same),
    (ECHO, "GET /a", "Authorization: Bearer own", Same),
    (
        ECHO,
        "GET /a",
        "Cookie: a=1; b=2\nX-Empty:\nX-A: 1\nX-A: 2",
        Same,
    ),
    (ECHO, "GET /a", "Impersonate-User: jane", Same),
    (ECHO, "GET /a", "Upgrade: websocket", Same),
    (ECHO, "HEAD /a", "", Same),
    (ECHO, "OPTIONS /a", "", Same),
    (ECHO, "DELETE /a", "", Same),
    (ECHO, "POST /a", "", Same),
    (ECHO, "PUT /a", "Content-Length: 0", Same),
    (ECHO, "PATCH /a", "", Same),
    (ECHO, "PROPFIND /a", "", Same),
];

pub const RESPONSE_ROWS: &[Short] = &[
    (ECHO, "GET /big", "", Same),
    (ECHO, "HEAD /big", "", Same),
    (ECHO, "GET /no-content", "", Same),
    (ECHO, "GET /not-modified", "If-None-Match: \"a\"", Same),
    (ECHO, "GET /redirect", "", Same),
    (ECHO, "GET /absolute-redirect", "", Same),
    (CUSTOM, "GET /custom/redirect", "", Same),
    (ECHO, "GET /error", "", Guessed),
    (ECHO, "GET /teapot", "", Guessed),
    (ECHO, "GET /retry", "", Same),
    (ECHO, "GET /early", "", Guessed),
    (ECHO, "GET /trailers", "", Same),
    (ECHO, "GET /chunks", "", Same),
    (ECHO, "GET /cookies", "", Guessed),
    (ECHO, "GET /hops", "", Guessed),
    (ECHO, "GET /page", "", Same),
];

const REFUSED: &str = "any response to an upgrade but 101 is a refusal, which the client gets";

const WEBSOCKET: &str = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\
                         Sec-WebSocket-Protocol: v5.channel.k8s.io";

pub const UPGRADE_ROWS: &[Short] = &[
    (ECHO, "GET /switch?a=b&c=%2F", WEBSOCKET, Same),
    (CUSTOM, "GET /custom/switch?a=b", WEBSOCKET, Same),
    (APPENDING, "GET /switch?a=b", WEBSOCKET, Same),
    (
        ECHO,
        "POST /switch",
        "Connection: Upgrade\nUpgrade: SPDY/3.1\nContent-Length: 0",
        Same,
    ),
    (ECHO, "GET /refuse", WEBSOCKET, Same),
    (
        ECHO,
        "GET /a",
        WEBSOCKET,
        Differs(500, 200, "GET /a", REFUSED),
    ),
    (
        ECHO,
        "GET /redirect",
        WEBSOCKET,
        Differs(500, 302, "location: /elsewhere", REFUSED),
    ),
    (
        ECHO,
        "GET /a",
        "Connection: Upgrade",
        Differs(500, 200, "GET /a", "without a protocol it is no upgrade"),
    ),
    (
        ECHO,
        "GET /api/v1/namespaces/a/pods/b/attach",
        WEBSOCKET,
        Forbidden("--reject-paths"),
    ),
];

const REVIEW: &str = r#"{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"resourceAttributes":{"verb":"get","resource":"pods","namespace":"shop"}}}"#;

pub const BODY_ROWS: &[Long] = &[
    (ECHO, "POST /a", "Content-Type: text/plain", "body", Same),
    (ECHO, "PUT /a", "", "body", Same),
    (ECHO, "DELETE /a", "", "body", Same),
    (ECHO, "GET /a", "", "body", Same),
    (ECHO, "POST /a", "Expect: 100-continue", "body", Same),
    (
        ECHO,
        "POST /a",
        "Transfer-Encoding: chunked",
        "4\r\nbody\r\n0\r\n\r\n",
        Same,
    ),
    (
        ECHO,
        "POST /a",
        "Transfer-Encoding: chunked\nTrailer: X-End",
        "4\r\nbody\r\n0\r\nX-End: 1\r\n\r\n",
        Differs(
            200,
            200,
            "trailer x-end: 1",
            "kubectl drops trailers of requests",
        ),
    ),
    (ECHO, "POST /a", "", "BIG", Same),
    (
        ADMIN,
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "Content-Type: application/json\nUser-Agent: test/1",
        REVIEW,
        Same,
    ),
    (
        ADMIN,
        "POST /api/v1/namespaces/shop/configmaps",
        "Content-Type: application/json",
        "{",
        Same,
    ),
    (
        ADMIN,
        "PATCH /api/v1/namespaces/shop/services/web",
        "Content-Type: text/plain",
        "{}",
        Same,
    ),
    (
        TOKEN,
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "Content-Type: application/json\nUser-Agent: test/1",
        REVIEW,
        Same,
    ),
];
