//! Runs `kontrol_master::fuzz::callback_output`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::callback_output(data));
