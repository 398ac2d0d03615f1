//! Where answers go: tables or JSON to standard output, notes to standard error.
//!
//! JSON is that of the HTTP gateway, each document on a line.

use super::{error::CliError, stdio::Blocking};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use prost::Message;
use prost_reflect::DescriptorPool;
use std::{env, fmt, io::Write, mem, os::fd::AsFd, sync::OnceLock};

/// Goes back to the beginning of a terminal's line and clears it.
const ERASE_LINE: &[u8] = b"\r\x1b[K";

/// How the user wants answers shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// As a table on a terminal, as JSON elsewhere.
    #[value(alias = "")]
    Auto,
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// How to show an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// How to make text stand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// It does not.
    Plain,
    /// A heading.
    Bold,
    /// What went well.
    Good,
    /// What went wrong.
    Bad,
    /// What should be looked at.
    Notable,
    /// A colour by its number in ECMA-48, to tell things apart.
    Colour(u8),
}

/// The process's two ways to tell something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    Out,
    Err,
}

/// Where a port leads.
struct Sink<'a> {
    writer: &'a mut dyn Write,
    terminal: bool,
    colour: bool,
}

/// Where answers and notes go.
pub struct Output<'a> {
    format: Format,
    out: Sink<'a>,
    err: Sink<'a>,
    /// Whether the terminal shows a line of progress, which the next output replaces.
    progress: bool,
}

impl<'a> Output<'a> {
    /// The process's own standard output and error.
    pub fn new(
        choice: Choice,
        out: &'a mut Blocking<impl AsFd>,
        err: &'a mut Blocking<impl AsFd>,
    ) -> Self {
        let format = match choice {
            Choice::Table => Format::Table,
            Choice::Auto if out.is_terminal() => Format::Table,
            Choice::Auto | Choice::Json => Format::Json,
        };
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let (out_terminal, err_terminal) = (out.is_terminal(), err.is_terminal());
        let sink = |writer, terminal| Sink {
            writer,
            terminal,
            colour: terminal && !no_colour,
        };
        Self {
            format,
            out: sink(out as &mut dyn Write, out_terminal),
            err: sink(err, err_terminal),
            progress: false,
        }
    }

    /// Writes to anything, as to a terminal with colours or as to a file.
    #[cfg(test)]
    pub(super) fn to(
        format: Format,
        terminal: bool,
        out: &'a mut dyn Write,
        err: &'a mut dyn Write,
    ) -> Self {
        let sink = |writer| Sink {
            writer,
            terminal,
            colour: terminal,
        };
        Self {
            format,
            out: sink(out),
            err: sink(err),
            progress: false,
        }
    }

    /// How answers are shown.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Text that stands out in the answer, where that can be seen.
    pub fn paint(&self, style: Style, text: &str) -> String {
        self.paint_for(Port::Out, style, text)
    }

    /// Text that stands out on that port, where that can be seen.
    pub(super) fn paint_for(&self, port: Port, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Bold => 1,
            Style::Good => 32,
            Style::Bad => 31,
            Style::Notable => 33,
            Style::Colour(code) => code,
        };
        let sink = match port {
            Port::Out => &self.out,
            Port::Err => &self.err,
        };
        if sink.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// Writes bytes as they are.
    pub(super) fn bytes(&mut self, port: Port, bytes: &[u8]) -> Result<(), CliError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if mem::take(&mut self.progress) {
            self.err.writer.write_all(ERASE_LINE)?;
        }
        let writer = match port {
            Port::Out => &mut self.out.writer,
            Port::Err => &mut self.err.writer,
        };
        writer.write_all(bytes)?;
        Ok(writer.flush()?)
    }

    /// Writes a line of the answer.
    pub fn line(&mut self, line: impl fmt::Display) -> Result<(), CliError> {
        self.bytes(Port::Out, format!("{line}\n").as_bytes())
    }

    /// Writes a message as a line of JSON.
    pub(super) fn json(&mut self, message: &impl Message, name: &str) -> Result<(), CliError> {
        let line = json(message, name)?;
        self.line(line)
    }

    /// Writes a table: the header stands out, columns are two spaces apart.
    pub(super) fn table(
        &mut self,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), CliError> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        let mut style = Style::Bold;
        for line in table.lines() {
            text += &self.paint(style, line.trim_end());
            text.push('\n');
            style = Style::Plain;
        }
        self.bytes(Port::Out, text.as_bytes())
    }

    /// Tells the user something that is no part of the answer. Nobody is left to be told when that fails.
    pub fn note(&mut self, note: impl fmt::Display) {
        let _ = self.bytes(Port::Err, format!("{note}\n").as_bytes());
    }

    /// Whether progress can be shown.
    pub(super) fn shows_progress(&self) -> bool {
        self.err.terminal
    }

    /// Shows a short line that the next output replaces. It is no loss when that fails.
    pub(super) fn progress(&mut self, line: &str) {
        let _ = self.bytes(Port::Err, line.as_bytes());
        self.progress = true;
    }
}

/// A message as proto3 JSON; `name` is its full protobuf name.
pub(super) fn json(message: &impl Message, name: &str) -> Result<String, CliError> {
    let unreadable = |error: &dyn fmt::Display| {
        CliError::Failed(format!("cannot show the answer as JSON: {error}"))
    };
    let text = kontrol_proto::json::write(&descriptor(name)?, &message.encode_to_vec())
        .map_err(|error| unreadable(&error))?;
    String::from_utf8(text).map_err(|error| unreadable(&error))
}

/// The descriptor of a message.
pub(super) fn descriptor(name: &str) -> Result<prost_reflect::MessageDescriptor, CliError> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(kontrol_proto::FILE_DESCRIPTOR_SET).ok())
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(name))
        .ok_or_else(|| CliError::Failed(format!("this program has no descriptor of {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_stands_until_the_next_output() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut output = Output::to(Format::Table, true, &mut out, &mut err);
        output.progress("1/2 done");
        output.progress("2/2 done");
        output.line("answer").unwrap();
        output.note("note");
        assert_eq!(out, b"answer\n");
        assert_eq!(err, b"1/2 done\r\x1b[K2/2 done\r\x1b[Knote\n");
    }
}
