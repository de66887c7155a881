//! Headers of the PROXY protocol. A header has one result in whatever pieces it arrives and
//! whatever follows it, ends within its limit, and has an address in the notation by which the
//! bastion compares addresses.
#![no_main]

use kube_bastion::model::proxy_header::{MAX_HEADER_BYTES, SIGNATURE_V2, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // A signature for some inputs, because random bytes rarely have one.
    let signed = input
        .strip_prefix(b"@")
        .map(|rest| [SIGNATURE_V2, rest].concat());
    let bytes = signed.as_deref().unwrap_or(input);
    let parsed = parse(bytes);
    let end = match parsed {
        Ok(Some(header)) => {
            assert!(header.length <= MAX_HEADER_BYTES && header.length <= bytes.len());
            assert_eq!(parse(&bytes[..header.length]), parsed);
            if let Some(source) = header.source {
                assert_eq!(source, source.to_canonical());
            }
            header.length
        }
        Ok(None) => {
            assert!(bytes.len() < MAX_HEADER_BYTES, "the header has no end");
            bytes.len()
        }
        Err(_) => bytes.len(),
    };
    for length in 0..end {
        let part = parse(&bytes[..length]);
        let is_error = part.is_err() && part == parsed;
        assert!(part == Ok(None) || is_error, "{length}: {part:?}");
    }
});
