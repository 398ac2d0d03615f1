//! What the user sees of an action: lines behind the names of their pods, bytes as they come, or each message as JSON.
//!
//! Pods write to the port that they mean: standard output or standard error. What is told about them goes to standard
//! error. Only bytes that were asked for as they come can drive the user's terminal.

use super::{
    super::{
        actions::words,
        error::CliError,
        output::{Format, Output, Port, Style},
        text::{clean, clean_line},
    },
    lines::Held,
    names::Names,
    request::{ExecArgs, Shown},
    tally::{self, Tally},
};
use kontrol_proto::v1::{
    ActionResult, DispatchResponse, Stream,
    dispatch_response::{self, Accepted, Event},
};
use prost_types::Duration as ProtoDuration;
use std::{collections::BTreeMap, fmt};

/// How an action is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    Lines,
    Raw,
    Json,
}

/// Shows an action.
pub(super) struct Screen<'o, 'a> {
    output: &'o mut Output<'a>,
    show: Show,
    names: Names,
    tally: Tally,
    timeout: Option<ProtoDuration>,
    /// What targets, by their keys, wrote of lines that are not complete.
    held: BTreeMap<(String, Port), Held>,
    /// As whom masters know the user, where they ask.
    principal: Option<String>,
}

impl<'o, 'a> Screen<'o, 'a> {
    pub(super) fn new(output: &'o mut Output<'a>, args: &ExecArgs, accepted: &Accepted) -> Self {
        let show = match (args.output, output.format()) {
            (Shown::Raw, _) => Show::Raw,
            (Shown::Auto | Shown::Table | Shown::Json, Format::Table) => Show::Lines,
            (Shown::Auto | Shown::Table | Shown::Json, Format::Json) => Show::Json,
        };
        Self {
            output,
            show,
            names: Names::new(&accepted.targets),
            tally: Tally::new(accepted.targets.len()),
            timeout: args.timeout.try_into().ok(),
            held: BTreeMap::new(),
            principal: words::principal(&accepted.dispatcher).map(str::to_owned),
        }
    }

    /// Shows that the action was accepted, to a person only when nothing else will come of it.
    pub(super) fn accepted(&mut self, accepted: Accepted, detach: bool) -> Result<(), CliError> {
        match self.show {
            Show::Json => self.json(&DispatchResponse {
                event: Some(Event::Accepted(accepted)),
            }),
            Show::Lines | Show::Raw if detach => self.output.line(clean(&accepted.action_id)),
            Show::Lines | Show::Raw => Ok(()),
        }
    }

    /// Shows what happened.
    pub(super) fn show(&mut self, message: &DispatchResponse) -> Result<(), CliError> {
        let Some(event) = &message.event else {
            return Ok(()); // of a newer master
        };
        match event {
            Event::Started(started) => self.tally.started(&started.key),
            Event::Finished(result) => self.tally.finished(result),
            Event::Accepted(_) | Event::Output(_) | Event::Summary(_) => {}
        }
        if self.show == Show::Json {
            return self.json(message);
        }
        match event {
            Event::Output(output) => self.wrote(output)?,
            Event::Finished(result) => self.finished(result)?,
            Event::Summary(summary) if self.show == Show::Lines => {
                let outcome = words::outcome(summary);
                match &self.principal {
                    Some(principal) => self
                        .output
                        .note(format_args!("{outcome}, as {}", clean(principal))),
                    None => self.note(outcome),
                }
            }
            Event::Accepted(_) | Event::Started(_) | Event::Summary(_) => {}
        }
        Ok(())
    }

    /// Shows how far the action is, where that can be replaced by what comes next.
    pub(super) fn progress(&mut self) {
        if self.show == Show::Lines
            && self.output.shows_progress()
            && let Some(line) = self.tally.progress()
        {
            self.output.progress(&line);
        }
    }

    /// Shows what is held, when nothing more comes.
    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        while let Some(((key, port), held)) = self.held.pop_first() {
            self.rest(&key, port, held)?;
        }
        Ok(())
    }

    /// Tells the user something.
    pub(super) fn note(&mut self, note: impl fmt::Display) {
        self.output.note(note);
    }

    /// The exit code for all targets that ended so far.
    pub(super) fn exit_code(&self) -> u8 {
        self.tally.exit_code()
    }

    fn json(&mut self, message: &DispatchResponse) -> Result<(), CliError> {
        self.output.json(message, "kontrol.v1.DispatchResponse")
    }

    fn wrote(&mut self, output: &dispatch_response::Output) -> Result<(), CliError> {
        let port = match output.stream() {
            Stream::Stderr => Port::Err,
            Stream::Stdout | Stream::Unspecified => Port::Out,
        };
        if self.show == Show::Raw {
            return self.output.bytes(port, &output.data);
        }
        let prefix = self.prefix(&output.key, port);
        let mut text = String::new();
        let held = self.held.entry((output.key.clone(), port)).or_default();
        held.push(&output.data, |line| text += &prefixed(&prefix, line));
        self.output.bytes(port, text.as_bytes())
    }

    fn finished(&mut self, result: &ActionResult) -> Result<(), CliError> {
        for port in [Port::Out, Port::Err] {
            if let Some(held) = self.held.remove(&(result.key.clone(), port)) {
                self.rest(&result.key, port, held)?;
            }
        }
        let name = self.names.name(&result.key, &result.id);
        if tally::exit_code(result) != 0 {
            let ending = words::ending(result, self.timeout.as_ref());
            let ending = self.output.paint_for(Port::Err, Style::Bad, &ending);
            self.note(format_args!("{name}: {ending}"));
        }
        if result.truncated {
            let missing = "not all of its output is here: it was too much, or a part was lost";
            let missing = self.output.paint_for(Port::Err, Style::Notable, missing);
            self.note(format_args!("{name}: {missing}"));
        }
        Ok(())
    }

    /// Shows the last line of a target, which has no end.
    fn rest(&mut self, key: &str, port: Port, held: Held) -> Result<(), CliError> {
        let Some(line) = held.rest() else {
            return Ok(());
        };
        let text = prefixed(&self.prefix(key, port), &line);
        self.output.bytes(port, text.as_bytes())
    }

    fn prefix(&self, key: &str, port: Port) -> String {
        let (prefix, colour) = self.names.prefix(key);
        self.output.paint_for(port, Style::Colour(colour), &prefix)
    }
}

fn prefixed(prefix: &str, line: &[u8]) -> String {
    let line = clean_line(line);
    let space = if line.is_empty() { "" } else { " " };
    format!("{prefix}{space}{line}\n")
}
