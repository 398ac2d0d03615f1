//! `kontrol-slave`: reports one pod to its masters. Exit codes: 0 stopped as told, 1 failed, 2 wrong settings.

use kontrol_runtime::{command_line, dial, logging, process};
use kontrol_slave::{config::Args, program};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = process::helper() {
        return code;
    }
    let code = match process::start_clean() {
        Ok(()) => run(),
        Err(error) => command_line::fail("kontrol-slave", &error),
    };
    logging::flush();
    code
}

fn run() -> ExitCode {
    process::raise_open_files();
    let args = match command_line::parse::<Args>() {
        Ok(args) => args,
        Err(error) => return command_line::refuse("kontrol-slave", &error),
    };
    let config = match args.check(dial::token_variable()) {
        Ok(config) => config,
        Err(mistakes) => return command_line::refuse_settings("kontrol-slave", &mistakes),
    };
    if let Err(error) = logging::init(config.log_format, config.verbose) {
        return command_line::fail("kontrol-slave", &error);
    }
    if let Err(error) = process::keep_private() {
        tracing::warn!("commands could read the variables of this program: {error}");
    }
    match program::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
