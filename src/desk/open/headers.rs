//! Headers of requests and responses on the way to a target.

use http::{HeaderMap, HeaderName, HeaderValue, header};

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
