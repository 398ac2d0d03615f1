//! Incarnations that had a pod's place before, and why they left. PURE.
//!
//! An incarnation is a pod's id with its nonce. Names alone have no order: a keepalive of an incarnation that died may
//! arrive after the first one of its successor. So each record remembers who had the place before, and passes that on:
//! to the next incarnation, to the tombstone of the last one, and from there to whoever joins at that address next. Who
//! is remembered so is older than who has the place, whatever arrives when.

use super::{Report, whole};
use serde::{Deserialize, Serialize};

/// How many incarnations are remembered for a place.
pub const MAX_RETIRED: usize = 16;
/// Longest id that is kept as it is; of a longer one the start and a digest are.
const MAX_ID_BYTES: usize = 64;

/// Why a pod left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Reason {
    /// It said so.
    Down,
    /// It was silent for its TTL.
    Expired,
    /// Its process died while it was attached.
    Lost,
    /// Another pod reports from its address.
    Replaced,
    /// An operator removed it.
    Evicted,
    /// Nobody wrote why.
    Unknown,
}

/// Which start of which pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation {
    /// The pod's id, shortened where it is long.
    #[serde(default)]
    pub id: String,
    /// Its nonce; empty where it draws none.
    #[serde(default)]
    pub nonce: String,
}

impl Incarnation {
    /// The incarnation with this id and nonce.
    pub fn new(id: &str, nonce: &str) -> Self {
        let id = match id.char_indices().nth(MAX_ID_BYTES / 2 - 1) {
            Some((cut, _)) if id.len() > MAX_ID_BYTES => {
                use md5::{Digest as _, Md5};
                let digest: [u8; 16] = Md5::digest(id).into();
                format!("{}{:032x}", &id[..cut], u128::from_be_bytes(digest))
            }
            _ => id.to_owned(),
        };
        Self {
            id,
            nonce: nonce.to_owned(),
        }
    }

    /// The incarnation that reports.
    pub fn of(report: &Report) -> Self {
        Self::new(&report.id, &report.nonce)
    }
}

/// An incarnation that had the place before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Which one.
    #[serde(flatten)]
    pub incarnation: Incarnation,
    /// Its seq.
    #[serde(with = "whole")]
    pub seq: u64,
    /// Why it left; absent where another incarnation of the same pod went on with its seq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// The list with one more, which is the newest.
pub fn retire(before: &[Retired], one: Retired) -> Vec<Retired> {
    let mut list: Vec<_> = before
        .iter()
        .filter(|other| other.incarnation != one.incarnation)
        .cloned()
        .collect();
    list.push(one);
    let excess = list.len().saturating_sub(MAX_RETIRED);
    list.drain(..excess);
    list
}

/// Whether this incarnation is among them.
pub fn is_retired(list: &[Retired], who: &Incarnation) -> bool {
    list.iter().any(|one| one.incarnation == *who)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retired(nonce: usize) -> Retired {
        Retired {
            incarnation: Incarnation::new("web-1", &nonce.to_string()),
            seq: 1,
            reason: None,
        }
    }

    #[test]
    fn the_newest_are_remembered_each_once() {
        let mut list = Vec::new();
        for nonce in 0..MAX_RETIRED + 3 {
            list = retire(&list, retired(nonce));
        }
        assert_eq!(list.len(), MAX_RETIRED);
        assert!(!is_retired(&list, &retired(2).incarnation));
        assert!(is_retired(&list, &retired(3).incarnation));
        list = retire(&list, retired(3));
        assert_eq!(list.len(), MAX_RETIRED);
        assert_eq!(list.last(), Some(&retired(3)));
    }

    #[test]
    fn a_long_id_is_shortened_and_still_told_apart() {
        let long = |end: &str| Incarnation::new(&format!("{}{end}", "ä".repeat(120)), "");
        assert!(long("a").id.len() <= 2 * MAX_ID_BYTES);
        assert_ne!(long("a"), long("b"));
        assert_eq!(Incarnation::new("short", "").id, "short");
    }
}
