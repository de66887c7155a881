//! Header fields of one hop: their number, and those that stay on it (RFC 9110 section 7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::header_list::tokens;

/// Header fields of one message, and trailer fields, on either side. Browsers send about 20, apps
/// that spread a session over cookies some hundred, and HTTP/1.1 stops at hyper's 100 before. It is
/// far below the 24,576 names at which `http::HeaderMap` panics, so that whatever the bastion adds
/// itself has room.
pub const MAX_HEADERS: usize = 1000;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Removes the hop-by-hop fields, those that `Connection` names, and what `also` names. `Trailer`
/// is kept, because the trailers that it announces are passed (C72), and so is `TE: trailers`, by
/// which gRPC asks for them (C66).
///
/// Most messages have none of them: one look at the names that are there is cheaper than a look-up
/// for each that might.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, also: fn(&str) -> bool) {
    let listed = |name: &&HeaderName| is_hop_by_hop(name.as_str()) || also(name.as_str());
    let present: Vec<HeaderName> = headers.keys().filter(listed).cloned().collect();
    if present.contains(&header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|token| HeaderName::from_bytes(token).ok())
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

/// Whether a field is for one hop, whatever `Connection` says.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            // Belongs to an offer of h2c (RFC 7540 section 3.2.1), which is never passed on.
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
