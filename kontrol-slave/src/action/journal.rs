//! Which actions this incarnation was ever told of. PURE.
//!
//! Ids begin with the time of their dispatch. The journal remembers the latest ones, and takes every older one for known:
//! better an action is refused than run twice.

use std::collections::BTreeMap;

/// How many are remembered.
const CAPACITY: usize = 65_536;

/// An id as a number, so that it takes little room.
pub(super) type Number = u128;

/// What is known of an action that is not at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// It was taken before.
    Ended,
    /// It was cancelled before it came.
    Cancelled,
    /// So old that it is not remembered.
    Forgotten,
}

/// The actions that are over.
#[derive(Debug)]
pub(super) struct Journal {
    known: BTreeMap<Number, Past>,
    /// The highest id that is not remembered any more.
    floor: Option<Number>,
    capacity: usize,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            floor: None,
            capacity: CAPACITY,
        }
    }
}

/// The number of an id; none when it is no id.
pub(super) fn number(id: &str) -> Option<Number> {
    let hex = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| Number::from_str_radix(id, 16).ok()).flatten()
}

impl Journal {
    /// Notes an action. What was noted first stays.
    pub(super) fn add(&mut self, id: Number, past: Past) {
        if self.floor.is_some_and(|floor| id <= floor) {
            return;
        }
        self.known.entry(id).or_insert(past);
        if self.known.len() > self.capacity
            && let Some((oldest, _)) = self.known.pop_first()
        {
            self.floor = Some(oldest);
        }
    }

    /// What is known of an action; nothing when it is new.
    pub(super) fn past(&self, id: Number) -> Option<Past> {
        if self.floor.is_some_and(|floor| id <= floor) {
            return Some(Past::Forgotten);
        }
        self.known.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_a_number_and_nothing_else_is() {
        assert_eq!(number("0000000000ff"), Some(255));
        assert_eq!(number(&"f".repeat(32)), Some(Number::MAX));
        for text in ["", "+1", "g", " 1", &"f".repeat(33)] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn a_cancelled_action_stays_cancelled() {
        let mut journal = Journal::default();
        journal.add(7, Past::Cancelled);
        journal.add(7, Past::Ended);
        assert_eq!(journal.past(7), Some(Past::Cancelled));
        assert_eq!(journal.past(8), None);
    }

    proptest! {
        #[test]
        fn what_was_ever_noted_is_known_whatever_came_since(ids in prop::collection::vec(0_u128..1000, 1..200)) {
            let mut journal = Journal { capacity: 8, ..Journal::default() };
            for (index, id) in ids.iter().enumerate() {
                journal.add(*id, Past::Ended);
                prop_assert!(journal.known.len() <= 8);
                for before in &ids[..=index] {
                    prop_assert!(journal.past(*before).is_some());
                }
            }
        }
    }
}
