//! The HTTP/1.1 codec without I/O, against a naive parser: both accept the same heads and bodies,
//! with the same content. The codec reports the same for any pieces in which the input arrives, and
//! writes what it accepted one to one.
#![no_main]

mod h1 {
    pub mod codec;
    pub mod input;
    pub mod message;
    pub mod reference;
    pub mod written;
}

use h1::codec::{Parsed, Reader};
use h1::input::Input;
use h1::message::{Line, Transcript, by_name};
use h1::{reference, written};
use http::{Method, StatusCode, Version};
use libfuzzer_sys::fuzz_target;

/// Maximum number of messages of an input.
const MAX_MESSAGES: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let input = Input::parse(bytes);
    let shown = || format!("{input}");
    let method = input
        .method
        .map(|method| Method::from_bytes(method.as_bytes()).expect("a method"));

    let mut whole = Reader::new(method.clone(), MAX_MESSAGES);
    whole.feed(&input.message);
    let (read, parsed) = whole.finish();

    let mut pieces = Reader::new(method.clone(), MAX_MESSAGES);
    for piece in input.pieces() {
        pieces.feed(piece);
    }
    assert_eq!(pieces.finish().0, read, "in pieces (left)\n{}", shown());

    let end = kube_bastion::http::h1::find_head_end(&input.message, 0);
    assert_eq!(end, reference::head_end(&input.message), "{}", shown());
    let expected = reference::read(&input.message, input.method, MAX_MESSAGES);
    assert_eq!(
        comparable(read),
        comparable(reference::read(&input.message, input.method, MAX_MESSAGES)),
        "expected by the reference (right)\n{}",
        shown()
    );

    for (parsed, message) in parsed.iter().zip(&expected.messages) {
        match parsed {
            Parsed::Request(request) => written::check_request(request, &message.head),
            Parsed::Response(response) => written::check_response(
                response,
                &message.head,
                method.as_ref().expect("responses have one"),
                if input.http10 {
                    Version::HTTP_10
                } else {
                    Version::HTTP_11
                },
                input.keep_alive,
            ),
        }
    }
});

/// Removes what the parsers may represent differently: the order and spelling of the fields of
/// responses, which is checked where they are written, and usual reason phrases.
fn comparable(mut transcript: Transcript) -> Transcript {
    for message in &mut transcript.messages {
        message.body.trailers = by_name(&message.body.trailers);
        if let Line::Response { status, reason } = &mut message.head.line {
            let usual = StatusCode::from_u16(*status)
                .ok()
                .and_then(|status| status.canonical_reason());
            if usual.is_some_and(|usual| usual.as_bytes() == reason) {
                reason.clear();
            }
            message.head.fields = by_name(&message.head.fields);
        }
    }
    transcript
}
