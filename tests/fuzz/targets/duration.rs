//! Runs `kontrol_master::fuzz::duration`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::duration(data));
