//! Runs `kontrol_master::fuzz::store_url`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::store_url(data));
