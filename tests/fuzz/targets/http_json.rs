//! Runs `kontrol_master::fuzz::http_json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::http_json(data));
