//! Numbers as they are written. PURE.

use crate::limits::EXACT;

/// A decimal number, `0.<digits> * 10^exponent`: without zeros at either end, so that equal numbers are equal.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Reads a number of JSON, or what Rust writes for a double.
    fn read(token: &str) -> Self {
        let (negative, token) = match token.strip_prefix('-') {
            Some(token) => (true, token),
            None => (false, token),
        };
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        // An exponent beyond 64 bits is that of zero, or of no double.
        let overflow = if exponent.starts_with('-') {
            i64::MIN / 2
        } else {
            i64::MAX / 2
        };
        let exponent = exponent.parse::<i64>().unwrap_or(overflow);
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = [whole, fraction].concat();
        let digits = all.trim_start_matches('0');
        if digits.is_empty() {
            return Self {
                negative: false,
                digits: String::new(),
                exponent: 0,
            };
        }
        let leading = all.len() - digits.len();
        let shift = whole.len() as i64 - leading as i64;
        Self {
            negative,
            digits: digits.trim_end_matches('0').to_owned(),
            exponent: exponent.saturating_add(shift),
        }
    }
}

/// Whether a number of JSON comes back from a double as the number that was written. Below 2^53 the rounding of fractions is
/// what everybody expects of JSON; beyond it, and on the way to zero, a number can become another one.
pub fn comes_back(token: &str) -> bool {
    let Ok(double) = token.parse::<f64>() else {
        return false;
    };
    if !double.is_finite() {
        return false;
    }
    if double != 0.0 && double.abs() < EXACT {
        return true;
    }
    // What is written of a double is the shortest text that leads back to it, in RFC 8785 as here.
    Decimal::read(token) == Decimal::read(&format!("{double:e}"))
}

/// The whole number that a number of JSON is, however it is written: `1000`, `1e3` and `1000.0` are one. None where it has a
/// fraction, or more than 38 digits.
pub fn integer(token: &str) -> Option<i128> {
    let Decimal {
        negative,
        mut digits,
        exponent,
    } = Decimal::read(token);
    let length = usize::try_from(exponent).ok().filter(|&n| n <= 38)?;
    if digits.len() > length {
        return None;
    }
    digits.extend(std::iter::repeat_n('0', length - digits.len()));
    if digits.is_empty() {
        return Some(0);
    }
    let magnitude: i128 = digits.parse().ok()?;
    Some(if negative { -magnitude } else { magnitude })
}
