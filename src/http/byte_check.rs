//! Checks of bytes on the hot path.

/// Returns true if a condition holds for all bytes. It compares them in chunks without an early
/// exit within a chunk, which the compiler turns into vector instructions.
pub fn all_bytes(bytes: &[u8], condition: impl Fn(u8) -> bool) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    let all = |part: &[u8]| part.iter().fold(true, |all, byte| all & condition(*byte));
    chunks.iter().all(|chunk| all(chunk)) && all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_bytes_at_every_position() {
        let mut bytes = vec![b'a'; 40];
        assert!(all_bytes(&bytes, |byte| byte == b'a') && all_bytes(b"", |_| false));
        for at in 0..bytes.len() {
            bytes[at] = b'b';
            assert!(!all_bytes(&bytes, |byte| byte == b'a'), "{at}");
            bytes[at] = b'a';
        }
    }
}
