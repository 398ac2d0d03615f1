//! Runs `kontrol_master::fuzz::strict_json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::strict_json(data));
