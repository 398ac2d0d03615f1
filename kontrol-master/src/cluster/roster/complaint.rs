//! When a trouble that lasts is told: at once, and again each minute. PURE: time is an argument.

use std::time::Duration;
use tokio::time::Instant;

/// After this time a trouble that is still there is told again.
const AGAIN: Duration = Duration::from_secs(60);
/// Most tellings within that time: each member of a store that is down may have a cause of its own.
const MOST: usize = 4;

/// What was told lately.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    told: Vec<(Instant, String)>,
}

impl Complaint {
    /// Whether this is to be told now.
    pub(super) fn is_due(&mut self, now: Instant, text: &str) -> bool {
        self.told.retain(|(at, _)| now < *at + AGAIN);
        if self.told.len() >= MOST || self.told.iter().any(|(_, told)| told == text) {
            return false;
        }
        self.told.push((now, text.to_owned()));
        true
    }

    /// The trouble is over; whether anything was told of it.
    pub(super) fn is_over(&mut self) -> bool {
        !std::mem::take(&mut self.told).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_at_once_and_each_minute_and_its_causes_are_few() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut complaint = Complaint::default();
        assert!(!complaint.is_over());
        let told: Vec<u64> = (0..200)
            .filter(|second| complaint.is_due(at(*second), "connection refused"))
            .collect();
        assert_eq!(told, [0, 60, 120, 180]);
        assert!(complaint.is_over());
        assert!(
            complaint.is_due(at(201), "connection refused"),
            "it is back"
        );
        let many = (0..100).filter(|n| complaint.is_due(at(202), &n.to_string()));
        assert_eq!(many.count(), MOST - 1);
        assert!(complaint.is_due(at(262), "connection refused"));
    }
}
