//! Reads settings one by one, and gathers what is wrong with them: all mistakes are told at once.

use kontrol_core::limits::MAX_NAME_BYTES;
use kontrol_runtime::{
    bytes,
    command_line::{Mistake, given},
    duration,
};
use kontrol_slave::masters::{self, Tier};
use std::{fmt, time::Duration};

/// The mistakes so far.
#[derive(Default)]
pub(super) struct Mistakes(pub(super) Vec<Mistake>);

impl Mistakes {
    pub(super) fn one<T>(&mut self, result: Result<T, Mistake>) -> Option<T> {
        result.map_err(|mistake| self.0.push(mistake)).ok()
    }

    /// A setting, or after a mistake what stands in for it until all of them are told.
    pub(super) fn or_default<T: Default>(&mut self, result: Result<T, Mistake>) -> T {
        self.one(result).unwrap_or_default()
    }

    pub(super) fn all<T>(&mut self, result: Result<T, Vec<Mistake>>) -> Option<T> {
        result.map_err(|mistakes| self.0.extend(mistakes)).ok()
    }

    /// A setting, or its default where nothing was said. After a mistake it only stands in for the one that was meant.
    pub(super) fn read<T, E: fmt::Display>(
        &mut self,
        flag: &'static str,
        text: Option<&str>,
        default: T,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> T {
        let read =
            given(text).map(|text| parse(text.trim()).map_err(|error| Mistake::new(flag, error)));
        read.and_then(|read| self.one(read)).unwrap_or(default)
    }

    pub(super) fn time(
        &mut self,
        flag: &'static str,
        text: Option<&str>,
        default: Duration,
        least: Duration,
    ) -> Duration {
        self.read(flag, text, default, |text| {
            let time = duration::parse(text).map_err(|error| error.to_string())?;
            if time < least {
                return Err(format!("{text} is less than {}", duration::show(least)));
            }
            Ok(time)
        })
    }

    /// A number from 1 to `most`.
    pub(super) fn number<N: TryFrom<usize>>(
        &mut self,
        flag: &'static str,
        text: &str,
        default: N,
        most: usize,
    ) -> N {
        self.read(flag, Some(text), default, |text| {
            let number = text
                .parse()
                .ok()
                .filter(|number| (1..=most).contains(number));
            let number = number.and_then(|number| N::try_from(number).ok());
            number.ok_or_else(|| format!("{text:?} is not a number from 1 to {most}"))
        })
    }

    /// A size of `least` to `most` bytes, which is the default.
    pub(super) fn size(
        &mut self,
        flag: &'static str,
        text: &str,
        least: usize,
        most: usize,
    ) -> usize {
        self.read(flag, Some(text), most, |text| {
            let size = bytes::parse(text).map_err(|error| error.to_string())?;
            if (least..=most).contains(&size) {
                return Ok(size);
            }
            let (least, most) = (bytes::show(least), bytes::show(most));
            Err(format!("{text} is not within {least} and {most}"))
        })
    }

    pub(super) fn tiers(&mut self, flag: &'static str, text: Option<&str>) -> Option<Vec<Tier>> {
        let tiers = masters::parse(given(text)?).map_err(|errors| {
            let mistakes = errors.into_iter().map(|error| Mistake::new(flag, error));
            mistakes.collect()
        });
        self.all(tiers)
    }
}

/// A part of the ensemble's name: it becomes part of every key in the store.
pub(super) fn name(flag: &'static str, text: Option<&str>) -> Result<String, Mistake> {
    let text = text.unwrap_or("default");
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.bytes().all(fits) || text.len() > MAX_NAME_BYTES {
        let reason =
            format!("{text:?} must be 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` or `.`");
        return Err(Mistake::new(flag, reason));
    }
    Ok(text.to_owned())
}
