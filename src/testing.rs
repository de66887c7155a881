//! Helpers of the unit tests.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::model::ClientAddress;

/// Polls a condition every 10 ms until it is true.
///
/// # Panics
/// Panics if the condition is still false after `timeout`.
pub async fn eventually(timeout: Duration, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(timeout, waited).await.unwrap();
}

/// Returns a client address of a documentation network (RFC 5737) with the last octet `last`.
pub fn client(last: u8) -> ClientAddress {
    IpAddr::from([192, 0, 2, last]).into()
}

/// Compresses bytes with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
