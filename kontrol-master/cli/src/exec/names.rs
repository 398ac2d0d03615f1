//! What the targets of an action are called in front of their lines: by id, as far as that tells them apart.

use super::super::text::{clean, or_nothing};
use kontrol_proto::v1::dispatch_response::Target;
use std::collections::HashMap;

/// Longer names stand out of their column.
const MAX_WIDTH: usize = 32;
/// Colours that say neither good nor bad, by their numbers in ECMA-48.
const COLOURS: [u8; 6] = [36, 35, 34, 96, 95, 94];

/// The names of the targets of an action.
#[derive(Debug)]
pub(super) struct Names {
    by_key: HashMap<String, String>,
    width: usize,
}

impl Names {
    pub(super) fn new(targets: &[Target]) -> Self {
        let mut bearers: HashMap<&str, usize> = HashMap::new();
        for target in targets {
            *bearers.entry(&target.id).or_default() += 1;
        }
        let by_key: HashMap<String, String> = targets
            .iter()
            .filter(|target| !target.key.is_empty())
            .map(|Target { key, id }| {
                let name = match bearers.get(id.as_str()) {
                    _ if id.is_empty() => clean(key),
                    Some(2..) => clean(&format!("{id}/{key}")),
                    Some(_) | None => clean(id),
                };
                (key.clone(), name)
            })
            .collect();
        let widths = by_key.values().map(|name| name.chars().count());
        let width = widths.max().unwrap_or_default().min(MAX_WIDTH);
        Self { by_key, width }
    }

    /// A target's name. One that has no key was named by its id, and the other way round.
    pub(super) fn name(&self, key: &str, id: &str) -> String {
        match self.by_key.get(key) {
            Some(name) => name.clone(),
            None => or_nothing(if id.is_empty() { key } else { id }),
        }
    }

    /// What stands in front of a target's lines, without white space at its end, and its colour.
    pub(super) fn prefix(&self, key: &str) -> (String, u8) {
        let name = self.name(key, "");
        let width = self.width;
        // Neighbours, such as web-1 and web-2, get different colours.
        let sum = name.bytes().fold(0_usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        });
        (format!("{name:<width$} |"), COLOURS[sum % COLOURS.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(targets: &[(&str, &str)]) -> Names {
        let targets: Vec<Target> = targets
            .iter()
            .map(|(key, id)| Target {
                key: (*key).to_owned(),
                id: (*id).to_owned(),
            })
            .collect();
        Names::new(&targets)
    }

    #[test]
    fn lines_begin_with_ids_in_a_column() {
        let names = names(&[("a1", "web-0"), ("a2", "web-10"), ("a3", "")]);
        assert_eq!(names.prefix("a1").0, "web-0  |");
        assert_eq!(names.prefix("a2").0, "web-10 |");
        assert_eq!(names.prefix("a3").0, "a3     |");
        assert_eq!(names.prefix("a4").0, "a4     |");
        let long = self::names(&[("a1", &"x".repeat(99)), ("a2", "y")]);
        assert_eq!(long.prefix("a2").0.len(), MAX_WIDTH + 2);
    }

    #[test]
    fn pods_of_one_name_are_told_apart_and_those_that_are_not_there_are_named_too() {
        let names = names(&[
            ("a1", "web"),
            ("a2", "web"),
            ("", "gone"),
            ("", "lost\u{1b}"),
        ]);
        assert_eq!(names.name("a1", "web"), "web/a1");
        assert_eq!(names.name("a2", "web"), "web/a2");
        assert_eq!(names.name("", "gone"), "gone");
        assert_eq!(names.name("", "lost\u{1b}"), "lost\u{fffd}");
    }

    #[test]
    fn a_name_keeps_its_colour_and_neighbours_differ() {
        let colour = |names: &Names, key| names.prefix(key).1;
        let few = names(&[("a1", "web-1"), ("a2", "web-2")]);
        let other = names(&[("b9", "web-1")]);
        assert_eq!(colour(&few, "a1"), colour(&other, "b9"));
        assert_ne!(colour(&few, "a1"), colour(&few, "a2"));
    }
}
