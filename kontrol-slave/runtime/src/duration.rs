//! Durations as Kontrol's settings spell them: a whole number and a unit (`500ms`, `25s`, `2m`, `1h`); a bare number
//! is seconds. PURE. What [`show`] writes, [`parse`] reads back.

use std::time::Duration;

/// Units from the largest, each with its length in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// The longest duration that a setting can ask for: anything above is a slip of the pen.
const MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It does not start with a whole number.
    #[error("`{0}` is not a duration: write a whole number and a unit, as in 25s, 500ms, 2m or 1h")]
    Number(String),
    /// The unit is unknown.
    #[error("`{unit}` in `{text}` is not a unit of time: use ms, s, m or h")]
    Unit {
        /// The whole text.
        text: String,
        /// What stands where the unit should.
        unit: String,
    },
    /// It is longer than a year.
    #[error("`{0}` is longer than a year")]
    TooLong(String),
}

/// Reads a duration. Usable as a value parser of clap.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(DurationError::Number(text.into()));
    }
    let unit = match unit.trim_start() {
        "" => "s",
        unit => unit,
    };
    let Some((_, millis)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        // `1.5s` is a number to its author, and the advice on numbers is the one that helps.
        if unit.starts_with(['.', ',']) {
            return Err(DurationError::Number(text.into()));
        }
        return Err(DurationError::Unit {
            text: text.into(),
            unit: unit.into(),
        });
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*millis))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX)
        .ok_or_else(|| DurationError::TooLong(text.into()))
}

/// Writes a duration in the largest unit that divides it, cut to whole milliseconds.
pub fn show(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".into();
    }
    UNITS
        .iter()
        .find(|(_, length)| millis.is_multiple_of(*length))
        .map_or_else(String::new, |(unit, length)| {
            format!("{}{unit}", millis / length)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_unit_is_read() {
        for (text, millis) in [
            ("25", 25_000),
            ("25s", 25_000),
            (" 500ms ", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0", 0),
            ("2 m", 120_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "not a duration"),
            ("s", "not a duration"),
            ("-5s", "not a duration"),
            ("1.5s", "not a duration"),
            ("5 days", "not a unit"),
            ("5S", "not a unit"),
            ("9000h", "longer than a year"),
            ("99999999999999999999h", "longer than a year"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0..MAX.as_millis() as u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }

        #[test]
        fn no_text_breaks_it(text in ".{0,12}") {
            let _ = parse(&text);
        }
    }
}
