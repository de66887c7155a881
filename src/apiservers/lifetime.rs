//! Lifetimes of requests, by which they are balanced.

use http::Method;

/// Lifetime of a request. Long ones do not count against short ones: with five watches on three
/// servers, the server with one of them would get nearly all requests that end quickly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    Short,
    /// That of a watch or an upgraded connection.
    Long,
}

/// Returns true for a watch, of the query or of the deprecated paths.
pub fn is_watch(method: &Method, path: &str, query: Option<&str>) -> bool {
    let pairs = query.unwrap_or_default().split('&');
    let mut values = pairs.filter_map(|pair| match pair.split_once('=') {
        None if pair == "watch" => Some(""),
        Some(("watch", value)) => Some(value),
        _ => None,
    });
    let by_query = values
        .next()
        .is_some_and(|value| !matches!(value, "0" | "false"));
    let mut segments = path.split('/').skip(1);
    let by_path = match segments.next() {
        Some("api") => segments.nth(1) == Some("watch"),
        Some("apis") => segments.nth(2) == Some("watch"),
        _ => false,
    };
    *method == Method::GET && (by_query || by_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_watches() {
        for (method, path, query, expected) in [
            (Method::GET, "/api/v1/pods", Some("watch=true"), true),
            (Method::GET, "/api/v1/pods", Some("limit=1&watch=1"), true),
            (Method::GET, "/api/v1/pods", Some("watch"), true),
            (Method::GET, "/api/v1/pods", Some("watch=0"), false),
            (Method::GET, "/api/v1/pods", Some("watch=false"), false),
            (Method::GET, "/api/v1/pods", None, false),
            (Method::DELETE, "/api/v1/pods", Some("watch=true"), false),
            (Method::GET, "/api/v1/watch/pods", None, true),
            (Method::GET, "/apis/apps/v1/watch/deployments", None, true),
            (Method::GET, "/apis/watch/v1/x", None, false),
        ] {
            assert_eq!(is_watch(&method, path, query), expected, "{path} {query:?}");
        }
    }
}
