//! Webhook deliveries as text: headers, content type, body, signed or not.

#![no_main]

use std::cell::RefCell;

#[path = "../../tests/it/properties/harness.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod harness;

thread_local! {
    static TARGET: RefCell<harness::Target> = RefCell::new(harness::Target::new());
}

libfuzzer_sys::fuzz_target!(|request: &[u8]| {
    if request.starts_with(b"POST /github/") {
        TARGET.with(|target| target.borrow_mut().holds_for(request));
    }
});
