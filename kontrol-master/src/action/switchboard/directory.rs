//! Where slaves are attached. PURE.
//!
//! A slave is at one place at a time, but word of its leaving one and coming to another may arrive in any order: of the
//! places that one incarnation is said to be, the one with the highest number of attachment is true.

use crate::action::attachment::Attachment;
use kontrol_core::{liveness::Instance, model::PodKey, rollout::Slave};
use std::collections::HashMap;

/// A master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// This one.
    Here,
    /// A peer.
    Peer(Instance),
}

#[derive(Debug)]
struct Entry {
    attachment: Attachment,
    place: Place,
}

/// Where every slave is attached.
#[derive(Debug, Default)]
pub(super) struct Directory(HashMap<PodKey, Vec<Entry>>);

impl Directory {
    /// A slave is attached there; an earlier entry for it there is replaced. True if that is where it is from now on.
    pub(super) fn insert(&mut self, attachment: Attachment, place: Place) -> bool {
        let entries = self.0.entry(attachment.slave.key).or_default();
        let slave = attachment.slave.clone();
        let number = attachment.number;
        entries.retain(|entry| entry.place != place);
        entries.push(Entry { attachment, place });
        self.find(&slave) == Some((place, number))
    }

    /// A slave went from there. True if it is not attached anywhere now, as far as is known.
    pub(super) fn remove(&mut self, attachment: &Attachment, place: Place) -> bool {
        let slave = &attachment.slave;
        let Some(entries) = self.0.get_mut(&slave.key) else {
            return false;
        };
        let before = entries.len();
        entries.retain(|entry| {
            entry.place != place
                || entry.attachment.slave != *slave
                || entry.attachment.number > attachment.number
        });
        let removed = entries.len() < before;
        if entries.is_empty() {
            self.0.remove(&slave.key);
        }
        removed && self.find(slave).is_none()
    }

    /// All slaves went from there. Tells those that are not attached anywhere now.
    pub(super) fn clear(&mut self, place: Place) -> Vec<Slave> {
        let mut there = Vec::new();
        self.0.retain(|_, entries| {
            entries.retain(|entry| {
                let stays = entry.place != place;
                if !stays {
                    there.push(entry.attachment.slave.clone());
                }
                stays
            });
            !entries.is_empty()
        });
        there.retain(|slave| self.find(slave).is_none());
        there
    }

    /// Where a slave is attached, and the number of that attachment.
    pub(super) fn find(&self, slave: &Slave) -> Option<(Place, u64)> {
        let entries = self.0.get(&slave.key)?.iter();
        entries
            .filter(|entry| entry.attachment.slave.nonce == slave.nonce)
            .max_by_key(|entry| entry.attachment.number)
            .map(|entry| (entry.place, entry.attachment.number))
    }

    /// The incarnations of a pod that are attached somewhere.
    pub(super) fn slaves(&self, key: PodKey) -> impl Iterator<Item = &Slave> {
        let entries = self.0.get(&key).into_iter().flatten();
        entries.map(|entry| &entry.attachment.slave)
    }

    /// The slaves that are attached there.
    pub(super) fn at(&self, place: Place) -> impl Iterator<Item = &Attachment> {
        let entries = self.0.values().flatten();
        entries
            .filter(move |entry| entry.place == place)
            .map(|entry| &entry.attachment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Place = Place::Peer(Instance(1));

    fn attachment(nonce: &str, number: u64) -> Attachment {
        Attachment {
            slave: Slave {
                key: PodKey::ONE,
                nonce: nonce.into(),
            },
            number,
        }
    }

    #[test]
    fn the_latest_attachment_tells_the_place_in_whatever_order_word_comes() {
        let (first, second) = (attachment("a", 1), attachment("a", 2));
        let mut directory = Directory::default();
        assert!(directory.insert(second.clone(), PEER));
        assert!(!directory.insert(first.clone(), Place::Here));
        assert_eq!(directory.find(&first.slave), Some((PEER, 2)));
        assert!(!directory.remove(&first, Place::Here), "it is at the peer");
        assert!(!directory.remove(&first, PEER), "that was before");
        assert!(directory.remove(&second, PEER));
        assert!(directory.0.is_empty());
    }

    #[test]
    fn another_incarnation_is_another_slave() {
        let mut directory = Directory::default();
        directory.insert(attachment("a", 7), Place::Here);
        assert!(directory.insert(attachment("b", 1), PEER));
        assert_eq!(
            directory.find(&attachment("a", 0).slave),
            Some((Place::Here, 7))
        );
        assert_eq!(directory.slaves(PodKey::ONE).count(), 2);
        assert!(directory.remove(&attachment("a", 7), Place::Here));
    }

    #[test]
    fn a_master_that_is_gone_takes_its_slaves_along_but_not_those_that_moved() {
        let mut directory = Directory::default();
        directory.insert(attachment("a", 1), PEER);
        directory.insert(attachment("a", 2), Place::Here);
        assert_eq!(directory.clear(PEER), []);
        assert_eq!(directory.clear(Place::Here), [attachment("a", 2).slave]);
        assert_eq!(directory.at(Place::Here).count(), 0);
    }
}
