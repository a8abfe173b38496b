//! RUNNER_CONFIG.

#![no_main]

#[path = "../../tests/it/properties/harness.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod harness;
#[path = "../../tests/it/stand.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod stand;

libfuzzer_sys::fuzz_target!(|text: &str| harness::runner_config_holds(text));
