//! Which files are to be read again, by how they look from time to time. PURE.

use super::reading::{Part, Stamps};

/// At how many looks in a row files must be the same before they count: one that is written in place is short, or empty, in
/// between, and nobody is to be shut out by that.
const QUIET: u32 = 2;

/// What was seen of the files so far.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// None before the first look.
    seen: Option<Stamps>,
    /// What is still to be read, in the order of [`Part::ALL`].
    pending: Vec<Part>,
    /// At how many looks nothing has changed.
    quiet: u32,
}

impl Looks {
    /// Whether there was no look yet.
    pub(super) fn is_first(&self) -> bool {
        self.seen.is_none()
    }

    /// What is to be read now. At the first look that is everything: something may have changed since it was read at the start.
    pub(super) fn due(&mut self, now: Stamps) -> Vec<Part> {
        let changed = |part: Part| {
            let of = |stamps: &Stamps| stamps[part as usize].clone();
            self.seen.as_ref().is_none_or(|seen| of(seen) != of(&now))
        };
        let [tokens, authorities, identity] = Part::ALL.map(changed);
        // The port asks for certificates by its authorities.
        let changed = [tokens, authorities, identity || authorities];
        if self.seen.is_none() {
            self.quiet = QUIET;
        } else if changed.contains(&true) {
            self.quiet = 0;
        } else {
            self.quiet = self.quiet.saturating_add(1);
        }
        let is_pending = |(part, changed): (Part, bool)| {
            (changed || self.pending.contains(&part)).then_some(part)
        };
        self.pending = Part::ALL
            .into_iter()
            .zip(changed)
            .filter_map(is_pending)
            .collect();
        self.seen = Some(now);
        if self.quiet < QUIET {
            return Vec::new();
        }
        std::mem::take(&mut self.pending)
    }

    /// These could not be read, and are due again.
    pub(super) fn failed(&mut self, parts: Vec<Part>) {
        self.pending = parts;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_runtime::folder::Stamp;
    use std::fs;

    /// The stamps of so many files, of which each name is another version.
    fn stamps(names: [&str; 3]) -> Stamps {
        let folder = std::env::temp_dir();
        names.map(|name| {
            let meta = fs::metadata(folder.join(name)).ok();
            vec![meta.map(|meta| Stamp::from(&meta))]
        })
    }

    #[test]
    fn what_changed_is_read_once_it_is_quiet_and_what_rests_on_it() {
        let folder = tempfile::Builder::new().prefix("looks").tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (old, new) = (file("old"), file("newer"));
        let before = || stamps([&old, &old, &old]);
        let mut looks = Looks::default();
        assert!(looks.is_first());
        assert_eq!(looks.due(before()), Part::ALL);
        assert!(!looks.is_first());
        assert_eq!(looks.due(before()), []);

        // Authorities change; the tokens do so a moment later, and are gone for another.
        let authorities = || stamps([&old, &new, &old]);
        let both = || stamps([&new, &new, &old]);
        for seen in [authorities(), both(), stamps(["none", &new, &old]), both()] {
            assert_eq!(looks.due(seen), []);
        }
        assert_eq!(looks.due(both()), []);
        assert_eq!(looks.due(both()), Part::ALL);
        assert_eq!(looks.due(both()), []);

        // Tokens alone, which can't be read at first.
        for _ in 0..QUIET {
            assert_eq!(looks.due(authorities()), []);
        }
        assert_eq!(looks.due(authorities()), [Part::Tokens]);
        looks.failed(vec![Part::Tokens]);
        assert_eq!(looks.due(authorities()), [Part::Tokens]);
        looks.failed(Vec::new());
        assert_eq!(looks.due(authorities()), []);
    }
}
