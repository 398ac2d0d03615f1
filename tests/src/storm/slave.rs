//! I4 for slaves: a slave that runs and that some master can hear stays, one that restarts is in at once, one that died
//! goes.

use super::{
    record::{History, Slave, Time},
    store::{Version, bounds, quiet, versions},
};

/// What a busy machine may add.
const SLACK: Time = 1.5;
/// How long a slave may take to be heard once nothing stands in its way: its start, a retry, the next master.
const HEARD: Time = 3.0;

/// What breaks the promises about slaves.
pub(super) fn violations(history: &History) -> Vec<String> {
    let versions = versions(history);
    let mut found = Vec::new();
    for slave in &history.slaves {
        let own: Vec<&Version> = versions
            .iter()
            .filter(|of| of.key == slave.key && of.nonce == slave.nonce)
            .collect();
        found.extend(
            own.iter()
                .filter_map(|version| removed(history, slave, version)),
        );
        found.extend(late(history, slave, &own));
        found.extend(own.last().and_then(|last| stays(history, slave, last)));
    }
    found
}

/// Whether the slave ran undisturbed from one moment to another.
fn ran(slave: &Slave, from: Time, to: Time) -> bool {
    let disturbed = slave
        .disturbed
        .iter()
        .any(|(start, end)| *start <= to && *end >= from);
    slave.ended.is_none_or(|end| end > to) && !disturbed
}

/// A record that was taken from a slave that could be heard.
fn removed(history: &History, slave: &Slave, version: &Version) -> Option<String> {
    let until = version.until?;
    let (earliest, latest) = bounds(history, until);
    if !version.deleted {
        let next = history.changes.iter().find(|change| {
            change.revision == until && change.key.strip_prefix("pods/") == Some(&version.key)
        });
        // It says something else, or is restarted; `ran` tells that it can't be.
        if next?.value.as_ref()?["nonce"] == slave.nonce.as_str() {
            return None;
        }
    }
    ran(slave, earliest - history.ttl - SLACK, latest).then(|| {
        format!(
            "{} ({}) ran and could be heard, and lost its record at revision {until}, {earliest:.3} to {latest:.3}",
            slave.id, slave.nonce
        )
    })
}

/// A slave that was not heard soon after its start.
fn late(history: &History, slave: &Slave, own: &[&Version]) -> Option<String> {
    let mut due = quiet(history, slave.started);
    for (_, end) in &slave.disturbed {
        due = due.max(quiet(history, *end));
    }
    due += HEARD + SLACK;
    if due > history.end || slave.ended.is_some_and(|end| end <= due) {
        return None;
    }
    let there = own.iter().any(|version| version.earliest(history) <= due);
    (!there).then(|| {
        format!(
            "{} ({}) started at {:.3} and was not in the roster by {due:.3}",
            slave.id, slave.nonce, slave.started
        )
    })
}

/// A record that outlived its slave.
fn stays(history: &History, slave: &Slave, last: &Version) -> Option<String> {
    let ended = slave.ended?;
    let due = quiet(history, quiet(history, ended) + history.ttl) + 1.0 + SLACK;
    let goes = last
        .until
        .map_or(Time::INFINITY, |revision| bounds(history, revision).0);
    (due < history.end && goes > due).then(|| {
        format!(
            "{} ({}) ended at {ended:.3}, and its record was there after {due:.3}",
            slave.id, slave.nonce
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{history, pod},
        *,
    };

    fn slave(nonce: u64, started: Time, ended: Option<Time>) -> Slave {
        Slave {
            id: "a".into(),
            key: "k".into(),
            nonce: nonce.to_string(),
            started,
            ended,
            disturbed: Vec::new(),
        }
    }

    fn of(slaves: &[Slave], changes: &[(i64, &str, Option<serde_json::Value>)]) -> History {
        History {
            slaves: slaves.to_vec(),
            ..history(changes)
        }
    }

    #[test]
    fn a_slave_that_runs_stays() {
        let removed = [(2, "k", pod("a", 1, 0, 0)), (30, "k", None)];
        let runs = [slave(1, 1.0, None)];
        assert_eq!(violations(&of(&runs, &removed)).len(), 1);
        let mut paused = slave(1, 1.0, None);
        paused.disturbed = vec![(20.0, 27.0)];
        assert_eq!(violations(&of(&[paused], &removed)), Vec::<String>::new());
        let ended = [slave(1, 1.0, Some(28.0))];
        assert_eq!(violations(&of(&ended, &removed)), Vec::<String>::new());
    }

    #[test]
    fn a_slave_that_restarts_is_in_at_once_and_is_not_put_out() {
        let both = [slave(1, 1.0, Some(20.0)), slave(2, 20.0, None)];
        let soon = [(2, "k", pod("a", 1, 0, 0)), (21, "k", pod("a", 2, 0, 0))];
        assert_eq!(violations(&of(&both, &soon)), Vec::<String>::new());
        let late = [(2, "k", pod("a", 1, 0, 0)), (29, "k", pod("a", 2, 0, 0))];
        // The new one is late, and the dead one's record stays.
        assert_eq!(violations(&of(&both, &late)).len(), 1 + 1);
        let taken = [
            (2, "k", pod("a", 1, 0, 0)),
            (21, "k", pod("a", 2, 0, 0)),
            (40, "k", pod("a", 1, 0, 0)),
        ];
        assert!(!violations(&of(&both, &taken)).is_empty());
    }
}
