//! Webhook deliveries as text: headers, content type, body, signed or not.

#![no_main]

#[path = "../../tests/it/properties/harness.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod harness;
#[path = "../../tests/it/stand.rs"]
mod stand;

libfuzzer_sys::fuzz_target!(|request: &[u8]| {
    if request.starts_with(b"POST /github/") {
        _ = harness::request_holds(request);
    }
});
