//! See `agent_fips_proxy::fuzz::nftables`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent_fips_proxy::fuzz::nftables(bytes));
