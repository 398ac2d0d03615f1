//! The file of tokens. It holds digests, so that whoever reads it learns no token.
//!
//! ```text
//! # one line each; until: is left out for one that does not expire
//! <role> <name> sha256:<hex of the token's digest> [until:<RFC 3339 time>]
//! slave web-* sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ```

use super::{Principal, Role};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{collections::HashMap, fmt, sync::Arc, time::SystemTime};
use subtle::ConstantTimeEq;

/// Most lines that count: one for each pod of a large ensemble.
const MAX_TOKENS: usize = 100_000;
/// Longest token, in bytes: a JWT of somebody else's fits.
pub const MAX_TOKEN_BYTES: usize = 4096;
/// What our own tokens begin with, so that those who look for leaked secrets find them.
const PREFIX: &str = "kontrol_";
const ALGORITHM: &str = "sha256:";
const UNTIL: &str = "until:";

/// A token. It is shown to whoever it is made for, and in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token that is made of these bytes, which must be drawn by lot.
    pub fn of(bytes: [u8; 32]) -> Self {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        Self(format!("{PREFIX}{}", digits.collect::<String>()))
    }

    /// The token itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its digest.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The digest of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TokenDigest([u8; 32]);

impl From<TokenDigest> for String {
    fn from(digest: TokenDigest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for TokenDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TokenDigest {
    /// The digest of this token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Where it is looked for. An attacker can't choose the digest of what is tried, so that how long the search takes tells
    /// nothing of a token.
    fn slot(&self) -> [u8; 8] {
        let (slot, _) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        *slot
    }

    /// Whether both are the same; how long that takes does not depend on where they differ.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALGORITHM)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for TokenDigest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "the digest must be sha256: and 64 hex digits";
        let hex = text.strip_prefix(ALGORITHM).ok_or(FORM)?;
        let digit = |digit: u8| {
            (digit as char)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let mut digest = [0; 32];
        let pairs = hex.as_bytes().chunks(2);
        if hex.len() != 2 * digest.len() {
            return Err(FORM);
        }
        for (byte, pair) in digest.iter_mut().zip(pairs) {
            let [high, low] = pair else { return Err(FORM) };
            *byte = digit(*high)
                .zip(digit(*low))
                .map(|(high, low)| high << 4 | low)
                .ok_or(FORM)?;
        }
        Ok(Self(digest))
    }
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose token it is.
    pub principal: Arc<Principal>,
    /// Its digest.
    pub digest: TokenDigest,
    /// When it stops to count; never where there is none.
    pub until: Option<Timestamp>,
}

impl Entry {
    /// Whether it counts at this time.
    pub fn counts(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < SystemTime::from(until))
    }
}

impl fmt::Display for Entry {
    /// As the file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Principal { name, role, .. } = &*self.principal;
        write!(f, "{role} {name} {}", self.digest)?;
        match self.until {
            Some(until) => write!(f, " {UNTIL}{until}"),
            None => Ok(()),
        }
    }
}

/// The tokens that count.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    entries: HashMap<[u8; 8], Vec<Entry>>,
    count: usize,
}

/// A line that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// Which one, from 1 on.
    pub line: usize,
    /// What is wrong. It never shows a digest, which a token may stand in the place of.
    pub reason: String,
}

impl Tokens {
    /// Reads the file; tells every line that is wrong.
    pub fn parse(text: &str) -> Result<Self, Vec<BadLine>> {
        let mut tokens = Self::default();
        let mut bad = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let added = entry(line).and_then(|entry| tokens.add(entry));
            if let Err(reason) = added {
                bad.push(BadLine {
                    line: number,
                    reason,
                });
            }
        }
        if bad.is_empty() { Ok(tokens) } else { Err(bad) }
    }

    fn add(&mut self, entry: Entry) -> Result<(), String> {
        if self.count == MAX_TOKENS {
            return Err(format!("there are more than {MAX_TOKENS} tokens"));
        }
        let slot = self.entries.entry(entry.digest.slot()).or_default();
        if slot.contains(&entry) {
            return Ok(()); // the same line twice
        }
        if let Some(twin) = slot.iter().find(|twin| twin.digest == entry.digest) {
            return Err(format!("it is the token of {} as well", twin.principal));
        }
        slot.push(entry);
        self.count += 1;
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Each of them, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().flatten()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The line of the token with this digest.
    pub fn find(&self, digest: &TokenDigest) -> Option<&Entry> {
        let slot = self.entries.get(&digest.slot())?;
        slot.iter().find(|entry| entry.digest.is(digest))
    }
}

fn entry(line: &str) -> Result<Entry, String> {
    const FORM: &str = "it must be <role> <name> sha256:<hex>, and may end with until:<time>";
    let mut words = line.split_ascii_whitespace();
    let (Some(role), Some(name), Some(digest)) = (words.next(), words.next(), words.next()) else {
        return Err(FORM.to_owned());
    };
    let role: Role = role.parse().map_err(|error| format!("{error}"))?;
    let principal = Principal::new(name, role).map_err(|error| error.to_string())?;
    let digest = digest.parse()?;
    let until = match (words.next(), words.next()) {
        (None, _) => None,
        (Some(until), None) => {
            let time = until.strip_prefix(UNTIL).ok_or(FORM)?;
            let wrong = |_| "until: takes a time as in 2027-01-31T00:00:00Z".to_owned();
            Some(time.parse().map_err(wrong)?)
        }
        (Some(_), Some(_)) => return Err(FORM.to_owned()),
    };
    Ok(Entry {
        principal: Arc::new(principal),
        digest,
        until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn line(role: &str, name: &str, token: &str) -> String {
        format!("{role} {name} {}", TokenDigest::of(token))
    }

    #[test]
    fn a_token_is_found_by_itself_alone() {
        let text = format!(
            "# ours\n\n{}\n  {}  \n{}",
            line("slave", "web-*", "s1"),
            line("operator", "ann", "s2"),
            line("operator", "ann", "s2")
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.len(), 2);
        let found = |token| {
            tokens
                .find(&TokenDigest::of(token))
                .map(|entry| entry.principal.to_string())
        };
        assert_eq!(found("s1").as_deref(), Some("web-* (slave)"));
        assert_eq!(found("s2").as_deref(), Some("ann (operator)"));
        for token in ["", "s", "s3", "S1", &TokenDigest::of("s1").to_string()] {
            assert_eq!(found(token), None, "{token}");
        }
    }

    #[test]
    fn a_token_never_shows_by_accident() {
        let token = Token::of([0xab; 32]);
        assert_eq!(token.as_str(), format!("kontrol_{}", "ab".repeat(32)));
        assert_eq!(format!("{token:?}"), "***");
        assert!(token.digest().is(&TokenDigest::of(token.as_str())));
    }

    /// NIST's example of one block.
    #[test]
    fn the_digest_is_sha256() {
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenDigest::of("abc").to_string(), digest);
        assert_eq!(
            digest.to_uppercase().replace("SHA", "sha").parse(),
            Ok(TokenDigest::of("abc"))
        );
    }

    #[test]
    fn each_bad_line_is_told_and_no_secret_with_it() {
        let secret = "geheim";
        for (text, said) in [
            ("slave", "it must be"),
            ("slave web-1 geheim", "sha256:"),
            ("slave web-1 sha256:geheim", "64 hex digits"),
            (&format!("root a {}", TokenDigest::of("x")), "no role"),
            (
                &format!("slave web-[ {}", TokenDigest::of("x")),
                "no pattern",
            ),
            (&format!("{} until:geheim", line("slave", "a", "x")), "2027"),
            (&format!("{} geheim", line("slave", "a", "x")), "it must be"),
            (
                &format!("{}\n{}", line("slave", "a", "x"), line("reader", "b", "x")),
                "a (slave) as well",
            ),
        ] {
            let bad = Tokens::parse(&format!("# first\n{text}")).unwrap_err();
            assert_eq!(bad.len(), 1, "{text}");
            let told = bad[0].to_string();
            assert!(
                told.contains(said) && told.starts_with("line "),
                "{text}: {told}"
            );
            assert!(!told.contains(secret), "{told}");
        }
        assert_eq!(Tokens::parse("a\nb\n").unwrap_err().len(), 2);
    }

    #[test]
    fn one_that_expires_counts_until_then() {
        let text = format!("{} until:1970-01-01T00:01:00Z", line("reader", "a", "x"));
        let tokens = Tokens::parse(&text).unwrap();
        let entry = tokens.find(&TokenDigest::of("x")).unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(entry.counts(at(59)) && !entry.counts(at(60)));
        assert_eq!(entry.to_string(), text);
    }

    proptest! {
        #[test]
        fn no_text_breaks_it_and_a_line_reads_back(text in "\\PC{0,80}|((slave|peer|x) [a-z*\\[]{0,4} sha256:[0-9a-f]{60,66}\n?){0,3}") {
            if let Ok(tokens) = Tokens::parse(&text) {
                for entry in tokens.entries() {
                    let again = Tokens::parse(&entry.to_string()).unwrap();
                    prop_assert_eq!(again.find(&entry.digest), Some(entry));
                }
            }
        }
    }
}
