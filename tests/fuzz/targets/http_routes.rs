//! Runs `kontrol_master::fuzz::http_routes`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::http_routes(data));
