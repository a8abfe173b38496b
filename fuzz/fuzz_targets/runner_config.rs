//! RUNNER_CONFIG as arbitrary text.

#![no_main]

#[path = "../../tests/it/harness.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod harness;
#[path = "../../tests/it/properties/target.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod target;

libfuzzer_sys::fuzz_target!(|text: &str| target::runner_config_holds(text));
