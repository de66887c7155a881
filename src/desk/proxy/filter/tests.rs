use super::*;

use http::Request;

use crate::testing::head;

/// Values of the four flags.
#[derive(Clone, Copy)]
struct Flags {
    accept_paths: &'static str,
    reject_paths: &'static str,
    accept_hosts: &'static str,
    reject_methods: &'static str,
}

const DEFAULT: Flags = Flags {
    accept_paths: DEFAULT_ACCEPT_PATHS,
    reject_paths: DEFAULT_REJECT_PATHS,
    accept_hosts: DEFAULT_ACCEPT_HOSTS,
    reject_methods: DEFAULT_REJECT_METHODS,
};

impl Flags {
    fn filter(self) -> Filter {
        Filter {
            accept_paths: Patterns::parse(self.accept_paths).unwrap(),
            reject_paths: Patterns::parse(self.reject_paths).unwrap(),
            accept_hosts: Patterns::parse(self.accept_hosts).unwrap(),
            reject_methods: Patterns::parse(self.reject_methods).unwrap(),
        }
    }

    fn check(self, method: &str, host: &str, path: &str) -> Result<(), Rejection> {
        let request = Request::builder().method(method).uri("/");
        self.filter()
            .check(&head(request.header("host", host)), path)
    }
}

/// The cases of kubectl's own test of its filter.
#[test]
fn accepts_and_rejects_as_kubectl_does() {
    const POD: &str = "/api/v1/namespaces/default/pods/somepod";
    let rejecting = |reject_methods| Flags {
        reject_methods,
        ..DEFAULT
    };
    let no_rejected_paths = Flags {
        reject_paths: "",
        ..DEFAULT
    };
    for (flags, method, host, path, expected) in [
        (DEFAULT, "GET", "127.0.0.1", "", true),
        (DEFAULT, "GET", "127.0.0.1", "/api/v1/pods", true),
        (DEFAULT, "GET", "localhost", "/api/v1/pods", true),
        (
            DEFAULT,
            "GET",
            "localhost",
            "/api/v1/namespaces/default/pods/foo",
            true,
        ),
        (
            DEFAULT,
            "GET",
            "localhost",
            "/api/v1/namespaces/default/pods/attachfoo",
            true,
        ),
        (
            DEFAULT,
            "GET",
            "localhost",
            "/api/v1/namespaces/default/pods/execfoo",
            true,
        ),
        (
            DEFAULT,
            "GET",
            "127.0.0.1",
            "/api/v1/namespaces/default/pods/foo/exec",
            false,
        ),
        (
            DEFAULT,
            "GET",
            "127.0.0.1",
            "/api/v1/namespaces/default/pods/foo/attach",
            false,
        ),
        (DEFAULT, "GET", "evil.com", "/api/v1/pods", false),
        (DEFAULT, "GET", "localhost.evil.com", "/api/v1/pods", false),
        (DEFAULT, "GET", "127a0b0c1", "/api/v1/pods", false),
        (DEFAULT, "GET", "localhost", "/ui", true),
        (DEFAULT, "POST", "localhost", "/api/v1/pods", true),
        (DEFAULT, "PUT", "localhost", POD, true),
        (DEFAULT, "PATCH", "localhost", POD, true),
        (rejecting("GET"), "GET", "127.0.0.1", "/api/v1/pods", false),
        (
            rejecting("POST"),
            "POST",
            "localhost",
            "/api/v1/pods",
            false,
        ),
        (rejecting("PUT"), "PUT", "localhost", POD, false),
        (rejecting("PATCH"), "PATCH", "localhost", POD, false),
        (
            rejecting("POST,PUT,PATCH"),
            "PATCH",
            "localhost",
            POD,
            false,
        ),
        (rejecting("POST,PUT,PATCH"), "PUT", "localhost", POD, false),
        (
            DEFAULT,
            "POST",
            "localhost",
            "/api/v1/namespaces/default/pods/somepod/exec",
            false,
        ),
        (
            no_rejected_paths,
            "POST",
            "localhost",
            "/api/v1/namespaces/default/pods/somepod/exec",
            true,
        ),
    ] {
        let checked = flags.check(method, host, path);
        assert_eq!(
            checked.is_ok(),
            expected,
            "{method} {host} {path}: {checked:?}"
        );
    }
}

#[test]
fn splits_lists_at_each_comma() {
    for (list, text, expected) in [
        ("bar,.*", "foo", true),
        ("bar,fo.*", "foo", true),
        ("bar,fo.*", "bar", true),
        ("bar,fo.*", "baz", false),
        ("", "foo", false),
        // An empty expression matches everything, as in kubectl.
        ("bar,", "foo", true),
    ] {
        let patterns = Patterns::parse(list).unwrap();
        assert_eq!(patterns.find(text).is_some(), expected, "{list:?} {text}");
    }
    let error = Patterns::parse("^/a$,(b").unwrap_err().to_string();
    assert!(error.starts_with("\"(b\" is not"), "{error}");
}

#[test]
fn removes_port_of_host() {
    for (authority, expected) in [
        ("localhost:8085", "localhost"),
        ("marmalade", "marmalade"),
        ("localhost:", "localhost"),
        ("127.0.0.1:8001", "127.0.0.1"),
        ("[::1]:8001", "[::1]"),
        ("[::1]", "[::1]"),
        ("", ""),
    ] {
        assert_eq!(without_port(authority), expected);
    }
}

#[test]
fn accepts_ipv6_hosts_with_and_without_port_and_brackets() {
    for host in ["[::1]", "[::1]:8001"] {
        assert_eq!(DEFAULT.check("GET", host, "/"), Ok(()), "{host}");
        let bare = Flags {
            accept_hosts: "^::1$",
            ..DEFAULT
        };
        assert_eq!(bare.check("GET", host, "/"), Ok(()), "{host}");
    }
    assert!(DEFAULT.check("GET", "[::2]:8001", "/").is_err());
}

#[test]
fn rejects_request_without_host() {
    let request = head(Request::get("/"));
    let rejected = DEFAULT.filter().check(&request, "/").unwrap_err();
    let expected = "--accept-hosts: no expression matches the host \"\" \
                    (the Host header without port)";
    assert_eq!(rejected.to_string(), expected);
}

#[test]
fn authority_of_absolute_form_replaces_host() {
    let request = head(Request::get("http://evil.com/api").header("host", "localhost"));
    assert!(DEFAULT.filter().check(&request, "/api").is_err());
}

#[test]
fn compares_decoded_path() {
    for path in [
        "/api/v1/namespaces/a/pods/b/ex%65c",
        "/api/v1/namespaces/a/pods/b%2Fexec",
        "/api/v1/namespaces/a/pods/b/c%2F..%2Fexec",
        "/api/v1/namespaces/%ff/pods/\u{e4}/exec",
        "/api/v1/namespaces/%ff%fe/pods/b/attach",
        "/%61pi/v1/pods/exec/pods/exec",
    ] {
        let rejected = DEFAULT.check("GET", "localhost", path);
        assert!(
            matches!(rejected, Err(Rejection::RejectPaths { .. })),
            "{path}: {rejected:?}"
        );
    }
    let only = Flags {
        accept_paths: "^/api/v1/nodes",
        ..DEFAULT
    };
    assert_eq!(
        only.check("GET", "localhost", "/api/v1/nodes/a%20b"),
        Ok(())
    );
    let escaping = only.check("GET", "localhost", "/api/v1/nodes%2F..%2Fsecrets");
    assert_eq!(
        escaping.unwrap_err().to_string(),
        "--accept-paths: no expression matches the path \"/api/v1/secrets\""
    );
}

#[test]
fn rejection_names_flag_and_compared_values() {
    let reject_get = Flags {
        reject_methods: "^GET$",
        ..DEFAULT
    };
    for (flags, host, path, expected) in [
        (
            DEFAULT,
            "localhost",
            "/api/v1/pods/x/pods/y/exec",
            "--reject-paths: \"^/api/.*/pods/.*/exec\" matches the path \
             \"/api/v1/pods/x/pods/y/exec\"",
        ),
        (
            reject_get,
            "localhost",
            "/api",
            "--reject-methods: \"^GET$\" matches the method \"GET\"",
        ),
        (
            DEFAULT,
            "evil.com:80",
            "/api",
            "--accept-hosts: no expression matches the host \"evil.com\" \
             (the Host header without port)",
        ),
    ] {
        let rejected = flags.check("GET", host, path).unwrap_err();
        assert_eq!(rejected.to_string(), expected);
    }
}

#[test]
fn rejects_requests_of_foreign_pages_for_api_and_files() {
    let request = Request::post("/")
        .header("host", "localhost:8001")
        .header("origin", "https://evil.example");
    let head = head(request);
    let filter = DEFAULT.filter();
    for rejected in [filter.check(&head, "/api"), filter.check_sender(&head)] {
        let text = rejected.unwrap_err().to_string();
        assert!(
            text.contains("https://evil.example") && text.contains("--disable-filter"),
            "{text}"
        );
    }
}
