//! Logs: `tracing` to standard error, as text for people or JSON lines for machines.
//!
//! `verbose` shows Kontrol's own debug lines; the libraries below never say less than a warning, since their debug
//! lines (every HTTP/2 frame) bury what a person looks for.

use std::io::{self, IsTerminal};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One readable line for each event, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object for each event.
    Json,
}

/// Starts logging for the whole process. A second call changes nothing.
pub fn init(format: Format, verbose: bool) {
    let level = if verbose {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("kontrol", level);
    let layer = fmt::layer().with_writer(io::stderr);
    let layer = match format {
        Format::Text => layer
            .with_ansi(io::stderr().is_terminal())
            .with_target(verbose)
            .boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    };
    // Somebody logs already (a test, or the master around an agent): their choice stands.
    let _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init();
}
