//! See `agent_fips_proxy::fuzz::chunked_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent_fips_proxy::fuzz::chunked_body(bytes));
