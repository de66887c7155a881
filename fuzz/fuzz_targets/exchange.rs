//! Complete exchanges: requests over HTTP/1.1 and HTTP/2 to a bastion in this process, and a
//! recording backend. Each request that the backend receives must be one that the input was
//! authorized to send, strict HTTP/1.1, with the body that was sent, and without credentials. Each
//! response that the client receives must be that of its request, strict HTTP/1.1, and complete
//! only if the backend sent it completely.
#![no_main]

mod exchange {
    pub mod answer;
    pub mod backend;
    pub mod http1;
    pub mod http2;
    pub mod input;
    pub mod responses;
    pub mod strict;
    pub mod upload;
    pub mod world;
}
#[path = "h1/message.rs"]
mod message;
#[allow(dead_code, reason = "the target of the codec uses all of it")]
#[path = "h1/reference.rs"]
mod reference;

use exchange::input::Case;
use exchange::world::world;
use exchange::{http1, http2, upload};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: Case| {
    let world = world();
    let mut requests = case.requests();
    let checked = if case.http2 {
        world
            .backend
            .expect(&requests, |request| Some(upload::of_http2(request)));
        http2::exchange(world, &requests)
    } else {
        let bytes = http1::bytes(&requests, &case.surplus);
        let sent = upload::of_http1(&bytes);
        for request in &mut requests {
            if let Some(sent) = sent.get(&request.number) {
                request.is_head = sent.is_head;
            }
        }
        world.backend.expect(&requests, |request| {
            sent.get(&request.number).map(|sent| sent.upload.clone())
        });
        http1::exchange(world, &requests, &bytes, case.pieces)
    };
    if let Err(fault) = checked {
        panic!("{case:?}\n{fault}");
    }
    let violations = world.backend.violations();
    assert!(violations.is_empty(), "{case:?}\n{}", violations.join("\n"));
});
