use super::*;

use ProxyHeaderError::{Addresses, Command, Family, Field, Line, Missing, TooLong, Version};

/// Commands of version 2.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// Families and transports of version 2.
const TCP4: u8 = 0x11;
const UDP4: u8 = 0x12;
const TCP6: u8 = 0x21;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

/// Returns a header of version 2.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [SIGNATURE_V2, &[command, family], &length, block].concat()
}

/// Returns the block of addresses and ports for a source and a destination.
fn block(source: &str, destination: &str) -> Vec<u8> {
    let octets = |text: &str| match text.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    [
        octets(source),
        octets(destination),
        vec![0x30, 0x39, 1, 0xbb],
    ]
    .concat()
}

fn ipv4() -> Vec<u8> {
    block("192.0.2.7", "198.51.100.1")
}

/// Returns a type-length-value field.
fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

fn valid() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let ipv6 = block("2001:db8::7", "2001:db8::1");
    let with = |fields: &[Vec<u8>]| v2(PROXY, TCP4, &[ipv4(), fields.concat()].concat());
    let line = |text: &str| format!("PROXY {text}\r\n").into_bytes();
    let source = Some("192.0.2.7");
    vec![
        (
            "TCP4",
            line("TCP4 192.0.2.7 198.51.100.1 12345 443"),
            source,
        ),
        (
            "highest values",
            line("TCP4 255.255.255.255 255.255.255.255 65535 65535"),
            Some("255.255.255.255"),
        ),
        ("port 0", line("TCP4 192.0.2.7 198.51.100.1 0 0"), source),
        (
            "TCP6",
            line("TCP6 2001:db8::7 2001:db8::1 12345 443"),
            Some("2001:db8::7"),
        ),
        (
            "TCP6 in upper case",
            line("TCP6 2001:DB8::7 2001:DB8::1 1 2"),
            Some("2001:db8::7"),
        ),
        (
            "longest TCP6",
            line(
                "TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            ),
            Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ),
        (
            "mapped address",
            line("TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 1 2"),
            source,
        ),
        (
            "mapped address in hex",
            line("TCP6 ::ffff:c000:207 ::1 1 2"),
            source,
        ),
        ("UNKNOWN", line("UNKNOWN"), None),
        (
            "UNKNOWN with a rest",
            line("UNKNOWN 192.0.2.7 198.51.100.1 1 2"),
            None,
        ),
        (
            "UNKNOWN with bytes that are not text",
            b"PROXY UNKNOWN \xff\0\r\n".to_vec(),
            None,
        ),
        (
            "longest UNKNOWN",
            line(
                "UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            ),
            None,
        ),
        ("v2 TCP4", v2(PROXY, TCP4, &ipv4()), source),
        ("v2 TCP6", v2(PROXY, TCP6, &ipv6), Some("2001:db8::7")),
        (
            "v2 mapped address",
            v2(PROXY, TCP6, &block("::ffff:192.0.2.7", "::1")),
            source,
        ),
        ("v2 UDP4", v2(PROXY, UDP4, &ipv4()), None),
        ("v2 UDP6", v2(PROXY, UDP6, &ipv6), None),
        ("v2 Unix stream", v2(PROXY, UNIX_STREAM, &[b'/'; 216]), None),
        (
            "v2 Unix datagram",
            v2(PROXY, UNIX_DATAGRAM, &[b'/'; 216]),
            None,
        ),
        ("v2 unspecified", v2(PROXY, 0, &[]), None),
        ("v2 unspecified with a block", v2(PROXY, 0, &[7; 99]), None),
        (
            "v2 unspecified transport of IPv4",
            v2(PROXY, 0x10, &ipv4()),
            None,
        ),
        (
            "v2 unspecified family of a stream",
            v2(PROXY, 0x01, &ipv4()),
            None,
        ),
        ("v2 local", v2(LOCAL, 0, &[]), None),
        ("v2 local with addresses", v2(LOCAL, TCP4, &ipv4()), None),
        (
            "v2 local with a short block",
            v2(LOCAL, TCP4, &[1; 3]),
            None,
        ),
        ("v2 local of an unknown family", v2(LOCAL, 0xff, &[]), None),
        ("v2 with a field", with(&[field(0x05, b"id")]), source),
        ("v2 with an empty field", with(&[field(0x04, b"")]), source),
        (
            "v2 with fields of TLS",
            with(&[field(0x01, b"h2"), field(0x20, &[7; 40])]),
            source,
        ),
        (
            "v2 with an unknown field",
            with(&[field(0xee, &[0xff; 300])]),
            source,
        ),
        (
            "v2 of the maximum length",
            with(&[field(0x04, &vec![0; MAX_HEADER_BYTES - 31])]),
            source,
        ),
    ]
}

/// At least sixty headers that must be rejected, and the reason.
fn malformed() -> Vec<(&'static str, Vec<u8>, ProxyHeaderError)> {
    let mut cases: Vec<(&str, Vec<u8>, ProxyHeaderError)> = [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1\r\n", Line),
        ("PROXY TCP4 192.0.2.7\r\n", Line),
        ("PROXY TCP4\r\n", Line),
        ("PROXY \r\n", Line),
        ("PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7  198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1  1 2\r\n", Line),
        ("PROXY TCP4\t192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7,198.51.100.1 1 2\r\n", Line),
        ("PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP 192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY unknown\r\n", Line),
        ("PROXY UNKNOWNS\r\n", Line),
        ("PROXY UNKNOWN\n", Line),
        ("PROXY UNKNOWN \n\r\n", Line),
        ("PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", Line),
        ("PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP6 2001:db8::7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7.1 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.02.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 0xc0.0.2.7 198.51.100.1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 host 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.256 1 2\r\n", Line),
        ("PROXY TCP6 2001:db8::7::1 2001:db8::1 1 2\r\n", Line),
        ("PROXY TCP6 [2001:db8::7] 2001:db8::1 1 2\r\n", Line),
        ("PROXY TCP6 fe80::7%eth0 2001:db8::1 1 2\r\n", Line),
        ("PROXY TCP6 2001:db8:::7 2001:db8::1 1 2\r\n", Line),
        ("PROXY TCP6 20001:db8::7 2001:db8::1 1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 00 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 0x2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1  2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 \r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 99999999999 2\r\n", Line),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 \u{661} 2\r\n", Line),
        ("proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n", Missing),
        ("PROXYTCP4 192.0.2.7 198.51.100.1 1 2\r\n", Missing),
        ("PROXY\tTCP4 192.0.2.7 198.51.100.1 1 2\r\n", Missing),
        ("PROXY\r\n", Missing),
        (" PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n", Missing),
        ("\r\nPROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n", Missing),
        ("GET / HTTP/1.1\r\n", Missing),
        ("P0", Missing),
        ("\u{16}\u{3}\u{1}", Missing),
        ("\0", Missing),
    ]
    .map(|(text, error)| (text, text.as_bytes().to_vec(), error))
    .into();
    let line = [b"PROXY UNKNOWN ", &[b'x'; 120][..], b"\r\n"].concat();
    cases.push(("line of more than 107 bytes", line, Line));
    let line = [b"PROXY UNKNOWN ", &[b'x'; 92][..], b"\r\n"].concat();
    cases.push(("line of 108 bytes", line, Line));
    cases.push((
        "not text",
        b"PROXY TCP4 \xff 198.51.100.1 1 2\r\n".into(),
        Line,
    ));
    cases.push((
        "NUL",
        b"PROXY TCP4 192.0.2.7\0 198.51.100.1 1 2\r\n".into(),
        Line,
    ));
    let short = |length: usize| v2(PROXY, TCP4, &ipv4()[..length]);
    let short6 = v2(PROXY, TCP6, &[0; 35]);
    let with = |fields: &[u8]| v2(PROXY, TCP4, &[&ipv4(), fields].concat());
    let signature = |index: usize| {
        let mut header = v2(PROXY, TCP4, &ipv4());
        header[index] ^= 1;
        header
    };
    cases.extend([
        ("v2 first byte of the signature", signature(0), Missing),
        ("v2 fifth byte of the signature", signature(4), Missing),
        ("v2 last byte of the signature", signature(11), Missing),
        ("version 0", v2(0x01, TCP4, &ipv4()), Version),
        ("version 1 in binary", v2(0x11, TCP4, &ipv4()), Version),
        ("version 3", v2(0x31, TCP4, &ipv4()), Version),
        ("version 15", v2(0xf1, TCP4, &ipv4()), Version),
        ("command 2", v2(0x22, TCP4, &ipv4()), Command),
        ("command 15", v2(0x2f, TCP4, &ipv4()), Command),
        ("family 4", v2(PROXY, 0x41, &ipv4()), Family),
        ("family 15", v2(PROXY, 0xf1, &ipv4()), Family),
        ("transport 3", v2(PROXY, 0x13, &ipv4()), Family),
        ("transport 15", v2(PROXY, 0x1f, &ipv4()), Family),
        ("no addresses", short(0), Addresses),
        ("addresses without ports", short(8), Addresses),
        ("addresses cut by a byte", short(11), Addresses),
        ("IPv6 addresses cut by a byte", short6, Addresses),
        (
            "IPv4 addresses as IPv6",
            v2(PROXY, TCP6, &ipv4()),
            Addresses,
        ),
        ("field of one byte", with(&[4]), Field),
        ("field of two bytes", with(&[4, 0]), Field),
        ("field longer than the header", with(&[4, 0, 1]), Field),
        (
            "field of the maximum length",
            with(&[4, 0xff, 0xff, 0]),
            Field,
        ),
        ("rest behind a field", with(&[4, 0, 1, 9, 9]), Field),
        (
            "longer than the maximum",
            with(&[0; MAX_HEADER_BYTES - 27]),
            TooLong,
        ),
        ("longest", v2(LOCAL, 0, &vec![0; 65_535]), TooLong),
    ]);
    cases
}

#[test]
fn parses_valid_headers_in_any_pieces() {
    for (name, header, source) in valid() {
        let expected = ProxyHeader {
            length: header.len(),
            source: source.map(|source| source.parse().unwrap()),
        };
        for length in 0..header.len() {
            assert_eq!(parse(&header[..length]), Ok(None), "{name}: {length} bytes");
        }
        assert_eq!(parse(&header), Ok(Some(expected)), "{name}");
        // What follows is not part of it.
        for rest in [&b"\x16\x03\x01"[..], b"PROXY UNKNOWN\r\n", b"\n", b" "] {
            let followed = [&header, rest].concat();
            assert_eq!(parse(&followed), Ok(Some(expected)), "{name}, {rest:?}");
        }
    }
}

#[test]
fn rejects_malformed_headers() {
    let cases = malformed();
    assert!(cases.len() >= 60, "{}", cases.len());
    for (name, header, error) in cases {
        assert_eq!(parse(&header), Err(error), "{name:?}");
        // No part of it is a valid header either.
        for length in 0..header.len() {
            let part = parse(&header[..length]);
            assert!(
                part == Ok(None) || part == Err(error),
                "{name:?}, {length} bytes: {part:?}"
            );
        }
    }
}

#[test]
fn rejects_as_soon_as_bytes_cannot_become_a_header() {
    for (bytes, error) in [
        (&b"G"[..], Missing),
        (b"\x16", Missing),
        (b"PROXX", Missing),
        (b"\r\nG", Missing),
        (b"\r\n\r\n\0\r\nQUIT\n\x31", Version),
        (b"\r\n\r\n\0\r\nQUIT\n\x22", Command),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x41\0\x0c", Family),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", TooLong),
    ] {
        assert_eq!(parse(bytes), Err(error), "{bytes:?}");
    }
}
