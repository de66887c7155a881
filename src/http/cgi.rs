//! Header names as CGI-like backends (WSGI, PHP) read them: `_` and `-` are the same to them.

/// Returns true if `name` begins with `prefix` once `_` is read as `-`. The lengths or the first
/// bytes differ for almost all names, so that it costs no more than a comparison.
pub fn reads_as(name: &str, prefix: &str) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() >= prefix.len()
        && name
            .bytes()
            .zip(prefix.bytes())
            .all(|(a, b)| dashed(a) == dashed(b))
}
