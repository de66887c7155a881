//! Messages of SOCKS clients. Whatever arrives, a prefix of a message is either incomplete or
//! rejected as the whole is, no message is longer than 262 bytes, and targets that are written are
//! parsed as the same.
#![no_main]

use kube_bastion::desk::forward::socks::{
    Parsed, parse_datagram, parse_greeting, parse_request, write_datagram_header,
};
use libfuzzer_sys::fuzz_target;

const MAX_MESSAGE: usize = 262;

fuzz_target!(|bytes: &[u8]| {
    check(bytes, parse_greeting);
    check(bytes, parse_request);
    if let Some((target, payload)) = parse_datagram(bytes) {
        let mut written = Vec::new();
        write_datagram_header(&target, &mut written);
        written.extend_from_slice(payload);
        assert_eq!(parse_datagram(&written), Some((target.clone(), payload)));
        let text = target.to_string();
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
        assert!(!text.contains(['/', '@', '?', '#']), "{text}");
    }
});

fn check<T: PartialEq + std::fmt::Debug>(bytes: &[u8], parse: impl Fn(&[u8]) -> Parsed<T>) {
    let whole = parse(bytes);
    match &whole {
        Ok(Some((_, length))) => {
            assert!(*length <= MAX_MESSAGE && *length <= bytes.len());
            assert_eq!(parse(&bytes[..*length]), whole);
            assert_eq!(parse(&bytes[..*length - 1]), Ok(None));
        }
        Ok(None) => assert!(bytes.len() < MAX_MESSAGE),
        Err(_) => {
            for length in 0..bytes.len().min(MAX_MESSAGE) {
                let part = parse(&bytes[..length]);
                assert!(part == Ok(None) || part == whole);
            }
        }
    }
}
