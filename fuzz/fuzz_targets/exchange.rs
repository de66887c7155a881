//! Complete exchanges: requests over HTTP/1.1 and HTTP/2 to a bastion in this process, and a
//! recording backend. Each request that the backend receives must be one that the input was
//! authorized to send, strict HTTP/1.1, and without credentials.
#![no_main]

mod exchange {
    pub mod backend;
    pub mod http1;
    pub mod http2;
    pub mod input;
    pub mod strict;
    pub mod world;
}

use exchange::input::Case;
use exchange::world::world;
use exchange::{http1, http2};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: Case| {
    let world = world();
    let requests = case.requests();
    world.backend.expect(&case, &requests);
    if case.http2 {
        http2::exchange(world, &requests);
    } else {
        http1::exchange(world, &requests, &case.surplus);
    }
    let violations = world.backend.violations();
    assert!(violations.is_empty(), "{case:?}\n{}", violations.join("\n"));
});
