//! Callbacks and commands as text: headers, and bodies of any version.

#![no_main]

#[path = "../../tests/it/properties/harness.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod harness;
#[path = "../../tests/it/stand.rs"]
mod stand;

libfuzzer_sys::fuzz_target!(|request: &[u8]| {
    if request.starts_with(b"POST /runner/") {
        _ = harness::request_holds(request);
    }
});
