//! `kontrol-master`: serves, or asks a master that does.

fn main() {}
