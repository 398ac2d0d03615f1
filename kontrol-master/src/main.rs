//! `kontrol-master`: serves, or asks a master that does.

use kontrol_master::callback;
use std::{env, process::ExitCode};

fn main() -> ExitCode {
    // These two are for the master itself. They start before any thread does.
    let mut arguments = env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|name| name.to_str()) {
        Some("guard") => callback::guard::main(arguments),
        Some("shim") => callback::shim::main(arguments),
        _ => ExitCode::SUCCESS,
    }
}
