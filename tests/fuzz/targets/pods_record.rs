//! Runs `kontrol_master::fuzz::pods_record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::pods_record(data));
