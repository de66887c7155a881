//! Response headers that hold URLs, and the scope of service workers (CONFORMANCE C70, C74, C75).

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::cookies::CookieScope;
use super::html::rewrite_refresh;
use super::link::{InvalidUrl, LinkRewriter, text};
use crate::model::Target;

const SERVICE_WORKER_ALLOWED: HeaderName = HeaderName::from_static("service-worker-allowed");

/// Maximum number of URLs in lists of a response that are rewritten, because each grows by the
/// prefix. Browsers use a few.
const MAX_LINKS: usize = 1000;

/// Content of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// URL that browsers follow. An invalid one is an error of the target.
    Location,
    Url,
    /// `5; url=/x`.
    Refresh,
    /// `</x>; rel=next, </y>; rel=preload` (RFC 8288).
    Links,
    /// `default="/x", other="/y"`: URLs in quotes (RFC 9651).
    Strings,
    /// `default-src 'self'; report-uri /x`.
    Policy,
}

/// Rewrites the headers of a response so that they lead through the bastion, and keeps its cookies
/// and service workers at the target.
///
/// # Errors
/// [`InvalidUrl`] if `Location` is not a URL: passed on, it could lead a browser out of the prefix.
pub fn rewrite_headers(
    headers: &mut HeaderMap,
    target: &Target<'_>,
    cookies: CookieScope,
    links: impl Fn() -> LinkRewriter,
) -> Result<(), InvalidUrl> {
    // Most responses have none of these headers: one pass over the names is cheaper than lookups.
    let (mut has_urls, mut has_cookies) = (false, false);
    for name in headers.keys() {
        let name = name.as_str();
        has_urls |= content(name).is_some();
        has_cookies |= name == "set-cookie";
    }
    if has_urls {
        rewrite_urls(headers, &links())?;
    }
    if has_cookies || cookies.lacks_boundary() {
        cookies.leave(target, headers, links);
    }
    Ok(())
}

/// Rewrites the headers with URLs in place, which keeps their order.
fn rewrite_urls(headers: &mut HeaderMap, links: &LinkRewriter) -> Result<(), InvalidUrl> {
    let scopes = headers.get_all(SERVICE_WORKER_ALLOWED);
    if scopes.iter().any(|scope| leaves_prefix(links, scope)) {
        headers.remove(SERVICE_WORKER_ALLOWED);
    }
    let mut remaining_links = MAX_LINKS;
    for (name, value) in headers.iter_mut() {
        if let Some(content) = content(name.as_str())
            && let Some(rewritten) = rewrite_value(links, content, value, &mut remaining_links)?
        {
            *value = rewritten;
        }
    }
    Ok(())
}

fn content(name: &str) -> Option<Content> {
    Some(match name {
        "location" => Content::Location,
        "content-location" | "service-worker-allowed" | "sourcemap" | "x-sourcemap"
        // Followed by scripts: htmx, pjax and Turbolinks.
        | "hx-location" | "hx-push-url" | "hx-redirect" | "hx-replace-url" | "turbolinks-location"
        | "x-pjax-url" => Content::Url,
        "refresh" => Content::Refresh,
        "link" => Content::Links,
        "reporting-endpoints" | "speculation-rules" => Content::Strings,
        "content-security-policy" | "content-security-policy-report-only" => Content::Policy,
        _ => return None,
    })
}

/// Returns true if a scope of service workers is not below the prefix, also after it is rewritten.
fn leaves_prefix(links: &LinkRewriter, scope: &HeaderValue) -> bool {
    let scope = text(scope.as_bytes());
    match links.rewrite(&scope) {
        Ok(Some(_)) => false,
        Ok(None) => !links.is_below_prefix(&scope),
        Err(_) => true,
    }
}

/// Returns the value for the client, or `None` if it does not change.
fn rewrite_value(
    links: &LinkRewriter,
    content: Content,
    value: &HeaderValue,
    remaining_links: &mut usize,
) -> Result<Option<HeaderValue>, InvalidUrl> {
    let text = text(value.as_bytes());
    let rewritten = match content {
        Content::Location => links.rewrite(&text)?,
        Content::Url => links.rewrite(&text).ok().flatten(),
        Content::Refresh => rewrite_refresh(links, &text),
        Content::Links => rewrite_links(links, &text, remaining_links),
        Content::Strings => rewrite_strings(links, &text, remaining_links),
        Content::Policy => rewrite_policy(links, &text, remaining_links),
    };
    let value = rewritten.map(HeaderValue::try_from).transpose();
    value.map_err(|_| InvalidUrl(text.into_owned()))
}

/// Rewrites the URLs in angle brackets, outside of quoted parameters. Returns `None` if none of
/// them changes.
fn rewrite_links(links: &LinkRewriter, value: &str, remaining: &mut usize) -> Option<String> {
    let (mut out, mut changed) = (String::with_capacity(value.len()), false);
    let mut rest = value;
    while *remaining > 0
        && let Some(at) = rest.find(['<', '"'])
    {
        let (before, from) = rest.split_at(at + 1);
        out.push_str(before);
        if before.ends_with('"') {
            let end = end_of_quoted(from);
            out.push_str(&from[..end]);
            rest = &from[end..];
            continue;
        }
        let Some(end) = from.find('>') else {
            rest = from;
            break;
        };
        match links.rewrite(from[..end].trim_ascii()) {
            Ok(Some(url)) => {
                out.push_str(&url);
                changed = true;
                *remaining -= 1;
            }
            _ => out.push_str(&from[..end]),
        }
        rest = &from[end..];
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Rewrites the URLs in quotes. Returns `None` if none of them changes.
fn rewrite_strings(links: &LinkRewriter, value: &str, remaining: &mut usize) -> Option<String> {
    let (mut out, mut changed) = (String::with_capacity(value.len()), false);
    for (index, part) in value.split('"').enumerate() {
        if index > 0 {
            out.push('"');
        }
        changed |= push_rewritten(links, &mut out, part, index % 2 == 1, remaining);
    }
    changed.then_some(out)
}

/// Rewrites the URLs that a content security policy sends reports to. Its other URLs select sources
/// by their hosts. Returns `None` if none of them changes.
fn rewrite_policy(links: &LinkRewriter, value: &str, remaining: &mut usize) -> Option<String> {
    let (mut out, mut changed) = (String::with_capacity(value.len()), false);
    let mut is_report = None;
    for part in value.split_inclusive([';', ',', ' ', '\t']) {
        let word = part.trim_end_matches([';', ',', ' ', '\t']);
        let is_url = is_report == Some(true) && !word.is_empty();
        changed |= push_rewritten(links, &mut out, word, is_url, remaining);
        out.push_str(&part[word.len()..]);
        if part.ends_with([';', ',']) {
            is_report = None;
        } else if is_report.is_none() && !word.is_empty() {
            is_report = Some(word.eq_ignore_ascii_case("report-uri"));
        }
    }
    changed.then_some(out)
}

/// Appends a part of a header, rewritten if it is a URL. Returns true if it changes.
fn push_rewritten(
    links: &LinkRewriter,
    out: &mut String,
    part: &str,
    is_url: bool,
    remaining: &mut usize,
) -> bool {
    let url = (is_url && *remaining > 0).then(|| links.rewrite(part).ok().flatten());
    if let Some(url) = url.flatten() {
        out.push_str(&url);
        *remaining -= 1;
        true
    } else {
        out.push_str(part);
        false
    }
}

/// Returns the length of a quoted string behind its first quote, the last one included.
fn end_of_quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::Scheme;

    const PREFIX: &str = "/api/v1/namespaces/shop/services/web/proxy";

    fn links() -> LinkRewriter {
        LinkRewriter {
            prefix: PREFIX.into(),
            client_host: Some("bastion.example".into()),
            endpoint: "10.0.0.1:8080".parse().unwrap(),
            scheme: Scheme::Http,
            service: None,
            cluster_domain: "cluster.local".into(),
        }
    }

    fn rewritten(name: &'static str, value: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        rewrite_urls(&mut headers, &links()).unwrap();
        let values = headers.get_all(name).iter();
        values
            .map(|value| value.to_str().unwrap().replace(PREFIX, "P"))
            .collect()
    }

    #[test]
    fn urls_lead_through_the_bastion() {
        for (name, value, expected) in [
            ("location", "/x", "P/x"),
            ("location", "https://bastion.example/x", "P/x"),
            ("content-location", "http://10.0.0.1:8080/x?y", "P/x?y"),
            ("content-location", "x", "x"),
            ("content-location", "ftp://%zz", "ftp://%zz"),
            ("sourcemap", "/app.js.map", "P/app.js.map"),
            ("x-sourcemap", "app.js.map", "app.js.map"),
            ("refresh", "5; url=/x", "5; url=P/x"),
            ("refresh", "0;URL='http://10.0.0.1:8080/x'", "0;URL='P/x'"),
            ("refresh", "5", "5"),
            (
                "link",
                "</a>; rel=next, < /b >; title=\"</c>, \\\"</d>\"; rel=\"x\",<e>,<https://other.example/f>",
                "<P/a>; rel=next, <P/b>; title=\"</c>, \\\"</d>\"; rel=\"x\",<e>,<https://other.example/f>",
            ),
            ("link", "</a", "</a"),
            ("hx-redirect", "/x", "P/x"),
            ("hx-push-url", "false", "false"),
            ("hx-location", "{\"path\":\"/x\"}", "{\"path\":\"/x\"}"),
            ("x-pjax-url", "http://10.0.0.1:8080/x", "P/x"),
            (
                "reporting-endpoints",
                "main=\"/r\", x=\"https://other.example/r\";y=z, z=\"",
                "main=\"P/r\", x=\"https://other.example/r\";y=z, z=\"",
            ),
            (
                "speculation-rules",
                "\"/a.json\",\"b.json\"",
                "\"P/a.json\",\"b.json\"",
            ),
            (
                "content-security-policy",
                "img-src /x; Report-URI /r  https://bastion.example/s;script-src /y, report-uri /t",
                "img-src /x; Report-URI P/r  P/s;script-src /y, report-uri P/t",
            ),
            (
                "content-security-policy",
                "default-src 'self'; sandbox",
                "default-src 'self'; sandbox",
            ),
            ("service-worker-allowed", "/", "P/"),
            ("service-worker-allowed", "/app/", "P/app/"),
        ] {
            assert_eq!(rewritten(name, value), [expected], "{name}: {value}");
        }
    }

    #[test]
    fn service_workers_stay_below_the_prefix() {
        for value in ["https://other.example/", "../../", "..", "x/../../y", ":"] {
            assert_eq!(
                rewritten("service-worker-allowed", value),
                [""; 0],
                "{value}"
            );
        }
        assert_eq!(rewritten("service-worker-allowed", "./app/"), ["./app/"]);
    }

    #[test]
    fn values_grow_within_bounds() {
        let links = format!("</>, {}", "</a>,".repeat(10 * MAX_LINKS));
        let links = &rewritten("link", &links)[0];
        assert!(links.starts_with("<P/>, <P/a>,") && links.ends_with("</a>,"));
        assert_eq!(links.matches("<P/").count(), MAX_LINKS);
        for (name, value) in [
            ("reporting-endpoints", "\"/a\",".repeat(10 * MAX_LINKS)),
            (
                "content-security-policy",
                format!("report-uri {}", "/a ".repeat(10 * MAX_LINKS)),
            ),
        ] {
            assert_eq!(
                rewritten(name, &value)[0].matches("P/a").count(),
                MAX_LINKS,
                "{name}"
            );
        }
    }

    #[test]
    fn keeps_order_of_fields() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("link", "</a>"),
            ("location", "/x"),
            ("link", "<b>"),
            ("x-other", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        rewrite_urls(&mut headers, &links()).unwrap();
        let fields: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap().replace(PREFIX, "P")))
            .collect();
        let expected = [
            ("link", "<P/a>"),
            ("link", "<b>"),
            ("location", "P/x"),
            ("x-other", "1"),
        ];
        assert_eq!(
            fields,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
    }
}
