//! Headers of requests and responses on the way to a target.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::http::{KUBE_BASTION_HOST, remove_hop_by_hop, tokens};

/// Removes the hop-by-hop fields, and returns true for an upgrade, whose fields stay.
pub fn take_upgrade(headers: &mut HeaderMap) -> bool {
    let requested = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(tokens)
        .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let protocol = headers.get(header::UPGRADE).cloned();
    remove_hop_by_hop(headers, |name| name == KUBE_BASTION_HOST.as_str());
    match protocol {
        Some(protocol) if requested => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol);
            true
        }
        _ => false,
    }
}

pub fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<&HeaderValue>) {
    match value {
        Some(value) => {
            headers.insert(name, value.clone());
        }
        None => {
            headers.remove(name);
        }
    }
}

pub fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Removes the prefix of a subresource from the paths of redirects and cookies.
pub fn strip_prefix(headers: &mut HeaderMap, prefix: &str) {
    if let Some(location) = headers.get(header::LOCATION)
        && let Some(rest) = location
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix(prefix))
        && rest.starts_with('/')
        && let Ok(location) = HeaderValue::from_str(rest)
    {
        headers.insert(header::LOCATION, location);
    }
    let cookies: Vec<_> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .cloned()
        .collect();
    if cookies.is_empty() {
        return;
    }
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        let stripped = cookie
            .to_str()
            .ok()
            .map(|text| text.replace(&format!("={prefix}/"), "=/"));
        let stripped = stripped.and_then(|text| HeaderValue::from_str(&text).ok());
        headers.append(header::SET_COOKIE, stripped.unwrap_or(cookie));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let mut headers = HeaderMap::new();
        headers.extend(lines);
        headers
    }

    #[test]
    fn hop_by_hop_fields_stay_only_for_an_upgrade() {
        let mut websocket = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
            ("kube-bastion-host", "forged"),
            ("proxy-authorization", "forged"),
        ]);
        assert!(take_upgrade(&mut websocket));
        let expected = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
        ];
        assert_eq!(websocket, headers(&expected));
        let mut plain = headers(&[("connection", "keep-alive"), ("upgrade", "h2c")]);
        assert!(!take_upgrade(&mut plain));
        assert!(plain.is_empty());
    }

    #[test]
    fn prefix_is_removed_from_redirects_and_cookies() {
        let mut rewritten = headers(&[
            ("location", "/api/v1/nodes/n/proxy/login?a"),
            ("set-cookie", "a=1; Path=/api/v1/nodes/n/proxy/; HttpOnly"),
        ]);
        strip_prefix(&mut rewritten, "/api/v1/nodes/n/proxy");
        let expected = [
            ("location", "/login?a"),
            ("set-cookie", "a=1; Path=/; HttpOnly"),
        ];
        assert_eq!(rewritten, headers(&expected));
        let other = [("location", "https://a.example/"), ("set-cookie", "a=1")];
        let mut kept = headers(&other);
        strip_prefix(&mut kept, "/api/v1/nodes/n/proxy");
        assert_eq!(kept, headers(&other));
    }
}
