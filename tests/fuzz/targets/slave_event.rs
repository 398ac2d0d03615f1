//! Runs `kontrol_master::fuzz::slave_event`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::slave_event(data));
