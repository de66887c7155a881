//! Numbers and addresses as text, without the cost of `fmt`: an address formatted by `fmt` takes a
//! thousand instructions, and a request formats three.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

/// Appends a decimal number.
pub fn push_decimal(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends an address as its `Display` does.
pub fn push_ip(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [first, rest @ ..] = address.octets();
            push_decimal(out, first);
            for octet in rest {
                out.push(b'.');
                push_decimal(out, octet);
            }
        }
        // Compressing zeros is worth the library's code. Writing to a vector cannot fail.
        IpAddr::V6(address) => _ = write!(out, "{address}"),
    }
}

/// Appends an address and port as its `Display` does.
pub fn push_socket_addr(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(address) => {
            push_ip(out, (*address.ip()).into());
            out.push(b':');
            push_decimal(out, address.port());
        }
        SocketAddr::V6(address) => _ = write!(out, "{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_addresses_as_display_does() {
        for text in [
            "0.0.0.0:0",
            "10.244.1.15:8080",
            "255.255.255.255:65535",
            "[::1]:80",
            "[2001:db8::ff00:42:8329]:443",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let (mut whole, mut ip) = (Vec::new(), Vec::new());
            push_socket_addr(&mut whole, address);
            push_ip(&mut ip, address.ip());
            assert_eq!(String::from_utf8(whole).unwrap(), text);
            assert_eq!(String::from_utf8(ip).unwrap(), address.ip().to_string());
        }
    }
}
