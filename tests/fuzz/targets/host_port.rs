//! Runs `kontrol_master::fuzz::host_port`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kontrol_master::fuzz::host_port(data));
