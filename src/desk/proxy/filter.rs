//! Filter of requests by path, host and method, with the flags of `kubectl proxy`.

mod pattern;

use percent_encoding::percent_decode_str;

pub use pattern::{InvalidPattern, Pattern};

use super::path;
use crate::desk::cross_site::{self, CrossSiteRequest};
use crate::http::RequestHead;

/// Paths that are accepted by default: all.
pub const DEFAULT_ACCEPT_PATHS: &str = "^.*";
/// Paths that are rejected by default: interactive sessions in containers.
pub const DEFAULT_REJECT_PATHS: &str = "^/api/.*/pods/.*/exec,^/api/.*/pods/.*/attach";
/// Hosts that are accepted by default: the names and addresses of this machine, so that a page
/// whose name resolves to it (DNS rebinding) has no access.
pub const DEFAULT_ACCEPT_HOSTS: &str = r"^localhost$,^127\.0\.0\.1$,^\[::1\]$";
/// Methods that are rejected by default: none.
pub const DEFAULT_REJECT_METHODS: &str = "^$";

/// List of regular expressions, separated by commas. An empty list matches nothing.
#[derive(Clone, Debug)]
pub struct Patterns(Vec<Pattern>);

/// Filter of requests. An accepted request passes all of its checks.
#[derive(Clone, Debug)]
pub struct Filter {
    pub accept_paths: Patterns,
    /// Paths that are rejected even if they are accepted.
    pub reject_paths: Patterns,
    pub accept_hosts: Patterns,
    pub reject_methods: Patterns,
}

/// Reason why a request is rejected: the flag, and the values that it compares.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("--reject-paths: {pattern:?} matches the path {path:?}")]
    RejectPaths { pattern: String, path: String },
    #[error("--reject-methods: {pattern:?} matches the method {method:?}")]
    RejectMethods { pattern: String, method: String },
    #[error("--accept-paths: no expression matches the path {path:?}")]
    AcceptPaths { path: String },
    #[error(
        "--accept-hosts: no expression matches the host {host:?} (the Host header without port)"
    )]
    AcceptHosts { host: String },
    #[error("{0}; --disable-filter accepts it")]
    CrossSite(#[from] CrossSiteRequest),
}

impl Patterns {
    /// Parses a list.
    ///
    /// # Errors
    /// [`InvalidPattern`] with the first invalid expression.
    pub fn parse(list: &str) -> Result<Self, InvalidPattern> {
        if list.is_empty() {
            return Ok(Self(Vec::new()));
        }
        list.split(',')
            .map(Pattern::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Returns the first expression that matches.
    fn find(&self, text: &str) -> Option<&Pattern> {
        self.0.iter().find(|pattern| pattern.matches(text))
    }
}

impl Filter {
    /// Checks a request for the API. `path` is the path that is forwarded.
    ///
    /// # Errors
    /// [`Rejection`] if the request must not be forwarded.
    pub fn check(&self, head: &RequestHead, path: &str) -> Result<(), Rejection> {
        let decoded = decoded(path);
        // An escaped slash can join dot segments that a server resolves after it has decoded them.
        let resolved = path::clean(&decoded);
        for path in [&*decoded, &*resolved] {
            if let Some(pattern) = self.reject_paths.find(path) {
                return Err(Rejection::RejectPaths {
                    pattern: pattern.to_string(),
                    path: path.to_owned(),
                });
            }
            if self.accept_paths.find(path).is_none() {
                let path = path.to_owned();
                return Err(Rejection::AcceptPaths { path });
            }
        }
        let method = head.method.as_str();
        if let Some(pattern) = self.reject_methods.find(method) {
            return Err(Rejection::RejectMethods {
                pattern: pattern.to_string(),
                method: method.to_owned(),
            });
        }
        self.check_sender(head)
    }

    /// Checks the host and the site from which a request comes. For the files of `--www`, to which
    /// the rules for paths and methods do not apply.
    ///
    /// # Errors
    /// [`Rejection`] if the request is for another host, or a page of another site has caused it.
    pub fn check_sender(&self, head: &RequestHead) -> Result<(), Rejection> {
        let host = host(head);
        // kubectl compares an IPv6 address with brackets only if no port follows it.
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let is_accepted = |host: &str| self.accept_hosts.find(host).is_some();
        if !is_accepted(host) && !bare.is_some_and(is_accepted) {
            return Err(Rejection::AcceptHosts {
                host: host.to_owned(),
            });
        }
        Ok(cross_site::check(head)?)
    }
}

/// Returns the host of a request without its port. It is empty for requests of HTTP/1.0 without
/// `Host`.
fn host(head: &RequestHead) -> &str {
    let header = || head.headers.get(http::header::HOST)?.to_str().ok();
    without_port(head.target.authority().or_else(header).unwrap_or_default())
}

/// Removes the port of a valid authority. An IPv6 address keeps its brackets.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

/// Decodes a path for comparison. A byte that is not UTF-8 becomes one replacement character, as
/// Go's expressions see it, so that `.` matches it.
fn decoded(path: &str) -> String {
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

#[cfg(test)]
mod tests;
