//! `kontrol-slave`: reports one pod to its masters. Exit codes: 0 stopped as told, 1 failed, 2 wrong settings.

use kontrol_slave::{
    config::{self, Args},
    logging, process, program,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = process::helper() {
        return code;
    }
    let args = match config::parse::<Args>() {
        Ok(args) => args,
        Err(error) => return config::refuse("kontrol-slave", &error),
    };
    let config = match args.check() {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                eprintln!("kontrol-slave: {mistake}");
            }
            return ExitCode::from(2);
        }
    };
    logging::init(config.log_format, config.verbose);
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
