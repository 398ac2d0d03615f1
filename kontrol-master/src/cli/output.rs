//! Where answers go: tables or JSON to standard output, notes to standard error.
//!
//! JSON is proto3 JSON from the served descriptors, each document on a line: names in camelCase, default values
//! written out, 64-bit integers as numbers.

use super::error::CliError;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::ser::Formatter;
use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

/// How the user wants answers shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Choice {
    #[value(alias = "")]
    Auto,
    Table,
    Json,
}

/// How to show an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// How to make text stand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Good,
    Bad,
    Notable,
}

/// Where answers and notes go.
pub(super) struct Output<'a> {
    format: Format,
    colour: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<'a> Output<'a> {
    /// The process's own standard output and error.
    pub(super) fn new(choice: Choice, out: &'a mut io::Stdout, err: &'a mut io::Stderr) -> Self {
        let terminal = out.is_terminal();
        let format = match choice {
            Choice::Table => Format::Table,
            Choice::Auto if terminal => Format::Table,
            Choice::Auto | Choice::Json => Format::Json,
        };
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            format,
            colour: terminal && !no_colour,
            out,
            err,
        }
    }

    /// Writes to anything, with colours or without.
    #[cfg(test)]
    pub(super) fn to(
        format: Format,
        colour: bool,
        out: &'a mut dyn Write,
        err: &'a mut dyn Write,
    ) -> Self {
        Self {
            format,
            colour,
            out,
            err,
        }
    }

    /// How answers are shown.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// Text that stands out, where that can be seen.
    pub(super) fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Bold => "1",
            Style::Good => "32",
            Style::Bad => "31",
            Style::Notable => "33",
        };
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// Writes a line of the answer.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> Result<(), CliError> {
        writeln!(self.out, "{line}")?;
        Ok(self.out.flush()?)
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
        let mut header = true;
        for line in table.lines() {
            let style = if header { Style::Bold } else { Style::Plain };
            header = false;
            writeln!(self.out, "{}", self.paint(style, line.trim_end()))?;
        }
        Ok(self.out.flush()?)
    }

    /// Tells the user something that is no part of the answer. Nobody is left to be told when that fails.
    pub(super) fn note(&mut self, note: impl fmt::Display) {
        let _ = writeln!(self.err, "{note}").and_then(|()| self.err.flush());
    }
}

/// A message as proto3 JSON; `name` is its full protobuf name.
pub(super) fn json(message: &impl Message, name: &str) -> Result<String, CliError> {
    let unreadable = |error: &dyn fmt::Display| {
        CliError::Failed(format!("cannot show the answer as JSON: {error}"))
    };
    let message = DynamicMessage::decode(descriptor(name)?, message.encode_to_vec().as_slice())
        .map_err(|error| unreadable(&error))?;
    let options = SerializeOptions::new()
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, ShortNumbers);
    message
        .serialize_with_options(&mut serializer, &options)
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

/// Writes the doubles of `google.protobuf.Value` that are whole as users wrote them: `1`, not `1.0`.
struct ShortNumbers;

impl Formatter for ShortNumbers {
    fn write_f64<W>(&mut self, writer: &mut W, value: f64) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: from here on, doubles skip integers
        if value.fract() == 0.0 && value.abs() < EXACT {
            write!(writer, "{}", value as i64)
        } else {
            serde_json::ser::CompactFormatter.write_f64(writer, value)
        }
    }
}
