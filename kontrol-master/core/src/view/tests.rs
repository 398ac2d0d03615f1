use super::*;
use crate::{
    model::{Incarnation, Report, Retired},
    testing::report,
};
use proptest::prelude::*;

/// A store of keys with revisions, as naive as can be: what the view must agree with.
#[derive(Default)]
struct Naive {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
}

impl Naive {
    fn put(&mut self, key: &str, value: Vec<u8>) -> Event {
        let entry = Entry {
            key: key.to_owned(),
            value: value.into(),
            create_revision: self
                .entries
                .get(key)
                .map_or(self.revision, |entry| entry.create_revision),
            mod_revision: self.revision,
        };
        self.entries.insert(key.to_owned(), entry.clone());
        Event::Put(entry)
    }

    fn delete(&mut self, key: &str) -> Event {
        self.entries.remove(key);
        Event::Delete {
            key: key.to_owned(),
            revision: self.revision,
        }
    }

    fn step(&mut self, make: impl FnOnce(&mut Self) -> Vec<Event>) -> Events {
        self.revision += 1;
        let events = make(self);
        Events {
            revision: self.revision,
            events,
        }
    }

    fn join(&mut self, host: u8, seq: u64) -> Events {
        self.step(|store| vec![store.put(&pod_key(report(host).key()), pod(host, seq).encode())])
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            entries: self.entries.values().cloned().collect(),
        }
    }
}

fn pod(host: u8, seq: u64) -> Pod {
    Pod::join(report(host), seq, 1)
}

fn reasons(records: &[RemovalRecord]) -> Vec<u8> {
    serde_json::to_vec(records).unwrap()
}

fn expired(host: u8, seq: u64) -> RemovalRecord {
    RemovalRecord {
        by: String::new(),
        key: report(host).key().to_string(),
        seq,
        reason: Reason::Expired,
        incarnation: Incarnation::of(&report(host)),
        beat: 0,
        silence_ms: 25_000,
        time_ms: 1,
        master: "m".into(),
        retired: Vec::new(),
    }
}

#[test]
fn a_removal_carries_the_reason_that_its_transaction_wrote() {
    let mut store = Naive::default();
    let now = Instant::now();
    let (view, _) = View::default().apply(&store.join(1, 0), now);
    let events = store.step(|store| {
        vec![
            store.delete(&pod_key(report(1).key())),
            store.put(REMOVALS, reasons(&[expired(1, 0)])),
        ]
    });
    let (view, changes) = view.apply(&events, now);
    assert!(matches!(&changes[..], [Change::Left(removal)] if removal.reason == Reason::Expired));
    assert!(view.is_empty());
    assert_eq!(
        view.removal(report(1).key()).unwrap().reason,
        Reason::Expired
    );
    assert_eq!(view.reason(&pod(1, 0)), Reason::Expired);
    assert_eq!(view.reason(&pod(1, 3)), Reason::Unknown, "another seq");
}

#[test]
fn another_pod_at_the_same_address_replaces_the_one_before() {
    let mut store = Naive::default();
    let now = Instant::now();
    let (view, _) = View::default().apply(&store.join(1, 0), now);
    let other = Report {
        id: "other".into(),
        ..report(1)
    };
    let other = Pod::join(other, 1, 1).replacing(&pod(1, 0));
    let events = store.step(|store| vec![store.put(&pod_key(report(1).key()), other.encode())]);
    let (view, changes) = view.apply(&events, now);
    assert!(matches!(
        &changes[..],
        [Change::Left(removal), Change::Joined(member)] if removal.reason == Reason::Replaced && member.pod.id() == "other"
    ));
    assert_eq!(view.order().keys().copied().collect::<Vec<_>>(), [1]);
}

/// What a master that was cut off from the store while this happened finds afterwards.
#[test]
fn who_left_while_the_watch_was_broken_left_for_the_reason_that_the_store_remembers() {
    let now = Instant::now();
    let key = report(1).key();
    for reason in [Reason::Down, Reason::Expired, Reason::Lost] {
        let mut store = Naive::default();
        let first = Report {
            nonce: "00".into(),
            ..report(1)
        };
        let first = Pod::join(first, 0, 0).encode();
        let first = store.step(|store| vec![store.put(&pod_key(key), first)]);
        let (behind, _) = View::default().apply(&first, now);
        let (view, _) = behind.apply(&store.join(1, 0), now);
        // It had restarted before, under the same seq.
        let restarted = Retired {
            incarnation: Incarnation {
                nonce: "00".into(),
                ..Incarnation::of(&report(1))
            },
            seq: 0,
            reason: None,
        };
        let tombstone = RemovalRecord {
            reason,
            retired: vec![restarted],
            ..expired(1, 0)
        };
        store.step(|store| {
            let put = store.put(&tombstone_key(key), to_json(&tombstone));
            vec![store.delete(&pod_key(key)), put]
        });
        let why = |changes: &[Change]| {
            let Some(Change::Left(removal)) = changes.first() else {
                panic!("{changes:?}");
            };
            removal.reason
        };
        let (_, changes) = view.replace(&store.snapshot(), now);
        assert_eq!(why(&changes), reason, "nobody is there now");
        let (anew, _) = View::default().replace(&store.snapshot(), now);
        assert_eq!(anew.reason(&pod(1, 0)), reason, "it never saw the pod");
        let (_, changes) = behind.replace(&store.snapshot(), now);
        assert_eq!(why(&changes), reason, "its restart was missed as well");
        let next = pod(1, 5).after(tombstone.predecessors());
        store.step(|store| {
            let put = store.put(&pod_key(key), next.encode());
            vec![put, store.delete(&tombstone_key(key))]
        });
        let (_, changes) = behind.replace(&store.snapshot(), now);
        assert_eq!(why(&changes), reason, "three starts were missed");
        let (view, changes) = view.replace(&store.snapshot(), now);
        assert_eq!(why(&changes), reason, "another start is there now");
        assert!(view.tombstone(key).is_none());
    }
}

#[test]
fn the_oldest_tombstones_of_too_many_are_told() {
    let mut store = Naive::default();
    let now = Instant::now();
    let mut view = View::default();
    for host in 1..=5 {
        let key = report(host).key();
        let json = to_json(&expired(host, 0));
        let events = store.step(|store| vec![store.put(&tombstone_key(key), json)]);
        view = view.apply(&events, now).0;
    }
    let excess: Vec<_> = view.excess_tombstones(3).map(|(_, key)| *key).collect();
    assert_eq!(excess, [report(1).key(), report(2).key()]);
    let (read, _) = View::default().replace(&store.snapshot(), now);
    assert!(read.excess_tombstones(3).eq(view.excess_tombstones(3)));
}

#[test]
fn an_update_keeps_the_liveness_of_its_incarnation_and_a_restart_begins_anew() {
    let mut store = Naive::default();
    let now = Instant::now();
    let (view, _) = View::default().apply(&store.join(1, 0), now);
    let key = report(1).key();
    let heard = view.member(key).unwrap().heard.clone();
    let update = Report {
        beat: 9,
        payload: 5.into(),
        ..report(1)
    };
    let updated = pod(1, 0).update(update);
    let events = store.step(|store| vec![store.put(&pod_key(key), updated.encode())]);
    let (view, changes) = view.apply(&events, now);
    assert!(matches!(&changes[..], [Change::Changed { .. }]));
    assert!(Arc::ptr_eq(&heard, &view.member(key).unwrap().heard));
    assert_eq!(heard.beat(), 9);
    let restarted = updated.update(Report {
        nonce: "bb".into(),
        beat: 1,
        ..report(1)
    });
    let events = store.step(|store| vec![store.put(&pod_key(key), restarted.encode())]);
    let (view, _) = view.apply(&events, now);
    assert_eq!(view.member(key).unwrap().heard.beat(), 1);
}

#[test]
fn the_oldest_candidate_leads_and_a_change_is_told() {
    let mut store = Naive::default();
    let now = Instant::now();
    let master = |id: &str| {
        serde_json::to_vec(&PeerMaster {
            id: id.into(),
            address: "h:1".into(),
            instance: "1".into(),
            tls: false,
        })
        .unwrap()
    };
    let (view, changes) = View::default().apply(
        &store.step(|store| vec![store.put("leader/b", master("1"))]),
        now,
    );
    assert!(matches!(&changes[..], [Change::Leader(Some(_))]));
    let (view, changes) = view.apply(
        &store.step(|store| vec![store.put("leader/a", master("2"))]),
        now,
    );
    assert!(changes.is_empty());
    assert_eq!(view.leader().unwrap().key, "leader/b");
    let (view, changes) = view.apply(&store.step(|store| vec![store.delete("leader/b")]), now);
    assert!(matches!(&changes[..], [Change::Leader(Some(leader))] if leader.epoch == 2));
    assert_eq!(view.leader().unwrap().key, "leader/a");
    // Deleted and made anew, of which a snapshot shows only the end.
    store.step(|store| vec![store.delete("leader/a")]);
    store.step(|store| vec![store.put("leader/c", master("3"))]);
    store.step(|store| vec![store.put("leader/a", master("2"))]);
    let (view, _) = view.replace(&store.snapshot(), now);
    assert_eq!(view.leader().unwrap().key, "leader/c");
}

#[test]
fn what_can_not_be_read_is_no_pod_and_no_crash() {
    let mut store = Naive::default();
    let now = Instant::now();
    let (view, _) = View::default().apply(&store.join(1, 4), now);
    let events = store.step(|store| {
        vec![
            store.put(&pod_key(report(1).key()), b"{}".to_vec()),
            store.put("pods/no-key", b"x".to_vec()),
            store.put(SEQ, b"many".to_vec()),
            store.put(STATE, b"{".to_vec()),
            store.put("leader/a", b"[]".to_vec()),
            store.put("something", b"else".to_vec()),
        ]
    });
    let (view, changes) = view.apply(&events, now);
    // Whoever stands in the election may lead, whatever it wrote.
    assert!(matches!(
        &changes[..],
        [Change::Left(_), Change::Leader(Some(leader))] if leader.master.is_stranger()
    ));
    assert_eq!(view.state().unwrap_err().revision, 2);
    assert_eq!((view.len(), view.unreadable(report(1).key())), (0, Some(2)));
}

#[test]
fn a_single_key_that_was_deleted_while_nobody_watched_is_forgotten() {
    let mut store = Naive::default();
    let now = Instant::now();
    let hold = operate::Hold {
        reason: "work".to_owned(),
        by: "op".to_owned(),
        since_ms: 1,
        until_ms: 2,
    };
    let asked = OperateRecord {
        hold: Some(hold),
        ..OperateRecord::default()
    };
    let state = StateRecord {
        digest: "0".to_owned(),
        ..StateRecord::default()
    };
    let events = store.step(|store| {
        vec![
            store.put(SEQ, b"7".to_vec()),
            store.put(STATE, serde_json::to_vec(&state).unwrap()),
            store.put(OPERATE, asked.encode()),
        ]
    });
    let (view, _) = View::default().apply(&events, now);
    assert!(view.operate().0.hold.is_some());
    for key in [SEQ, STATE, OPERATE] {
        store.step(|store| vec![store.delete(key)]);
    }
    let (view, changes) = view.replace(&store.snapshot(), now);
    let (record, revision) = view.operate();
    assert_eq!((&**record, revision), (&OperateRecord::default(), 0));
    assert_eq!(view.state().unwrap(), (&Arc::default(), 0));
    assert_eq!(view.seq(), (7, 0), "what was given is not given again");
    assert!(!changes.is_empty(), "whoever watches is told");
}

#[test]
fn a_state_that_is_no_whole_record_is_not_taken_for_an_empty_one() {
    let mut store = Naive::default();
    for broken in [
        "",
        "{",
        "[]",
        "{}",
        "null",
        "7",
        r#"{"n":1}"#,
        r#"{"digest":7}"#,
    ] {
        let events = store.step(|store| vec![store.put(STATE, broken.into())]);
        let (view, _) = View::default().apply(&events, Instant::now());
        assert!(view.state().is_err(), "{broken}");
        let whole = serde_json::to_vec(&StateRecord::default()).unwrap();
        let events = store.step(|store| vec![store.put(STATE, whole)]);
        let (view, _) = view.apply(&events, Instant::now());
        assert_eq!(view.state().unwrap().1, events.revision);
    }
}

#[test]
fn seqs_in_use_are_never_given_again_even_if_the_counter_is_lost() {
    let mut store = Naive::default();
    let (view, _) = View::default().apply(&store.join(1, 41), Instant::now());
    assert_eq!(view.seq(), (42, 0));
}

#[test]
fn a_seq_that_was_given_before_the_store_was_restored_is_not_given_again() {
    let mut store = Naive::default();
    let now = Instant::now();
    let (view, _) = View::default().apply(&store.join(1, 0), now);
    let backup = store.snapshot();
    let (view, _) = view.apply(&store.join(2, 1), now);
    let counted = store.step(|store| vec![store.put(SEQ, b"2".to_vec())]);
    let (view, _) = view.apply(&counted, now);
    let (restored, _) = view.restart(&backup, now);
    assert_eq!((restored.len(), restored.seq().0), (1, 2));
}

#[derive(Debug, Clone)]
enum Step {
    Join(u8),
    Change(u8, i64),
    Leave(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_u8..12).prop_map(Step::Join),
        (1_u8..12, 0_i64..4).prop_map(|(host, payload)| Step::Change(host, payload)),
        (1_u8..12).prop_map(Step::Leave),
    ]
}

/// However a master comes to know of the store, it knows the same.
#[test]
fn a_master_whose_record_becomes_unreadable_is_gone() {
    let master = PeerMaster {
        id: "m1".into(),
        address: "10.0.0.1:8000".into(),
        instance: "01".into(),
        tls: false,
    };
    let (mut store, now) = (Naive::default(), Instant::now());
    let there = store.step(|store| vec![store.put("masters/m1", master.encode())]);
    let broken = store.step(|store| vec![store.put("masters/m1", b"{".to_vec())]);
    let (view, _) = View::default().apply(&there, now);
    assert_eq!(view.master("m1"), Some(&master));
    let (view, _) = view.apply(&broken, now);
    assert_eq!(view.master("m1"), None);
    assert_eq!(view.troubles().len(), 1);
}

proptest! {
    /// A view that followed every event and one that was read at the end are the same: same digest, same order. So
    /// every master at one revision computes one digest (I2), however it came there.
    #[test]
    fn following_and_reading_agree(steps in prop::collection::vec(any_step(), 0..40), cut in 0_usize..40) {
        let mut store = Naive::default();
        let now = Instant::now();
        let (mut view, mut behind) = (View::default(), View::default());
        let mut seq = 0;
        for (index, step) in steps.iter().enumerate() {
            let host = match step { Step::Join(host) | Step::Change(host, _) | Step::Leave(host) => *host };
            let key = pod_key(report(host).key());
            let known = store.entries.get(&key).map(|entry| Pod::decode(&entry.value).unwrap());
            let events = match (step, known) {
                (Step::Join(_), None) => { seq += 1; store.join(host, seq) }
                (Step::Change(_, payload), Some(known)) => {
                    let changed = known.update(Report { payload: (*payload).into(), ..report(host) });
                    store.step(|store| vec![store.put(&key, changed.encode())])
                }
                (Step::Leave(_), Some(_)) => store.step(|store| vec![store.delete(&key)]),
                _ => continue,
            };
            view = view.apply(&events, now).0;
            if index == cut {
                behind = behind.replace(&store.snapshot(), now).0;
            }
        }
        let (read, _) = View::default().replace(&store.snapshot(), now);
        let (caught_up, _) = behind.replace(&store.snapshot(), now);
        for other in [&read, &caught_up] {
            prop_assert_eq!(other.digest(), view.digest());
            prop_assert!(other.pods().eq(view.pods()));
            prop_assert_eq!(other.len(), view.len());
        }
        let seqs: Vec<_> = view.pods().map(|pod| pod.seq()).collect();
        prop_assert!(seqs.is_sorted());
    }
}

#[test]
fn a_master_that_speaks_tls_says_so_and_the_record_of_one_that_does_not_is_as_ever() {
    let old = r#"{"address":"h:1","id":"m1","instance":"1"}"#;
    let master: PeerMaster = serde_json::from_str(old).unwrap();
    assert!(!master.tls);
    assert_eq!(master.encode(), old.as_bytes());
    let speaks = PeerMaster {
        tls: true,
        ..master
    };
    let record = speaks.encode();
    assert_eq!(
        serde_json::from_slice::<PeerMaster>(&record).unwrap(),
        speaks
    );
    assert_eq!(
        record,
        br#"{"address":"h:1","id":"m1","instance":"1","tls":true}"#
    );
}
