//! What must hold of keepalives and of the store's records on their way to and from protobuf, whatever they are.

use super::convert;
use crate::action::fuzz::told;
use kontrol_core::{
    fuzz::said,
    json::{MAX_DEPTH, canonical, depth, same},
    kv::{Entry, Event, Events, Snapshot},
    model::{Pod, PodKey, Report},
    strict,
    view::{Change, View},
};
use kontrol_proto::{FILE_DESCRIPTOR_SET, json::write, v1::PingRequest};
use prost::Message;
use prost_reflect::DescriptorPool;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};
use tokio::time::Instant;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("our own descriptors"));

/// A message of ours has its JSON.
fn has_json(name: &str, message: &impl Message) {
    let descriptor = POOL.get_message_by_name(&format!("kontrol.v1.{name}"));
    let text = write(&descriptor.expect("it is there"), &message.encode_to_vec());
    assert!(text.is_ok(), "{name}: {text:?}");
}

/// A `PingRequest`: what is taken becomes a record that reads back, says the same, and is served as it came.
pub fn ping(data: &[u8]) {
    let Ok(message) = PingRequest::decode(data) else {
        return;
    };
    let (report, key) = match convert::report(message) {
        Ok(read) => read,
        Err(invalid) => return said(invalid),
    };
    if let Err(invalid) = report.check(&key, &kontrol_core::limits::Limits::default()) {
        return said(invalid);
    }
    assert!(key.is_empty() || key.parse() == Ok(report.key()));
    assert!(depth(&report.payload) <= MAX_DEPTH);
    let pod = Pod::join(report.clone(), 7, 1_700_000_000_000);
    let read = Pod::decode(&pod.encode()).expect("what is written can be read");
    assert!(read.says(&report), "{report:?}");
    assert_eq!((read.key(), read.seq()), (report.key(), 7));
    assert_eq!(read.encode(), pod.encode());
    assert_eq!(read.canonical(), pod.canonical());
    let served = convert::pod(&read);
    has_json("Pod", &served);
    let (again, key) = convert::report(PingRequest {
        app: served.app,
        id: served.id,
        ip: served.ip,
        key: served.key,
        role: served.role,
        nonce: served.nonce,
        payload: served.payload,
        down: report.down,
        beat: report.beat,
        labels: served.labels,
        annotations: served.annotations,
        node: served.node,
    })
    .expect("what is served can be sent");
    assert_eq!(
        again.check(&key, &kontrol_core::limits::Limits::default()),
        Ok(())
    );
    assert!(same(&again.payload, &report.payload));
    let payload = report.payload.clone();
    assert_eq!(Report { payload, ..again }, report);
}

/// A payload file: what it says comes back from protobuf as it was.
pub fn payload(data: &[u8]) {
    let value = match strict::value(data) {
        Ok(value) => value,
        Err(fault) => return said(fault),
    };
    let proto = convert::to_proto(&value);
    let read = prost_types::Value::decode(&proto.encode_to_vec()[..]);
    let read = read.expect("what nests so deep can be decoded");
    assert_eq!(read, proto);
    let back = convert::from_proto(read).expect("what JSON says can be said");
    assert!(same(&back, &value), "{value} became {back}");
    assert_eq!(canonical(&back), canonical(&value));
}

/// What stands in a store, line by line: `key value` writes, `-key` deletes, an empty line ends a batch. However a master comes to
/// know of it, it knows the same; what it can't read it tells in a line, and all that it knows can be served.
pub fn view(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let now = Instant::now();
    let (mut view, mut entries) = (View::default(), BTreeMap::<&str, Entry>::new());
    let mut revision = 0;
    let mut twice = false;
    for batch in text.split("\n\n") {
        revision += 1;
        let events = events(batch, revision, &mut entries);
        twice |= seqs_are_shared(&entries);
        let (next, changes) = view.apply(&Events { revision, events }, now);
        for trouble in next.troubles() {
            said(&trouble.what);
        }
        changes.iter().for_each(served);
        view = next;
    }
    check(&view);
    let snapshot = Snapshot {
        revision,
        entries: entries.into_values().collect(),
    };
    let (fresh, _) = View::default().replace(&snapshot, now);
    let (caught_up, _) = view.replace(&snapshot, now);
    for other in [&fresh, &caught_up] {
        check(other);
        // No master gives a seq twice; who edits the store so has two places for one pod.
        if !twice {
            agree(&view, other);
        }
    }
}

/// The events of a batch. Within a transaction no key is written twice.
fn events<'t>(batch: &'t str, revision: i64, entries: &mut BTreeMap<&'t str, Entry>) -> Vec<Event> {
    let mut seen = BTreeSet::new();
    let mut events = Vec::new();
    for line in batch.lines() {
        let (key, value) = match line.strip_prefix('-') {
            Some(key) => (key, None),
            None => match line.split_once(' ') {
                Some((key, value)) => (key, Some(value)),
                None => continue,
            },
        };
        if !seen.insert(key) {
            continue;
        }
        let Some(value) = value else {
            if entries.remove(key).is_some() {
                let key = key.to_owned();
                events.push(Event::Delete { key, revision });
            }
            continue;
        };
        let before = entries.get(key).map(|entry| entry.create_revision);
        let entry = Entry {
            key: key.to_owned(),
            value: value.as_bytes().to_vec().into(),
            create_revision: before.unwrap_or(revision),
            mod_revision: revision,
        };
        // Of one transaction there are no two candidates: the keys would have one age.
        let is_candidate = |entry: &Entry| entry.key.starts_with("leader/");
        let same_age = entries.values().any(|other| {
            is_candidate(&entry)
                && is_candidate(other)
                && other.key != entry.key
                && other.create_revision == entry.create_revision
        });
        if same_age {
            continue;
        }
        entries.insert(key, entry.clone());
        events.push(Event::Put(entry));
    }
    events
}

fn seqs_are_shared(entries: &BTreeMap<&str, Entry>) -> bool {
    let mut seen = BTreeSet::new();
    let pods = entries.values().filter_map(|entry| {
        let key: PodKey = entry.key.strip_prefix("pods/")?.parse().ok()?;
        Pod::decode(&entry.value)
            .ok()
            .filter(|pod| pod.key() == key)
    });
    pods.into_iter().any(|pod| !seen.insert(pod.seq()))
}

fn check(view: &View) {
    let mut last = None;
    for pod in view.pods() {
        assert!(
            last < Some(pod.seq()),
            "the pods are in the order of their seqs"
        );
        last = Some(pod.seq());
        let member = view.member(pod.key()).expect("who has a place is a member");
        has_json("Pod", &convert::member(view, member));
        assert!(view.unreadable(pod.key()).is_none());
    }
    let (next, _) = view.seq();
    assert!(last < Some(next), "no seq is given again");
    view.actions()
        .values()
        .for_each(|action| told(&action.head));
    let (operate, _) = view.operate();
    if let Some(hold) = &operate.hold {
        has_json("Hold", &convert::hold(hold));
        assert!(hold.left_ms(0) <= hold.until_ms);
    }
    if let Some(freeze) = &operate.safeguard {
        has_json("Safeguard", &convert::safeguard(freeze));
    }
    match view.state() {
        Ok((record, _)) => {
            let state = record.state.as_ref();
            assert!(state.is_none_or(|state| depth(&state.to_value()) <= MAX_DEPTH));
        }
        Err(unreadable) => said(unreadable),
    }
}

fn served(change: &Change) {
    match change {
        Change::Left(removal) => has_json("Removal", &convert::removal(removal)),
        Change::Changed { before, .. } => has_json("Pod", &convert::pod(before)),
        Change::ActionStarted(action) | Change::ActionFinished(action) => told(&action.head),
        Change::Joined(_) | Change::Leader(_) | Change::Hold(_) | Change::Safeguard(_) => {}
    }
}

fn agree(view: &View, other: &View) {
    assert_eq!(view.digest(), other.digest(), "all masters have one digest");
    assert_eq!(view.len(), other.len());
    assert_eq!(view.leader(), other.leader());
    assert!(view.candidates().eq(other.candidates()));
    assert!(view.masters().eq(other.masters()));
    assert_eq!(view.actions(), other.actions());
    assert_eq!(view.operate(), other.operate());
    assert_eq!(view.state(), other.state());
    for pod in view.pods() {
        let key = pod.key();
        let tombstone = |view: &View| view.tombstone(key).map(|one| one.mod_revision);
        assert_eq!(tombstone(view), tombstone(other));
        let revision = |view: &View| view.member(key).map(|member| member.mod_revision);
        assert_eq!(revision(view), revision(other));
    }
}
