//! The bytes of an answer taken apart.

use super::Answer;
use crate::support::raw::{Field, Head};

/// Parses what there is so far; `ended` says that nothing more will come.
pub fn answer(mut bytes: &[u8], method: &str, ended: bool) -> Answer {
    let mut answer = Answer::default();
    let head = loop {
        let Some(end) = position(bytes, b"\r\n\r\n") else {
            return answer;
        };
        let head = Head::parse(&bytes[..end + 2]);
        bytes = &bytes[end + 4..];
        match status(&head) {
            101 => {
                answer.tunnel = bytes.to_vec();
                answer.head = Some(head);
                // A tunnel is whole when it is over.
                answer.complete = ended;
                return answer;
            }
            100..200 => answer.interim.push(head),
            _ => break head,
        }
    };
    let bodyless = method == "HEAD" || matches!(status(&head), 204 | 304);
    if bodyless {
        answer.complete = true;
    } else if head.is_chunked() {
        chunked(bytes, &mut answer);
    } else if let Some(length) = head.content_length() {
        answer.complete = bytes.len() >= length;
        answer.body = bytes[..bytes.len().min(length)].to_vec();
    } else {
        answer.body = bytes.to_vec();
        answer.complete = ended;
    }
    answer.head = Some(head);
    answer
}

fn chunked(mut bytes: &[u8], answer: &mut Answer) {
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
        answer
            .body
            .extend_from_slice(&bytes[..bytes.len().min(size)]);
        let Some(rest) = bytes.get(size + 2..) else {
            return;
        };
        bytes = rest;
    }
    if bytes.starts_with(b"\r\n") {
        answer.complete = true;
    } else if let Some(end) = position(bytes, b"\r\n\r\n") {
        answer.trailers = Field::parse(&bytes[..end + 2]);
        answer.complete = true;
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
