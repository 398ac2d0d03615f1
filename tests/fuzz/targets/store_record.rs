//! Runs `kontrol_master::fuzz::store_record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::store_record(data));
