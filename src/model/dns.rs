//! DNS names as Kubernetes uses them for objects (RFC 1123).

/// Maximum length of a label, and so of a namespace and of a port name, in bytes.
pub const MAX_LABEL_BYTES: usize = 63;
/// Maximum length of a subdomain, and so of the name of most objects, in bytes.
pub const MAX_SUBDOMAIN_BYTES: usize = 253;

/// Returns true if `text` is a DNS label: 1 to 63 lowercase letters, digits and dashes, without a
/// dash at either end.
pub fn is_label(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_LABEL_BYTES).contains(&text.len())
        && text.bytes().all(is_allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Returns true if `text` is a DNS subdomain: labels joined by dots, at most 253 bytes in total.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN_BYTES && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_labels_of_lowercase_letters_digits_and_inner_dashes() {
        for label in ["a", "0", "web-1", "a--b", &*"x".repeat(63)] {
            assert!(is_label(label), "{label}");
        }
        for other in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &*"x".repeat(64)] {
            assert!(!is_label(other), "{other}");
        }
    }

    #[test]
    fn accepts_subdomains_of_labels_up_to_253_bytes() {
        let longest = [&*"x".repeat(63); 4].join(".");
        for name in ["a", "cluster.local", "a-1.b", &longest[2..]] {
            assert!(is_subdomain(name), "{name}");
        }
        for other in ["", ".", ".a", "a.", "a..b", "a.-b", &*longest] {
            assert!(!is_subdomain(other), "{other}");
        }
    }
}
