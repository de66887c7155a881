//! Audit ids: they identify a request in the logs of the client, the bastion and the endpoint.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Header that identifies a request in the logs of the client, the bastion and the endpoint.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Returns the audit id of the client (CONFORMANCE C68), or a new one, and makes sure that the
/// headers have it: it is forwarded to the endpoint and sent back to the client.
pub(super) fn audit_id(headers: &mut HeaderMap) -> HeaderValue {
    // A full map (24,576 names) cannot take one more, and `insert` would panic. Its request is
    // rejected later, and the rejection still has an id.
    if let Ok(entry) = headers.try_entry(AUDIT_ID) {
        return entry.or_insert_with(new_audit_id).clone();
    }
    headers.get(AUDIT_ID).cloned().unwrap_or_else(new_audit_id)
}

/// Returns a random UUID (RFC 9562, version 4). It identifies a request and protects nothing, so a
/// generator without a system call per request is enough.
pub(super) fn new_audit_id() -> HeaderValue {
    let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    HeaderValue::from_str(
        id.hyphenated()
            .encode_lower(&mut uuid::Uuid::encode_buffer()),
    )
    .expect("hex digits and dashes make a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generates_uuid_as_audit_id_unless_client_sends_one() {
        let id = new_audit_id();
        let id = id.to_str().unwrap();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        assert!("89ab".contains(&id[19..20]), "{id}");
        assert_ne!(new_audit_id(), new_audit_id());
        let mut headers = HeaderMap::new();
        headers.insert(AUDIT_ID, HeaderValue::from_static("mine"));
        assert_eq!(audit_id(&mut headers), "mine");
    }

    #[test]
    fn returns_audit_id_for_full_header_map() {
        let mut headers = HeaderMap::new();
        let mut n = 0;
        while headers
            .try_append(
                HeaderName::try_from(format!("x{n}")).unwrap(),
                HeaderValue::from_static("1"),
            )
            .is_ok()
        {
            n += 1;
        }
        assert_eq!(audit_id(&mut headers).len(), 36, "{n} names");
    }
}
