//! Parser of recorded responses.

use super::RecordedResponse;
use crate::support::raw::{Field, Head};

/// Parses the bytes received so far. `ended` is true if no more bytes follow.
pub fn response(mut bytes: &[u8], method: &str, ended: bool) -> RecordedResponse {
    let mut response = RecordedResponse::default();
    let head = loop {
        let Some(end) = position(bytes, b"\r\n\r\n") else {
            return response;
        };
        let head = Head::parse(&bytes[..end + 2]);
        bytes = &bytes[end + 4..];
        match status(&head) {
            101 => {
                response.tunnel = bytes.to_vec();
                response.head = Some(head);
                // A tunnel is complete at its end.
                response.complete = ended;
                return response;
            }
            100..200 => response.interim.push(head),
            _ => break head,
        }
    };
    let bodyless = method == "HEAD" || matches!(status(&head), 204 | 304);
    if bodyless {
        response.complete = true;
    } else if head.is_chunked() {
        chunked(bytes, &mut response);
    } else if let Some(length) = head.content_length() {
        response.complete = bytes.len() >= length;
        response.body = bytes[..bytes.len().min(length)].to_vec();
    } else {
        response.body = bytes.to_vec();
        response.complete = ended;
    }
    response.head = Some(head);
    response
}

fn chunked(mut bytes: &[u8], response: &mut RecordedResponse) {
    loop {
        let Some(end) = position(bytes, b"\r\n") else {
            return;
        };
        let size = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let Ok(size) = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
        else {
            return;
        };
        bytes = &bytes[end + 2..];
        if size == 0 {
            break;
        }
        response
            .body
            .extend_from_slice(&bytes[..bytes.len().min(size)]);
        let Some(rest) = bytes.get(size + 2..) else {
            return;
        };
        bytes = rest;
    }
    if bytes.starts_with(b"\r\n") {
        response.complete = true;
    } else if let Some(end) = position(bytes, b"\r\n\r\n") {
        response.trailers = Field::parse(&bytes[..end + 2]);
        response.complete = true;
    }
}

pub fn status(head: &Head) -> u16 {
    head.line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

fn position(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}
