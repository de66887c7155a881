//! Hosts, sites, and the flags of the filter.

use super::{ECHO, EMPTY_LISTS, FILTERED, IPV6, NOTHING_ACCEPTED, Short, UNFILTERED};
use crate::desk::side_by_side::compare::Expected::{CrossSite, Differs, Forbidden, Same};

pub const HOST_ROWS: &[Short] = &[
    (ECHO, "GET /a", "Host: localhost:8001", Same),
    (ECHO, "GET /a", "Host: 127.0.0.1", Same),
    (ECHO, "GET /a", "Host: 127.0.0.1:1", Same),
    (ECHO, "GET /a", "Host: [::1]", Same),
    (
        ECHO,
        "GET /a",
        "Host: [::1]:8001",
        Differs(
            403,
            200,
            "GET /a",
            "kubectl removes the brackets only if a port follows them",
        ),
    ),
    (
        ECHO,
        "GET /a",
        "Host: [::2]:8001",
        Forbidden("--accept-hosts"),
    ),
    (
        ECHO,
        "GET /a",
        "Host: LOCALHOST",
        Forbidden("--accept-hosts"),
    ),
    (
        ECHO,
        "GET /a",
        "Host: localhost.",
        Forbidden("--accept-hosts"),
    ),
    (
        ECHO,
        "GET /a",
        "Host: evil.com",
        Forbidden("--accept-hosts"),
    ),
    (
        ECHO,
        "GET /a",
        "Host: localhost.evil.com:80",
        Forbidden("--accept-hosts"),
    ),
    (
        ECHO,
        "GET /a",
        "Host: 127a0b0c1",
        Forbidden("--accept-hosts"),
    ),
    (ECHO, "GET /a", "Host:", Forbidden("--accept-hosts")),
    (ECHO, "GET http://localhost/a", "Host: evil.com", Same),
    (
        ECHO,
        "GET http://evil.com/a",
        "",
        Forbidden("--accept-hosts"),
    ),
    (IPV6, "GET /a", "Host: [::1]", Same),
    (IPV6, "GET /a", "", Same),
    (ECHO, "OPTIONS *", "", Same),
    (ECHO, "CONNECT localhost:80", "", Same),
    (
        ECHO,
        "CONNECT /a",
        "",
        Differs(
            200,
            405,
            "Method Not Allowed",
            "the API server has no such method either",
        ),
    ),
    (ECHO, "GET /a HTTP/1.0", "", Same),
    (
        ECHO,
        "GET /a HTTP/1.0",
        "No-Host:\nHost: ",
        Forbidden("--accept-hosts"),
    ),
];

pub const SITE_ROWS: &[Short] = &[
    (ECHO, "GET /a", "Origin: http://localhost", Same),
    (
        ECHO,
        "POST /a",
        "Host: localhost:8001\nOrigin: http://localhost:8001",
        Same,
    ),
    (
        ECHO,
        "GET /a",
        "Sec-Fetch-Site: same-origin\nSec-Fetch-Mode: cors",
        Same,
    ),
    (
        ECHO,
        "GET /a",
        "Sec-Fetch-Site: none\nSec-Fetch-Mode: navigate",
        Same,
    ),
    (
        ECHO,
        "GET /a",
        "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: document",
        Same,
    ),
    (ECHO, "POST /a", "Origin: https://evil.example", CrossSite),
    (ECHO, "GET /a", "Origin: null", CrossSite),
    (ECHO, "GET /a", "Origin: http://localhost:3000", CrossSite),
    (
        ECHO,
        "GET /a",
        "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors",
        CrossSite,
    ),
    (
        ECHO,
        "GET /a",
        "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: iframe",
        CrossSite,
    ),
    (
        ECHO,
        "POST /a",
        "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate\nSec-Fetch-Dest: document",
        CrossSite,
    ),
    (UNFILTERED, "POST /a", "Origin: https://evil.example", Same),
];

pub const FILTER_ROWS: &[Short] = &[
    (FILTERED, "GET /version", "", Same),
    (FILTERED, "GET /version/a", "", Forbidden("--accept-paths")),
    (FILTERED, "GET /api/v1/pods", "", Same),
    (FILTERED, "GET /api/v1", "Host: example.com:443", Same),
    (FILTERED, "GET /api/v1", "Host: localhost.evil.com", Same),
    (
        FILTERED,
        "GET /api/v1",
        "Host: 127.0.0.1",
        Forbidden("--accept-hosts"),
    ),
    (
        FILTERED,
        "GET /api/v1/secrets",
        "",
        Forbidden("--reject-paths"),
    ),
    (
        FILTERED,
        "GET /api/v1/%73ecrets/a",
        "",
        Forbidden("--reject-paths"),
    ),
    (
        FILTERED,
        "GET /api/v1/a.php",
        "",
        Forbidden("--reject-paths"),
    ),
    (FILTERED, "GET /api/v1/axphp", "", Same),
    (FILTERED, "GET /apis", "", Forbidden("--accept-paths")),
    (
        FILTERED,
        "DELETE /api/v1/pods/a",
        "",
        Forbidden("--reject-methods"),
    ),
    (
        FILTERED,
        "POST /api/v1/pods",
        "",
        Forbidden("--reject-methods"),
    ),
    (FILTERED, "PUT /api/v1/pods/a", "", Same),
    (FILTERED, "GET /api/v1/namespaces/a/pods/b/exec", "", Same),
    (
        EMPTY_LISTS,
        "POST /api/v1/namespaces/a/pods/b/exec",
        "",
        Same,
    ),
    (
        EMPTY_LISTS,
        "GET /a",
        "Host: evil.com",
        Forbidden("--accept-hosts"),
    ),
    (NOTHING_ACCEPTED, "GET /a", "", Forbidden("--accept-paths")),
    (
        UNFILTERED,
        "GET /api/v1/namespaces/a/pods/b/exec",
        "Host: evil.com",
        Same,
    ),
];
