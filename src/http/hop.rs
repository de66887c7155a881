//! Header fields that do not pass: hop-by-hop ones (RFC 9110 section 7.6.1), and those of responses
//! that speak for the whole origin.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::header_list::tokens;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Removes the hop-by-hop fields, those named by `Connection`, and those for which `also` returns
/// true. `Trailer` is kept, because trailers are forwarded (C72), and so is `TE: trailers`, which
/// gRPC requires (C66).
///
/// Most messages have none of these fields: one pass over the present names is cheaper than a
/// lookup for each removable one.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, also: fn(&str) -> bool) {
    let listed = |name: &&HeaderName| is_hop_by_hop(name.as_str()) || also(name.as_str());
    let present: Vec<HeaderName> = headers.keys().filter(listed).cloned().collect();
    if present.contains(&header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|token| HeaderName::from_bytes(token).ok())
            // Both are handled below and by their own rules, whether listed or not.
            .filter(|name| *name != header::TE && *name != header::TRAILER)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in present {
        let values = headers.get_all(&name);
        if name == header::TE
            && values
                .iter()
                .flat_map(tokens)
                .any(|token| token.eq_ignore_ascii_case(b"trailers"))
        {
            headers.insert(header::TE, TRAILERS);
        } else {
            headers.remove(name);
        }
    }
}

/// Returns true for fields that are hop-by-hop even if `Connection` does not name them.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            // Part of an h2c offer (RFC 7540 section 3.2.1), which is never forwarded.
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Returns true for headers that speak for the whole origin, or for its resources to other origins.
/// All applications behind the bastion share it, so that one of them would speak for the others
/// (C70).
pub fn speaks_for_origin(name: &str) -> bool {
    rules_origin(name)
        || matches!(
            name,
            "access-control-allow-credentials"
                | "access-control-allow-headers"
                | "access-control-allow-methods"
                | "access-control-allow-origin"
        )
}

/// Returns true for headers that set rules for the whole origin or host: alternative services (RFC
/// 7838), transport security, reporting, client hints, cleared storage; and for the predecessor of
/// `Set-Cookie` (RFC 2965), whose lists of cookies are not scoped.
pub fn rules_origin(name: &str) -> bool {
    matches!(
        name,
        "accept-ch"
            | "alt-svc"
            | "clear-site-data"
            | "critical-ch"
            | "expect-ct"
            | "nel"
            | "origin-agent-cluster"
            | "public-key-pins"
            | "public-key-pins-report-only"
            | "report-to"
            | "set-cookie2"
            | "set-login"
            | "strict-transport-security"
    )
}
