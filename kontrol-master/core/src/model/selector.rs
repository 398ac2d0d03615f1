//! Label selectors in the syntax of Kubernetes: which pods somebody asks for by their labels. PURE.
//!
//! ```text
//! selector    = [ requirement *( "," requirement ) ]       all must hold; nothing at all holds for every pod
//! requirement = key | "!" key                              there is such a label | there is none
//!             | key ("=" | "==") value | key "!=" value
//!             | key ("in" | "notin") "(" value *( "," value ) ")"
//! ```
//!
//! White space is free. A key or value is anything without white space and `, = ! ( ) < >`; a value may be empty.
//! As in Kubernetes, `!=` and `notin` also hold for a pod that has no such label.

use super::invalid::clip;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

/// Longest selector, in bytes.
pub const MAX_SELECTOR_BYTES: usize = 16 * 1024;

/// What must hold for the labels of a pod. The default holds for every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// What must hold for one label.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

/// A test of one label. The sets are never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It is longer than any sensible selector.
    #[error("is longer than {MAX_SELECTOR_BYTES} bytes")]
    TooLong,
    /// Something else was expected somewhere.
    #[error("at character {position}: found {found}, expected {expected}")]
    Syntax {
        /// Where, in characters, the first being 1.
        position: usize,
        /// What is there.
        found: String,
        /// What could be there.
        expected: &'static str,
    },
}

impl Selector {
    /// Tells whether labels meet every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            }
        })
    }

    /// Tells whether it asks for nothing, so that every pod matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    /// One value is written with `=`, because `in ()` is no way to write a single empty one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (equal, among, values) = match &self.test {
            Test::Exists => return f.write_str(&self.key),
            Test::Absent => return write!(f, "!{}", self.key),
            Test::In(values) => ("=", "in", values),
            Test::NotIn(values) => ("!=", "notin", values),
        };
        let mut rest = values.iter();
        if let (Some(value), None) = (rest.next(), rest.next()) {
            return write!(f, "{}{equal}{value}", self.key);
        }
        write!(f, "{} {among} (", self.key)?;
        for (index, value) in values.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            f.write_str(value)?;
        }
        f.write_str(")")
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError::TooLong);
        }
        let mut requirements = Vec::new();
        let mut reader = Reader { text, at: 0 };
        if reader.peek() == Token::End {
            return Ok(Self { requirements });
        }
        loop {
            requirements.push(reader.requirement()?);
            match reader.peek() {
                Token::End => return Ok(Self { requirements }),
                Token::Sign(",") => reader.take(),
                Token::Sign(_) | Token::Word(_) => return Err(reader.expected("',' or the end")),
            };
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Sign(&'a str),
    End,
}

/// Reads tokens; `at` is the byte that the next token, or white space before it, starts with.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

fn is_sign(c: char) -> bool {
    matches!(c, ',' | '=' | '!' | '(' | ')' | '<' | '>')
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("").trim_start()
    }

    fn peek(&self) -> Token<'a> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Token::End;
        };
        if is_sign(first) {
            let length = if rest.starts_with("==") || rest.starts_with("!=") {
                2
            } else {
                1
            };
            return Token::Sign(&rest[..length]);
        }
        let end = rest.find(|c: char| is_sign(c) || c.is_whitespace());
        Token::Word(&rest[..end.unwrap_or(rest.len())])
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        let length = match token {
            Token::Word(text) | Token::Sign(text) => text.len(),
            Token::End => 0,
        };
        self.at = self.text.len() - self.rest().len() + length;
        token
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        let start = self.text.len() - self.rest().len();
        SelectorError::Syntax {
            position: 1 + self.text[..start].chars().count(),
            found: match self.peek() {
                Token::Word(text) | Token::Sign(text) => format!("{:?}", clip(text)),
                Token::End => "the end".to_owned(),
            },
            expected,
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.peek() == Token::Sign("!") {
            self.take();
            let key = self.key("a label's name")?;
            return Ok(Requirement {
                key,
                test: Test::Absent,
            });
        }
        let key = self.key("a label's name or '!'")?;
        let test = match self.peek() {
            Token::End | Token::Sign(",") => Test::Exists,
            Token::Sign("=" | "==") => {
                self.take();
                Test::In(self.value()?)
            }
            Token::Sign("!=") => {
                self.take();
                Test::NotIn(self.value()?)
            }
            Token::Word("in") => {
                self.take();
                Test::In(self.values()?)
            }
            Token::Word("notin") => {
                self.take();
                Test::NotIn(self.values()?)
            }
            Token::Sign(_) | Token::Word(_) => {
                return Err(self.expected("'=', '!=', 'in', 'notin', ',' or the end"));
            }
        };
        Ok(Requirement { key, test })
    }

    fn key(&mut self, expected: &'static str) -> Result<String, SelectorError> {
        match self.peek() {
            Token::Word(key) => {
                self.take();
                Ok(key.to_owned())
            }
            Token::Sign(_) | Token::End => Err(self.expected(expected)),
        }
    }

    /// The one value behind `=`, which may be empty.
    fn value(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        match self.peek() {
            Token::Word(value) => {
                self.take();
                Ok(BTreeSet::from([value.to_owned()]))
            }
            Token::End | Token::Sign(",") => Ok(BTreeSet::from([String::new()])),
            Token::Sign(_) => Err(self.expected("a value")),
        }
    }

    /// The values in brackets. Between two commas is an empty value; between two brackets is none, which is an error.
    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if self.peek() != Token::Sign("(") {
            return Err(self.expected("'('"));
        }
        self.take();
        if self.peek() == Token::Sign(")") {
            return Err(self.expected("a value"));
        }
        let mut values = BTreeSet::new();
        loop {
            match self.peek() {
                Token::Word(value) => {
                    self.take();
                    values.insert(value.to_owned());
                }
                Token::Sign(_) | Token::End => {
                    values.insert(String::new());
                }
            }
            match self.peek() {
                Token::Sign(",") => self.take(),
                Token::Sign(")") => {
                    self.take();
                    return Ok(values);
                }
                Token::Sign(_) | Token::Word(_) | Token::End => {
                    return Err(self.expected("',' or ')'"));
                }
            };
        }
    }
}

#[cfg(test)]
mod tests;
