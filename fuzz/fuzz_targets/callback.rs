//! Callbacks and operators' commands as text, with headers and bodies of any version.

#![no_main]

#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod harness;
#[path = "../../tests/it/properties/target.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod target;

libfuzzer_sys::fuzz_target!(|request: &[u8]| {
    if request.starts_with(b"POST /runner/") {
        _ = target::request_holds(request);
    }
});
