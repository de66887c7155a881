//! Lifetimes of requests, by which they are balanced.

use http::Method;

/// Lifetime of a request. Long ones do not count against short ones: with five watches on three
/// servers, the server with one of them would get nearly all requests that end quickly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    Short,
    /// That of a watch, a log that is followed, or an upgraded connection.
    Long,
}

/// Returns true for a request whose response may take as long as it likes to begin, and to end.
pub fn is_long(method: &Method, path: &str, query: Option<&str>) -> bool {
    is_watch(method, path, query)
        || *method == Method::GET && is_log(path) && is_set(query, "follow")
}

/// Returns true for `/api/v1/namespaces/{namespace}/pods/{name}/log`.
fn is_log(path: &str) -> bool {
    let rest = path.strip_prefix("/api/v1/namespaces/");
    let mut segments = rest.unwrap_or_default().split('/').skip(1);
    segments.next() == Some("pods") && segments.nth(1) == Some("log") && segments.next().is_none()
}

/// Returns true for a parameter that the API server reads as true.
fn is_set(query: Option<&str>, name: &str) -> bool {
    let pairs = query.unwrap_or_default().split('&');
    let mut values = pairs.filter_map(|pair| match pair.split_once('=') {
        None if pair == name => Some(""),
        Some((key, value)) if key == name => Some(value),
        _ => None,
    });
    values
        .next()
        .is_some_and(|value| !matches!(value, "0" | "false"))
}

/// Returns true for a watch, of the query or of the deprecated paths.
pub fn is_watch(method: &Method, path: &str, query: Option<&str>) -> bool {
    let by_query = is_set(query, "watch");
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

    #[test]
    fn followed_log_is_long() {
        let log = "/api/v1/namespaces/shop/pods/web/log";
        for (path, query, expected) in [
            (log, Some("container=a&follow=true"), true),
            (log, Some("follow"), true),
            (log, Some("follow=false"), false),
            (log, None, false),
            ("/api/v1/namespaces/shop/pods/log", Some("follow=1"), false),
            (
                "/api/v1/namespaces/shop/pods/web/proxy/log",
                Some("follow=1"),
                false,
            ),
            ("/api/v1/pods", Some("watch=1"), true),
        ] {
            let is_long = is_long(&Method::GET, path, query);
            assert_eq!(is_long, expected, "{path} {query:?}");
        }
    }
}
