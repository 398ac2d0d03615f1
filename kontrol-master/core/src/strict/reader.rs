//! The reader: pulled token by token, by whoever knows what is to come. PURE.

use super::{Numbers, layout::string_length, number::comes_back};
use serde::de::IgnoredAny;
use serde_json::error::Category;
use std::{borrow::Cow, collections::HashSet, fmt};

/// How much of a name a path shows.
const SHOWN_CHARS: usize = 64;
/// How much of a path is shown, in bytes: the rest of a longer one is left out.
const SHOWN_PATH_BYTES: usize = 512;

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The path of the value that is wrong; empty for the outermost, and for text that is no JSON.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// The text is no JSON at all.
    pub malformed: bool,
}

impl Fault {
    pub(super) fn malformed(error: impl fmt::Display) -> Self {
        Self {
            path: String::new(),
            reason: error.to_string(),
            malformed: true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, reason, .. } = self;
        if path.is_empty() {
            f.write_str(reason)
        } else {
            write!(f, "{path}: {reason}")
        }
    }
}

impl std::error::Error for Fault {}

/// What a value begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// `[`
    Array,
    /// `{`
    Object,
}

/// An array or object whose end is still to come.
#[derive(Debug)]
enum Level<'t> {
    /// How many items came.
    Array(usize),
    Object {
        names: HashSet<Cow<'t, str>>,
        /// The member that is read.
        name: Cow<'t, str>,
    },
}

/// Reads one JSON value from a text.
#[derive(Debug)]
pub struct Reader<'t> {
    text: &'t str,
    at: usize,
    max_depth: usize,
    /// What the outermost value is called.
    root: &'t str,
    levels: Vec<Level<'t>>,
}

impl<'t> Reader<'t> {
    /// A reader of a value that may nest so deep; a scalar is 0.
    pub fn new(text: &'t str, max_depth: usize) -> Self {
        Self {
            text,
            at: 0,
            max_depth,
            root: "",
            levels: Vec::new(),
        }
    }

    /// A reader whose paths begin with this name.
    pub fn named(root: &'t str, text: &'t str, max_depth: usize) -> Self {
        Self {
            root,
            ..Self::new(text, max_depth)
        }
    }

    /// What comes next.
    pub fn peek(&mut self) -> Result<Kind, Fault> {
        self.skip_space();
        match self.byte() {
            Some(b'n') => Ok(Kind::Null),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b'"') => Ok(Kind::String),
            Some(b'[') => Ok(Kind::Array),
            Some(b'{') => Ok(Kind::Object),
            _ => Err(self.malformed()),
        }
    }

    /// Reads `null`, `true` or `false`.
    pub fn literal(&mut self) -> Result<&'t str, Fault> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let known = ["null", "true", "false"];
        match known.iter().find(|literal| rest.starts_with(**literal)) {
            Some(literal) => Ok(self.take(literal.len())),
            None => Err(self.malformed()),
        }
    }

    /// Reads a number within the range of doubles, as it is written.
    pub fn number(&mut self) -> Result<&'t str, Fault> {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().take_while(is_part).count();
        match serde_json::from_str::<f64>(&self.text[self.at..self.at + length]) {
            Ok(_) => Ok(self.take(length)),
            Err(error) => Err(self.malformed_token(&error)),
        }
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<Cow<'t, str>, Fault> {
        self.skip_space();
        let rest = &self.text[self.at..];
        if !rest.starts_with('"') {
            return Err(self.malformed());
        }
        let token = &rest[..string_length(rest)];
        let inner = token.get(1..token.len() - 1).unwrap_or_default();
        let plain = token.len() > 1 && token.ends_with('"');
        if plain && !inner.bytes().any(|byte| byte == b'\\' || byte < 0x20) {
            self.at += token.len();
            return Ok(Cow::Borrowed(inner));
        }
        match serde_json::from_str::<String>(token) {
            Ok(text) => {
                self.at += token.len();
                Ok(Cow::Owned(text))
            }
            Err(error) => Err(self.malformed_token(&error)),
        }
    }

    /// Enters an array or an object.
    pub fn open(&mut self) -> Result<(), Fault> {
        self.skip_space();
        let level = match self.byte() {
            Some(b'[') => Level::Array(0),
            Some(b'{') => Level::Object {
                names: HashSet::new(),
                name: Cow::Borrowed(""),
            },
            _ => return Err(self.malformed()),
        };
        if self.levels.len() >= self.max_depth {
            let reason = format!(
                "nests too deeply: JSON may nest {} levels here",
                self.max_depth
            );
            return Err(self.fault(reason));
        }
        self.at += 1;
        self.levels.push(level);
        Ok(())
    }

    /// Goes on to the next item of the array that was entered last; false at its end.
    pub fn item(&mut self) -> Result<bool, Fault> {
        self.skip_space();
        let Some(Level::Array(count)) = self.levels.last_mut() else {
            return Err(self.malformed());
        };
        let first = *count == 0;
        match self.text.as_bytes().get(self.at) {
            Some(b']') => {
                self.at += 1;
                self.levels.pop();
                return Ok(false);
            }
            Some(b',') if !first => self.at += 1,
            Some(_) if first => {}
            _ => return Err(self.malformed()),
        }
        *count += 1;
        Ok(true)
    }

    /// Goes on to the next member of the object that was entered last, and tells its name; none at its end.
    pub fn name(&mut self) -> Result<Option<Cow<'t, str>>, Fault> {
        self.skip_space();
        let Some(Level::Object { names, .. }) = self.levels.last() else {
            return Err(self.malformed());
        };
        let first = names.is_empty();
        match self.byte() {
            Some(b'}') => {
                self.at += 1;
                self.levels.pop();
                return Ok(None);
            }
            Some(b',') if !first => self.at += 1,
            Some(b'"') if first => {}
            _ => return Err(self.malformed()),
        }
        self.skip_space();
        let given = self.string()?;
        self.skip_space();
        if self.byte() != Some(b':') {
            return Err(self.malformed());
        }
        self.at += 1;
        let mut is_new = false;
        if let Some(Level::Object { names, name }) = self.levels.last_mut() {
            is_new = names.insert(given.clone());
            *name = given.clone();
        }
        if !is_new {
            return Err(self.fault("is given twice"));
        }
        Ok(Some(given))
    }

    /// Passes over a value and checks all of it; tells its text.
    pub fn skip(&mut self, numbers: Numbers) -> Result<&'t str, Fault> {
        let kind = self.peek()?;
        let start = self.at;
        match kind {
            Kind::Null | Kind::Bool => drop(self.literal()?),
            Kind::Number if numbers == Numbers::Exact => drop(self.exact_number()?),
            Kind::Number => drop(self.number()?),
            Kind::String => drop(self.string()?),
            Kind::Array => {
                self.open()?;
                while self.item()? {
                    self.skip(numbers)?;
                }
            }
            Kind::Object => {
                self.open()?;
                while self.name()?.is_some() {
                    self.skip(numbers)?;
                }
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// Reads a number that comes back from a double as it is written.
    pub fn exact_number(&mut self) -> Result<&'t str, Fault> {
        let token = self.number()?;
        if comes_back(token) {
            return Ok(token);
        }
        let shown: String = token.chars().take(SHOWN_CHARS).collect();
        let reason = format!(
            "the number {shown} does not fit a double, which is what holds it here: write it as a string"
        );
        Err(self.fault(reason))
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<(), Fault> {
        self.skip_space();
        if self.at < self.text.len() {
            return Err(self.malformed());
        }
        Ok(())
    }

    /// Something is wrong with the value that is read.
    pub fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault {
            path: self.path(),
            reason: reason.into(),
            malformed: false,
        }
    }

    fn path(&self) -> String {
        let mut path = self.root.to_owned();
        for level in &self.levels {
            if path.len() >= SHOWN_PATH_BYTES {
                path.push('…');
                break;
            }
            match level {
                Level::Array(0) => {}
                Level::Array(count) => path += &format!("[{}]", count - 1),
                Level::Object { names, .. } if names.is_empty() => {}
                Level::Object { name, .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    let shown = name.chars().take(SHOWN_CHARS);
                    path.extend(shown.flat_map(char::escape_debug));
                }
            }
        }
        path
    }

    /// The text is no JSON: why, serde_json says best.
    fn malformed(&self) -> Fault {
        match serde_json::from_str::<IgnoredAny>(self.text) {
            Err(error) => Fault::malformed(error),
            Ok(_) => Fault::malformed("it can't be read"),
        }
    }

    /// A token is none, for a reason that a parser of it alone gave.
    fn malformed_token(&self, error: &serde_json::Error) -> Fault {
        let reason = error.to_string();
        let is_cut = error.classify() == Category::Eof;
        let reason = if is_cut && !self.text[self.at..].starts_with('"') {
            "invalid number"
        } else {
            reason.split(" at line ").next().unwrap_or_default()
        };
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
        Fault::malformed(format_args!("{reason} at line {line} column {column}"))
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, length: usize) -> &'t str {
        let token = &self.text[self.at..self.at + length];
        self.at += length;
        token
    }

    fn skip_space(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.at += rest.iter().take_while(is_space).count();
    }
}
