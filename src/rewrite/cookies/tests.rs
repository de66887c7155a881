//! Unit tests of the cookies of targets. `{P}` and `{T}` stand for the prefix and the tag of the
//! target in values, `{OP}` and `{OT}` for those of another one.

use super::super::restore_headers;
use super::*;
use crate::model::Scheme;
use http::HeaderName;

const PREFIX: &str = "/api/v1/namespaces/shop/services/web/proxy";
const OTHER: &str = "/api/v1/namespaces/shop/services/api/proxy";

/// Fields of a request that only browsers send.
const BROWSER: &[(&str, &str)] = &[("sec-fetch-mode", "navigate")];

fn links(prefix: &str) -> LinkRewriter {
    LinkRewriter {
        prefix: prefix.into(),
        client_host: Some("bastion.example".into()),
        endpoint: "10.0.0.1:8080".parse().unwrap(),
        scheme: Scheme::Http,
        service: None,
        cluster_domain: "cluster.local".into(),
    }
}

fn tag_of(prefix: &str) -> String {
    tag(&Target::parse(prefix).unwrap())
}

fn filled(text: &str) -> String {
    text.replace("{P}", PREFIX)
        .replace("{T}", &tag_of(PREFIX))
        .replace("{OP}", OTHER)
        .replace("{OT}", &tag_of(OTHER))
}

/// Returns the cookies that a target gets of a request with the lines `cookies`, and the scope.
fn entered(path: &str, fields: &[(&str, &str)], cookies: &[&str]) -> (Vec<String>, CookieScope) {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
    }
    for cookie in cookies {
        headers.append(COOKIE, filled(cookie).parse().unwrap());
    }
    let (scope, _) = restore_headers(&Target::parse(path).unwrap(), &mut headers);
    (values(&headers, &COOKIE), scope)
}

/// Returns the cookies that a client gets of a response with the lines `cookies`.
fn left(path: &str, scope: CookieScope, cookies: &[&str]) -> Vec<String> {
    let target = Target::parse(path).unwrap();
    let mut headers = HeaderMap::new();
    for cookie in cookies {
        headers.append(SET_COOKIE, filled(cookie).parse().unwrap());
    }
    scope.leave(&target, &mut headers, || links(&target.shown_prefix()));
    values(&headers, &SET_COOKIE)
}

fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values
        .map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
        .collect()
}

#[test]
fn cookies_stay_below_the_prefix() {
    for (value, expected) in [
        ("a=1", "a=1"),
        ("a=1; Path=/", "a=1; Path={P}/"),
        (
            "a=1;path = /kiali ;HttpOnly",
            "a=1; Path={P}/kiali;HttpOnly",
        ),
        (
            "a=\"x;y\"; PATH=/; SameSite=Lax",
            "a=\"x;y\"; Path={P}/; SameSite=Lax",
        ),
        ("a=1; Domain=.example; Secure", "a=1; Secure"),
        ("a=1; domain; Path=kiali", "a=1; Path=kiali"),
        ("a=1; Path={P}/kiali", "a=1; Path={P}/kiali"),
        ("a=1; Path=/../../x", "a=1; Path={P}/x"),
        ("a=1; Path=\"/\"", "a=1; Path={P}/"),
        ("a=1; Path=\"x\"", "a=1; Path=\"x\""),
        ("Path=/; Path=/x; Path=/y", "Path=/; Path={P}/y"),
        ("a=1; Path=/; Path=", "a=1; Path="),
        ("a=1; Path=/\u{e9}", "a=1; Path={P}/%C3%A9"),
        // The path of another target.
        ("a=1; Path={OP}/", "a=1; Path={P}{OP}/"),
        ("a=1; Path=/api", "a=1; Path={P}/api"),
    ] {
        let path = format!("{PREFIX}/x");
        let cookies = left(&path, CookieScope::default(), &[value]);
        assert_eq!(cookies, [filled(expected)], "{value}");
    }
}

#[test]
fn cookie_of_a_bare_path_gets_the_path_of_its_target() {
    let cookies = ["a=1", "b=2; Path=/x", "c=3; Path=x"];
    let expected = [
        format!("a=1; Path={PREFIX}/"),
        format!("b=2; Path={PREFIX}/x"),
        format!("c=3; Path=x; Path={PREFIX}/"),
    ];
    assert_eq!(left(PREFIX, CookieScope::default(), &cookies), expected);
}

#[test]
fn cookies_have_the_path_that_the_browser_requests() {
    let encoded = "/api/v1/namespaces/shop/services/http%3Aweb%3A80/proxy";
    let (_, scope) = entered(encoded, BROWSER, &[]);
    let cookies = left(&format!("{encoded}/x"), scope, &["a=1; Path=/"]);
    assert_eq!(cookies[0], format!("a=1; Path={encoded}/"));
    assert!(
        cookies[1].contains("; Path=/api/v1/namespaces/shop/services/http%3Aweb%3A80;"),
        "{cookies:?}"
    );
}

#[test]
fn host_bound_cookies_have_the_tag_of_their_target() {
    for (value, name) in [
        ("__Host-a=1; Path=/; Secure", "__Host-kube-bastion-{T}-a"),
        ("__host-a=1; Path=/; Secure", "__host-kube-bastion-{T}-a"),
        (" __HOST-a=1; Path=/; Secure", "__HOST-kube-bastion-{T}-a"),
        (
            "__Host-Http-a=1; Path=/; Secure",
            "__Host-Http-kube-bastion-{T}-a",
        ),
        ("__Host-=1; Path=/; Secure", "__Host-kube-bastion-{T}-"),
    ] {
        let scoped = left(&format!("{PREFIX}/"), CookieScope::default(), &[value]);
        assert_eq!(scoped, [filled(name) + "=1; Path=/; Secure"], "{value}");
        // The target gets its own name back, and another target gets nothing.
        let pair = scoped[0].split(';').next().unwrap();
        for fields in [&[][..], BROWSER] {
            let (cookies, _) = entered(PREFIX, fields, &[pair]);
            let own = value.split(';').next().unwrap().trim();
            assert_eq!(cookies, [own], "{value}");
            assert!(entered(OTHER, fields, &[pair]).0.is_empty(), "{value}");
        }
    }
    let domain = ["__Host-a=1; Domain=example.com; Path=/"];
    let scoped = left(PREFIX, CookieScope::default(), &domain);
    assert!(scoped[0].ends_with("-a=1; Path=/"), "{scoped:?}");
}

#[test]
fn browsers_get_the_boundary_of_a_target_once() {
    let path = format!("{PREFIX}/x");
    let (_, scope) = entered(&path, BROWSER, &[]);
    let cookies = left(&path, scope, &[]);
    let value = format!(
        "={}; Path=/api/v1/namespaces/shop/services/web; Max-Age=34560000; HttpOnly",
        tag_of(PREFIX)
    );
    assert_eq!(
        cookies,
        [
            format!("kube-bastion-boundary{value}"),
            format!("kube-bastion-boundary-cross-site{value}; Secure; SameSite=None"),
        ]
    );
    for boundary in &cookies {
        let pair = boundary.split(';').next().unwrap();
        let (_, scope) = entered(&path, BROWSER, &[pair]);
        assert!(left(&path, scope, &[]).is_empty(), "{pair}");
        let (_, scope) = entered(OTHER, BROWSER, &[pair]);
        assert_eq!(
            left(OTHER, scope, &[]).len(),
            2,
            "{pair} is of another target"
        );
    }
    // Cookies of a partitioned jar are sent without those of the ordinary one.
    let (_, scope) = entered(&path, BROWSER, &["kube-bastion-boundary={T}"]);
    let cookies = left(&path, scope, &["a=1; Secure; SameSite=None; Partitioned"]);
    assert!(
        cookies[2].ends_with("; Secure; SameSite=None; Partitioned"),
        "{cookies:?}"
    );
}

#[test]
fn targets_get_their_own_cookies_of_a_browser() {
    for (cookies, expected) in [
        // Of equal names, the one with the longer path is first.
        (
            &["s=own; kube-bastion-boundary={T}; s=other"][..],
            &["s=own"][..],
        ),
        (
            &["a=1; b=2; kube-bastion-boundary-cross-site={T}; c=3"],
            &["a=1; b=2"],
        ),
        (&["kube-bastion-boundary={T}; a=1"], &[]),
        // Set before this target had a boundary.
        (&["a=1; b=2"], &[]),
        (&["a=1; kube-bastion-boundary={OT}; b=2"], &[]),
        // HTTP/2 may have a line for each cookie.
        (
            &["a=1", "b=2", "kube-bastion-boundary={T}", "c=3"],
            &["a=1; b=2"],
        ),
        (
            &[
                "a=1; kube-bastion-boundary={T}; b=2; __Host-kube-bastion-{T}-c=3; __Host-kube-bastion-{OT}-c=4; __Host-c=5",
            ],
            &["a=1; __Host-c=3"],
        ),
        (&["a; =b; ;c=; kube-bastion-boundary={T}"], &["a; =b; c="]),
        (&[], &[]),
    ] {
        let path = format!("{PREFIX}/x");
        assert_eq!(entered(&path, BROWSER, cookies).0, expected, "{cookies:?}");
    }
}

#[test]
fn other_clients_send_the_cookies_that_they_choose() {
    for (cookies, expected) in [
        (&["a=1; b=2"][..], &["a=1; b=2"][..]),
        (&["a=1", "b=2"], &["a=1", "b=2"]),
        (&["__Host-a=1"], &["__Host-a=1"]),
        (&["__Host-kube-bastion-{T}-a=1; b=2"], &["b=2; __Host-a=1"]),
        (&["__Host-kube-bastion-{OT}-a=1; b=2"], &["b=2"]),
        // Copied from a browser.
        (&["a=1; kube-bastion-boundary={T}; b=2"], &["a=1"]),
    ] {
        let (found, scope) = entered(PREFIX, &[("user-agent", "curl/8.5.0")], cookies);
        assert_eq!(found, expected, "{cookies:?}");
        assert_eq!(scope, CookieScope::default(), "no boundary for {cookies:?}");
    }
}

#[test]
fn recognizes_browsers() {
    const CHROME: &str = "Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0.0.0 Safari/537.36";
    for (fields, expected) in [
        (&[("sec-fetch-mode", "cors")][..], true),
        (&[("user-agent", CHROME), ("accept-language", "de")], true),
        (&[("user-agent", CHROME)], false),
        (
            &[("user-agent", "curl/8.5.0"), ("accept-language", "de")],
            false,
        ),
        (&[("accept-language", "de")], false),
        (&[], false),
    ] {
        let (_, scope) = entered(PREFIX, fields, &[]);
        assert_eq!(scope.lacks_boundary, expected, "{fields:?}");
    }
}

/// A jar of cookies that selects and orders them as browsers do (RFC 6265 section 5.4).
#[derive(Default)]
struct Jar(Vec<(String, String)>);

impl Jar {
    fn set(&mut self, request_path: &str, cookie: &str) {
        let pair = cookie.split(';').next().unwrap().to_owned();
        let path = cookie.split("; Path=").nth(1);
        let path = path.map(|path| path.split(';').next().unwrap());
        let default = request_path.rsplit_once('/').unwrap().0;
        let path = path.unwrap_or(default).to_owned();
        let name = |pair: &str| pair.split('=').next().unwrap().to_owned();
        let same = |known: &(String, String)| name(&known.0) == name(&pair) && known.1 == path;
        match self.0.iter_mut().find(|known| same(known)) {
            Some(known) => known.0 = pair,
            None => self.0.push((pair, path)),
        }
    }

    fn line(&self, request_path: &str) -> String {
        let matches = |path: &str| {
            let rest = request_path.strip_prefix(path);
            rest.is_some_and(|rest| path.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
        };
        let mut sent: Vec<_> = self.0.iter().filter(|(_, path)| matches(path)).collect();
        sent.sort_by_key(|(_, path)| std::cmp::Reverse(path.len()));
        let pairs: Vec<_> = sent.iter().map(|(pair, _)| &**pair).collect();
        pairs.join("; ")
    }

    /// Sends a request, which gets a response with `cookies`. Returns the cookies of the target.
    fn exchange(&mut self, path: &str, cookies: &[&str]) -> String {
        let line = self.line(path);
        let lines: Vec<_> = Some(&*line)
            .into_iter()
            .filter(|line| !line.is_empty())
            .collect();
        let (received, scope) = entered(path, BROWSER, &lines);
        for cookie in left(path, scope, cookies) {
            self.set(path, &cookie);
        }
        received.join("|")
    }
}

#[test]
fn targets_of_one_browser_do_not_share_cookies() {
    let mut jar = Jar::default();
    // Set without the bastion, by a script of a page, and by a neighbor on the host.
    for old in [
        "session=old; Path=/",
        "script=1; Path=/api",
        "x=1; Path=/api/v1/namespaces",
    ] {
        jar.set("/", old);
    }
    let [web, api] = [PREFIX, OTHER].map(|prefix| format!("{prefix}/"));
    let deep = format!("{PREFIX}/a/b");
    assert_eq!(
        jar.exchange(&web, &["session=web; Path=/", "__Host-s=web; Path=/"]),
        ""
    );
    assert_eq!(
        jar.exchange(&api, &["session=api; Path=/", "__Host-s=api; Path=/"]),
        ""
    );
    assert_eq!(
        jar.exchange(&web, &["plain=1"]),
        "session=web; __Host-s=web"
    );
    assert_eq!(jar.exchange(&api, &[]), "session=api; __Host-s=api");
    // A script that sets a cookie below its own page.
    jar.set(&web, "scripted=1");
    assert_eq!(
        jar.exchange(&deep, &["deep=1"]),
        "session=web; plain=1; scripted=1; __Host-s=web"
    );
    assert_eq!(
        jar.exchange(&deep, &[]),
        "deep=1; session=web; plain=1; scripted=1; __Host-s=web"
    );
    // A name that begins like another, another port and another spelling are other targets.
    for other in ["web2", "web:80", "http:web:80", "we"] {
        let path = format!("/api/v1/namespaces/shop/services/{other}/proxy/");
        assert_eq!(jar.exchange(&path, &[]), "", "{other}");
        assert_eq!(jar.exchange(&path, &["n=1; Path=/"]), "", "{other}");
        assert_eq!(jar.exchange(&path, &[]), "n=1", "{other}");
    }
    assert_eq!(jar.exchange("/api/v1/nodes/web/proxy/", &[]), "");
}
