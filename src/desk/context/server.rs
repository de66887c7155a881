//! URLs of API servers.

use super::ContextError;

/// URL of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    pub is_https: bool,
    /// Without brackets.
    pub host: String,
    pub port: u16,
    /// Host and port as in the URL, for `Host`.
    pub authority: String,
    /// Without a trailing slash.
    pub path: String,
}

impl ServerUrl {
    /// Parses the URL of `--server` or a cluster. As with kubectl, `HOST:PORT` is plain HTTP, and
    /// query and fragment have no meaning.
    ///
    /// # Errors
    /// The text is not the URL of a server. The error does not repeat a password.
    pub fn parse(text: &str) -> Result<Self, ContextError> {
        let error = |reason| ContextError::Server {
            url: text.rsplit('@').next().unwrap_or_default().to_owned(),
            reason,
        };
        if text.contains('@') {
            return Err(error(
                "it has user information; credentials are those of the kubeconfig's user",
            ));
        }
        let has_scheme = text.contains("://");
        let url = if has_scheme {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let uri: http::Uri = url.parse().map_err(|_| error("it is not a URL"))?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(error("its scheme is not http or https")),
        };
        if !has_scheme && uri.path() != "/" {
            return Err(error("it has a path and no scheme"));
        }
        let authority = uri.authority().ok_or_else(|| error("it has no host"))?;
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(error("it has no host"));
        }
        let default = if is_https { 443 } else { 80 };
        let port = match authority.as_str().rsplit_once(':') {
            // A colon inside of the brackets of an IPv6 address does not precede a port.
            Some((_, port)) if !port.contains(']') && !port.is_empty() => port.parse().unwrap_or(0),
            _ => default,
        };
        if port == 0 {
            return Err(error("its port is not a number from 1 to 65535"));
        }
        Ok(Self {
            is_https,
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_urls_as_kubectl_does() {
        for (text, is_https, host, port, authority, path) in [
            (
                "https://192.0.2.1:6443",
                true,
                "192.0.2.1",
                6443,
                "192.0.2.1:6443",
                "",
            ),
            (
                "https://api.example",
                true,
                "api.example",
                443,
                "api.example",
                "",
            ),
            (
                "http://localhost:8080/",
                false,
                "localhost",
                8080,
                "localhost:8080",
                "",
            ),
            (
                "localhost:8080",
                false,
                "localhost",
                8080,
                "localhost:8080",
                "",
            ),
            ("127.0.0.1", false, "127.0.0.1", 80, "127.0.0.1", ""),
            (
                "https://[2001:db8::1]:64",
                true,
                "2001:db8::1",
                64,
                "[2001:db8::1]:64",
                "",
            ),
            ("https://[::1]", true, "::1", 443, "[::1]", ""),
            (
                "https://a/k8s/clusters/c-1/?a#b",
                true,
                "a",
                443,
                "a",
                "/k8s/clusters/c-1",
            ),
        ] {
            let expected = ServerUrl {
                is_https,
                host: host.into(),
                port,
                authority: authority.into(),
                path: path.into(),
            };
            assert_eq!(ServerUrl::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn names_reason_and_remedy_of_invalid_urls() {
        for (text, part) in [
            ("https://user:s3cr3t@host", "it has user information"),
            ("tcp://host:1", "its scheme is not http or https"),
            ("https://host:0", "its port"),
            ("https://host:66666", "its port"),
            ("https://", "it is not a URL"),
            ("host/path", "it has a path and no scheme"),
            ("https://a b", "it is not a URL"),
        ] {
            let error = ServerUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains("use https://HOST:PORT"), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
