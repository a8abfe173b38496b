//! Webhook deliveries as text, with any headers and body, signed or not.

#![no_main]

#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod harness;
#[path = "../../tests/it/properties/target.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod target;

libfuzzer_sys::fuzz_target!(|request: &[u8]| {
    if request.starts_with(b"POST /github/") {
        _ = target::request_holds(request);
    }
});
