//! `kontrol-slave`: reports one pod to its masters.

fn main() {}
