//! Logs: `tracing` to standard error, as text for people or JSON lines for machines.
//!
//! `verbose` shows Kontrol's own debug lines; the libraries below never say less than a warning, since their debug
//! lines (every HTTP/2 frame) bury what a person looks for. So every target of our own begins with `kontrol`.
//!
//! Whoever stops reading stops the log and nothing else: see `sink`. A program ends with [`flush`], and says what it has to
//! say before there is a log, or at its end, with [`say`], which no full or closed standard error turns into a panic.

mod sink;

use sink::{Sink, Stderr};
use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt,
    io::{self, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    sync::OnceLock,
};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    fmt as lines,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// The one sink of this process; none where no thread can be started.
static SINK: OnceLock<Option<Sink>> = OnceLock::new();

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One readable line for each event, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object for each event.
    Json,
}

/// Starts logging for the whole process. A second call changes nothing. Fails where no thread can be started.
pub fn init(format: Format, verbose: bool) -> io::Result<()> {
    let out = sink().ok_or_else(|| io::Error::other("can't start the thread of the log"))?;
    let layer = lines::layer().with_writer(move || out.clone());
    let layer = match format {
        Format::Text => layer
            .with_ansi(io::stderr().is_terminal())
            .with_target(verbose)
            .boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    };
    // Somebody logs already (a test, or the master around an agent): their choice stands.
    let begun = tracing_subscriber::registry()
        .with(layer.with_filter(filter(verbose)))
        .try_init();
    if begun.is_ok() {
        panic::set_hook(Box::new(log_panic));
    }
    Ok(())
}

/// What is logged. What HTTP/2 warns of is what a peer does wrong: whoever does it again and again would fill the disk, and
/// nobody here can do anything about it.
fn filter(verbose: bool) -> Targets {
    let (level, peers) = if verbose {
        (LevelFilter::DEBUG, LevelFilter::WARN)
    } else {
        (LevelFilter::INFO, LevelFilter::ERROR)
    };
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("h2", peers)
        .with_target("kontrol", level)
}

/// Says a line on standard error that is no event of the log.
pub fn say(line: fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    match sink() {
        Some(sink) => sink.push(line.as_bytes()),
        // There is nobody else to tell.
        None => drop(Stderr.write_all(line.as_bytes())),
    }
}

/// Waits until everything was written, but not for long for a reader that takes nothing.
pub fn flush() {
    if let Some(Some(sink)) = SINK.get() {
        sink.flush();
    }
}

/// How many lines were dropped because nobody took them.
pub fn dropped() -> u64 {
    let sink = SINK.get().and_then(Option::as_ref);
    sink.map_or(0, Sink::dropped)
}

fn sink() -> Option<Sink> {
    let report = |count| {
        tracing::warn!(
            dropped = count,
            "log lines were lost: whoever reads standard error did not take them in time"
        );
    };
    SINK.get_or_init(|| Sink::new(Stderr, report).ok()).clone()
}

/// A panic is told as everything else is, and before the process may end of it.
fn log_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let place = info.location().map(ToString::to_string);
    // Only where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    tracing::error!(
        place = place.unwrap_or_default(),
        backtrace = backtrace.map(tracing::field::display),
        "panicked: {}; this is a bug, please report it",
        message.unwrap_or("no message")
    );
    flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn our_own_lines_are_shown_and_of_libraries_only_warnings() {
        for (target, level, plain, verbose) in [
            ("kontrol_master::ensemble::term", Level::INFO, true, true),
            ("kontrol_slave::agent", Level::DEBUG, false, true),
            ("kontrol::callback", Level::INFO, true, true),
            ("h2::codec", Level::INFO, false, false),
            ("h2::codec", Level::WARN, false, true),
            ("hyper", Level::WARN, true, true),
        ] {
            assert_eq!(
                filter(false).would_enable(target, &level),
                plain,
                "{target}"
            );
            assert_eq!(
                filter(true).would_enable(target, &level),
                verbose,
                "{target}"
            );
        }
    }
}
