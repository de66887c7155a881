//! Requests, with the flags of both proxies.

mod api;
mod files;
mod filters;
mod messages;
mod paths;

use std::fmt;

use super::compare::Expected;
use api::API_ROWS;
use files::FILE_ROWS;
use filters::{FILTER_ROWS, HOST_ROWS, SITE_ROWS};
use messages::{BODY_ROWS, HEADER_ROWS, RESPONSE_ROWS, UPGRADE_ROWS};
use paths::PATH_ROWS;

/// Server behind both proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// The echo server, with the path of its URL.
    Echo(&'static str),
    /// kube-apiserver, with the client certificate of an administrator.
    Admin,
    /// kube-apiserver, with the token of a service account.
    Token,
}

/// Flags of both proxies, and the server. `SITE` is the directory of the static files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flags {
    pub server: Server,
    pub arguments: &'static [&'static str],
}

/// Request, and the expected relation of its responses.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub flags: Flags,
    /// Method and target, and the version if it is not HTTP/1.1.
    line: &'static str,
    /// Header lines, separated by a line break. `Host` is added, unless there is one.
    headers: &'static str,
    body: &'static str,
    pub expected: Expected,
}

impl Row {
    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// Returns true if the client sends a header.
    pub fn sends(&self, name: &str) -> bool {
        self.headers.lines().any(|line| {
            line.split(':')
                .next()
                .is_some_and(|given| given.eq_ignore_ascii_case(name))
        })
    }

    /// Returns the bytes of the request.
    pub fn bytes(&self) -> Vec<u8> {
        let version = if self.line.ends_with("HTTP/1.0") {
            ""
        } else {
            " HTTP/1.1"
        };
        let mut request = format!("{}{version}\r\n", self.line);
        if !self.sends("host") {
            request.push_str("Host: localhost\r\n");
        }
        for line in self.headers.lines().filter(|line| *line != "No-Host:") {
            request.push_str(&format!("{line}\r\n"));
        }
        let body = if self.body == "BIG" {
            "0123456789abcdef".repeat(1 << 16)
        } else {
            self.body.to_owned()
        };
        if !body.is_empty() && !self.sends("transfer-encoding") {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        [request.into_bytes(), body.into_bytes()].concat()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flags { server, arguments } = self.flags;
        let headers = self.headers.replace('\n', ", ");
        write!(f, "{server:?} {arguments:?}: {} [{headers}]", self.line)
    }
}

const ECHO: Flags = echo(&[]);
const CUSTOM: Flags = echo(&["--api-prefix=/custom"]);
const API: Flags = echo(&["--api-prefix=/api/", "--www=SITE"]);
const FILES: Flags = echo(&["-w=SITE", "-P", "/files"]);
const ROOT_FILES: Flags = echo(&["--www=SITE", "--www-prefix=/", "--api-prefix=/k8s"]);
const FILTERED: Flags = echo(&[
    "--accept-paths=^/api/v1,^/version$",
    "--reject-paths=^/api/v1/secrets,\\.php$",
    "--reject-methods=^DELETE$,PO",
    "--accept-hosts=^example\\.com$,^local",
]);
const EMPTY_LISTS: Flags = echo(&["--reject-paths=", "--reject-methods="]);
const NOTHING_ACCEPTED: Flags = echo(&["--accept-paths="]);
const UNFILTERED: Flags = echo(&["--disable-filter"]);
const APPENDING: Flags = Flags {
    server: Server::Echo("/base"),
    arguments: &["--append-server-path"],
};
const WITH_PATH: Flags = Flags {
    server: Server::Echo("/base/"),
    arguments: &[],
};
const IPV6: Flags = echo(&["--address=[::1]"]);
const ADMIN: Flags = Flags {
    server: Server::Admin,
    arguments: &[],
};
const TOKEN: Flags = Flags {
    server: Server::Token,
    arguments: &[],
};
const AS: Flags = Flags {
    server: Server::Admin,
    arguments: &["--as=jane", "--as-group=developers", "--as-group=testers"],
};

const fn echo(arguments: &'static [&'static str]) -> Flags {
    Flags {
        server: Server::Echo(""),
        arguments,
    }
}

/// Rows without body: flags, line, headers, expectation.
type Short = (Flags, &'static str, &'static str, Expected);

pub fn rows() -> Vec<Row> {
    let groups: [&[Short]; 9] = [
        API_ROWS,
        PATH_ROWS,
        HOST_ROWS,
        SITE_ROWS,
        FILTER_ROWS,
        FILE_ROWS,
        HEADER_ROWS,
        RESPONSE_ROWS,
        UPGRADE_ROWS,
    ];
    let short = groups.into_iter().flatten();
    let short = short.map(|(flags, line, headers, expected)| Row {
        flags: *flags,
        line,
        headers,
        body: "",
        expected: *expected,
    });
    let with_body = BODY_ROWS
        .iter()
        .map(|(flags, line, headers, body, expected)| Row {
            flags: *flags,
            line,
            headers,
            body,
            expected: *expected,
        });
    short.chain(with_body).collect()
}

/// Row with a body before its expectation; `BIG` is a body of 1 MiB.
type Long = (Flags, &'static str, &'static str, &'static str, Expected);
