//! See `agent_fips_proxy::fuzz::answer_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent_fips_proxy::fuzz::answer_head(bytes));
