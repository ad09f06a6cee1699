//! See `agent_fips_proxy::fuzz::event`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent_fips_proxy::fuzz::event(bytes));
