//! Syntax of `Host` and `:authority` (RFC 9110 section 7.2, RFC 3986 section 3.2).

/// Returns true if `text` is `uri-host [ ":" port ]`. The host may be empty, as RFC 9110 allows for
/// targets without an authority, but only without a port. User information is not allowed (RFC 9110
/// section 4.2.4).
pub fn is_authority(text: &[u8]) -> bool {
    if text.is_empty() {
        return true;
    }
    let (is_host, port) = if let Some(literal) = text.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', literal) else {
            return false;
        };
        let (literal, port) = (&literal[..end], &literal[end + 1..]);
        (is_ip_literal(literal), port)
    } else {
        let end = memchr::memchr(b':', text).unwrap_or(text.len());
        let (name, port) = text.split_at(end);
        (!name.is_empty() && is_registered_name(name), port)
    };
    is_host && (port.is_empty() || is_port(port))
}

/// Returns true for the authority of CONNECT: a host and a port, which is a number or, beyond RFC
/// 9112 section 3.2.3, the name of a port.
pub fn is_connect_authority(text: &[u8]) -> bool {
    let Some(colon) = memchr::memrchr(b':', text) else {
        return false;
    };
    let (host, port) = (&text[..colon], &text[colon..]);
    let name = &port[1..];
    let is_name = name.iter().any(u8::is_ascii_alphabetic)
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    port.len() > 1
        && !host.is_empty()
        && is_authority(&[host, b":1"].concat())
        && (is_authority(text) || is_name)
}

/// Returns true for `":" *DIGIT` of at most 65535. An empty port is that of the scheme.
fn is_port(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(b":") else {
        return false;
    };
    // Leading zeros are digits too; five of them suffice for every port.
    if digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let port = digits
        .iter()
        .fold(0, |port, digit| port * 10 + u32::from(digit - b'0'));
    u16::try_from(port).is_ok()
}

fn is_ip_literal(text: &[u8]) -> bool {
    // A zone (RFC 6874) has a meaning on the host of the client only.
    if let Ok(text) = str::from_utf8(text)
        && text.parse::<std::net::Ipv6Addr>().is_ok()
    {
        return true;
    }
    // IPvFuture.
    let Some((b'v' | b'V', rest)) = text.split_first() else {
        return false;
    };
    let mut parts = rest.splitn(2, |byte| *byte == b'.');
    let (version, address) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let is_version = !version.is_empty() && version.iter().all(u8::is_ascii_hexdigit);
    is_version
        && !address.is_empty()
        && address
            .iter()
            .all(|byte| is_name_byte(*byte) || *byte == b':')
}

fn is_registered_name(name: &[u8]) -> bool {
    name.iter().all(|byte| is_name_byte(*byte)) || has_valid_escapes(name, is_name_byte)
}

/// Returns true for `unreserved` and `sub-delims` of RFC 3986.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

/// Returns true if each `%` begins an escape and all other bytes are `allowed`.
pub(super) fn has_valid_escapes(text: &[u8], allowed: fn(u8) -> bool) -> bool {
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let [high, low, after @ ..] = rest else {
                return false;
            };
            if !high.is_ascii_hexdigit() || !low.is_ascii_hexdigit() {
                return false;
            }
            rest = after;
        } else if !allowed(*byte) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_of_connect_has_a_port() {
        for text in ["a:1", "a.b:http", "[::1]:80", "10.0.0.1:65535", "a:08080"] {
            assert!(is_connect_authority(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "a",
            "a:",
            ":80",
            "2001:db8::1:443",
            "[::1]",
            "u@a:80",
            "a:1:http",
            "a:b_c",
            "a:x/",
        ] {
            assert!(!is_connect_authority(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn accepts_hosts_with_optional_port() {
        for text in [
            "",
            "a",
            "bastion.example",
            "bastion.example:8443",
            "bastion.example:",
            "a_b",
            "192.0.2.1:80",
            "[2001:db8::1]",
            "[::ffff:192.0.2.1]:65535",
            "[v1.fe80::a+en1]",
            "a%2Fb",
            "a,b",
        ] {
            assert!(is_authority(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn rejects_invalid_hosts() {
        for text in [
            ":80",
            "a b",
            "a\tb",
            " a",
            "u@a",
            "u:p@a",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "<a>",
            "a\"",
            "{a}",
            "a|b",
            "a^",
            "a`",
            "a:x",
            "a:80:80",
            "a:65536",
            "a:000080",
            "a:-1",
            "[::1",
            "::1",
            "[a]",
            "[::1]a",
            "[::1%25eth0]",
            "[v.a]",
            "a%",
            "a%zz",
            "\u{e4}",
        ] {
            assert!(!is_authority(text.as_bytes()), "{text}");
        }
    }
}
