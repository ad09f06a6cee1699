//! See `agent_fips_proxy::fuzz::server_hello`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent_fips_proxy::fuzz::server_hello(bytes));
