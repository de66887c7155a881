//! Header rewriting of requests and responses (CONFORMANCE chapters 6 and 7).

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::ForwardError;
use super::upgrade::Upgrade;
use crate::http::{
    DEFAULT_CACHE_CONTROL, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, MAX_HEADERS,
    RequestHead, is_hop_by_hop, remove_hop_by_hop, rules_origin, speaks_for_origin,
};
use crate::model::Target;
use crate::model::path::SubPathDecoding;
use crate::model::text::push_ip;

const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// Characters escaped in `X-Forwarded-Uri`, which backends insert into pages: those that could end
/// an HTML attribute or begin a tag (C64).
const FORWARDED_URI_ESCAPES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'\\')
    .add(b'^')
    .add(b'|');

/// Rewrites the head of a request for the backend.
#[derive(Debug)]
pub struct RequestHeaderRewriter<'a> {
    pub target: &'a Target<'a>,
    pub decoding: SubPathDecoding,
    /// The endpoint gets the whole path, with the prefix.
    pub keeps_path: bool,
    /// Address that is appended to `X-Forwarded-For`.
    pub address: IpAddr,
    /// The client uses TLS.
    pub secure: bool,
    /// Host that a trusted front proxy reports; without one, that of the request applies.
    pub host: Option<&'a HeaderValue>,
    pub upgrade: Option<&'a Upgrade>,
    pub has_body: bool,
}

impl RequestHeaderRewriter<'_> {
    /// Converts the client's request head: target to the path of the backend, `Host` kept or set to
    /// the host that a trusted front proxy reports, hop-by-hop headers and underscore variants of
    /// protected names removed, forwarded headers and those of the upgrade added.
    pub fn rewrite(&self, head: &mut RequestHead) {
        let prefix = self.target.plain_prefix();
        let sub_path = self.target.sub_path(self.decoding);
        // Read first: the authority is in the target, which is replaced below.
        let host = self.host.cloned().or_else(|| host(head));
        remove_hop_by_hop(&mut head.headers, is_underscore_variant);
        // After the removal, which would remove the new `Connection` and `Upgrade` headers.
        if let Some(upgrade) = self.upgrade {
            upgrade.write_request(head);
        }
        let headers = &mut head.headers;
        // `%` is not in the set, so the escapes of the path stay as they are.
        let escaped: Cow<'_, str> = utf8_percent_encode(&sub_path, FORWARDED_URI_ESCAPES).into();
        let uri = Bytes::from([&*prefix, &escaped].concat());
        // Describes the part of the path that was removed; applications put it before their links.
        set(
            headers,
            FORWARDED_PREFIX,
            (!self.keeps_path && !prefix.is_empty()).then(|| uri.slice(..prefix.len())),
        );
        // kube-apiserver sets it on plain requests only (kubernetes#67878).
        if self.upgrade.is_none() {
            set(headers, FORWARDED_URI, Some(uri));
        }
        if head.version == Version::HTTP_2 {
            join_cookies(headers);
        }
        append_address(headers, self.address);
        // Scheme and host are replaced, not appended: values from the client are not trusted, and
        // those of a trusted front proxy have been read.
        headers.insert(FORWARDED_PROTO, if self.secure { HTTPS } else { HTTP });
        match host {
            Some(host) => {
                // `Connection` may have named it, which must not remove it.
                if self.host.is_some()
                    || head.target.authority().is_some()
                    || !headers.contains_key(header::HOST)
                {
                    headers.insert(header::HOST, host.clone());
                }
                headers.insert(FORWARDED_HOST, host);
            }
            None => {
                // HTTP/1.0, or HTTP/2 with neither `:authority` nor `Host`. A value of the client
                // must not take its place.
                headers.remove(FORWARDED_HOST);
            }
        }
        if !self.has_body && matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
            // Some backends require a length for methods that usually have a body (RFC 9110
            // section 8.6).
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        head.target = if self.keeps_path {
            head.target.with_path(&[&*prefix, &sub_path].concat())
        } else {
            head.target.with_path(&sub_path)
        };
    }
}

/// Replaces a header of the client by a value, or removes it if there is none or if the value is
/// not that of a header.
fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<Bytes>) {
    match value.map(HeaderValue::from_maybe_shared) {
        Some(Ok(value)) => {
            headers.insert(name, value);
        }
        Some(Err(_)) | None => {
            headers.remove(name);
        }
    }
}

/// Rewrites the head of a backend's response for the client: removes hop-by-hop headers (C72), and
/// those that speak for the origin (C70), except for grants of cross-origin access if it refuses an
/// upgrade; disables caching if the backend does not set `Cache-Control` (C71).
///
/// # Errors
/// [`ForwardError::TooManyHeaders`] if it has more than [`MAX_HEADERS`] fields.
pub fn sanitize_response_headers(
    headers: &mut HeaderMap,
    refuses_upgrade: bool,
) -> Result<(), ForwardError> {
    // Before any header is added: `HeaderMap` panics beyond its maximum size.
    if headers.len() > MAX_HEADERS {
        return Err(ForwardError::TooManyHeaders);
    }
    remove_hop_by_hop(
        headers,
        if refuses_upgrade {
            rules_origin
        } else {
            speaks_for_origin
        },
    );
    // It describes requests only.
    headers.remove(header::TE);
    // Responses depend on the caller's permissions, so a shared cache must not keep them by
    // default.
    if let Entry::Vacant(vacant) = headers.entry(header::CACHE_CONTROL) {
        vacant.insert(DEFAULT_CACHE_CONTROL);
    }
    Ok(())
}

/// Removes the header fields of an interim response that stay on its hop: hop-by-hop fields, those
/// that speak for the origin, and the framing of a body, which it does not have (RFC 9112 section
/// 6.1).
pub(super) fn sanitize_interim_headers(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers, |name| {
        speaks_for_origin(name) || matches!(name, "content-length" | "trailer")
    });
    headers.remove(header::TE);
}

/// Removes trailers of a request that an endpoint could mistake for headers of the bastion, in any
/// spelling. The codec has removed those that frame, route or authenticate.
pub fn sanitize_request_trailers(
    trailers: &mut HeaderMap,
    is_identity: &dyn Fn(&HeaderName) -> bool,
) {
    let removed: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            is_identity(name)
                || is_underscore_variant(name.as_str())
                || name.as_str().starts_with("x-forwarded-")
                || *name == "audit-id"
        })
        .cloned()
        .collect();
    for name in removed {
        trailers.remove(name);
    }
}

/// Returns true if CGI-like backends (WSGI, PHP) confuse the name with a header that the bastion
/// removes or sets. They convert `-` to `_`, so `X_Forwarded_Host` would replace or duplicate the
/// real `X-Forwarded-Host` (C60). The `authenticate` module removes such variants of identity and
/// impersonation headers, whose names are configured there.
fn is_underscore_variant(name: &str) -> bool {
    // Most names need only this search for one byte.
    if !name.as_bytes().contains(&b'_') {
        return false;
    }
    let name = name.replace('_', "-");
    is_hop_by_hop(&name)
        || name.starts_with("x-forwarded-")
        || matches!(&*name, "accept-encoding" | "audit-id" | "content-length")
}

/// Returns the client's `Host`, or `:authority` of HTTP/2 (C59).
fn host(head: &RequestHead) -> Option<HeaderValue> {
    // The authority replaces a `Host` header, both in HTTP/2 (RFC 9113 section 8.3.1) and in the
    // absolute form of HTTP/1.1 (RFC 9112 section 3.2.2).
    let authority = head
        .target
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority).ok());
    authority.or_else(|| head.headers.get(header::HOST).cloned())
}

/// Appends the address of the connection to the `X-Forwarded-For` of earlier proxies, joined into
/// one header (C63).
fn append_address(headers: &mut HeaderMap, address: IpAddr) {
    let mut value = Vec::with_capacity(48);
    // One line is equivalent to several (RFC 9110 section 5.3), of which some backends read only
    // one.
    for earlier in headers.get_all(FORWARDED_FOR) {
        value.extend_from_slice(earlier.as_bytes());
        value.extend_from_slice(b", ");
    }
    push_ip(&mut value, address);
    let value = HeaderValue::from_maybe_shared(Bytes::from(value));
    headers.insert(
        FORWARDED_FOR,
        value.expect("header values joined with an address are a valid header value"),
    );
}

/// Joins the `Cookie` headers of HTTP/2 into one, because HTTP/1.1 allows only one (RFC 9113
/// section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1 {
        // The separator of RFC 9113. A comma would become part of a cookie.
        let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
            .expect("joined header values are a valid header value");
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests;
