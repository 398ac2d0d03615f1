//! Sizes as Kontrol's settings spell them: a whole number of bytes, or of `KiB`, `MiB` or `GiB`. PURE. What [`show`]
//! writes, [`parse`] reads back.

/// Units from the largest, each with its size in bytes.
const UNITS: [(&str, usize); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("", 1),
];

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// It does not start with a whole number.
    #[error(
        "`{0}` is not a size: write a whole number of bytes, or a number and a unit, as in 64KiB or 4MiB"
    )]
    Number(String),
    /// The unit is unknown. `kB` and `MB` are for some 1000 and for others 1024, so that they are not guessed at.
    #[error("`{unit}` in `{text}` is not a unit of size: use KiB, MiB or GiB, or none for bytes")]
    Unit {
        /// The whole text.
        text: String,
        /// What stands where the unit should.
        unit: String,
    },
    /// No number has room for it.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// Reads a size, in bytes.
pub fn parse(text: &str) -> Result<usize, BytesError> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.trim_start();
    if digits.is_empty() || unit.starts_with(['.', ',']) {
        return Err(BytesError::Number(text.into()));
    }
    let Some((_, size)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(BytesError::Unit {
            text: text.into(),
            unit: unit.into(),
        });
    };
    let number = digits.parse::<usize>().ok();
    number
        .and_then(|number| number.checked_mul(*size))
        .ok_or_else(|| BytesError::TooLarge(text.into()))
}

/// Writes a size in the largest unit that divides it.
pub fn show(bytes: usize) -> String {
    let fits = |(_, size): &&(&str, usize)| bytes >= *size && bytes.is_multiple_of(*size);
    UNITS.iter().find(fits).map_or_else(
        || "0".into(),
        |(unit, size)| format!("{}{unit}", bytes / size),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_unit_is_read() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("64KiB", 65_536),
            (" 4 MiB ", 4_194_304),
            ("1GiB", 1_073_741_824),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("", "not a size"),
            ("KiB", "not a size"),
            ("-1", "not a size"),
            ("1.5MiB", "not a size"),
            ("64kB", "not a unit"),
            ("64K", "not a unit"),
            ("99999999999999999999", "too large"),
            ("99999999999999GiB", "too large"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes: usize) {
            prop_assert_eq!(parse(&show(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_breaks_it(text in ".{0,12}") {
            let _ = parse(&text);
        }
    }
}
