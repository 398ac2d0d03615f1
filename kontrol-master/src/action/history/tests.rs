//! What the history writes, over what, and what it deletes.

use super::*;
use crate::cluster::{
    election::Campaign,
    store::{EtcdOptions, StoreUrl, open},
};
use kontrol_core::{
    kv::{Entry, Event, Events},
    model::action::{CommandRecord, Counts, Head, Selection},
    view::PeerMaster,
};

fn record(luck: u64, state: State) -> Record {
    Record {
        head: Head {
            id: ActionId::new(0, luck),
            state,
            dispatcher: String::new(),
            master: "m".into(),
            instance: "1".into(),
            lease: String::new(),
            created_ms: 0,
            finished_ms: (state == State::Finished).then_some(luck * 1000),
            timeout_ms: 0,
            detach: false,
            selector: Selection::default(),
            command: CommandRecord::default(),
            summary: Counts::default(),
        },
        results: Vec::new(),
    }
}

fn history() -> (History, SharedStore) {
    let store = open(&StoreUrl::Memory, "n", "a", EtcdOptions::default()).unwrap();
    let (roster, _mirror) = Roster::new(Arc::clone(&store));
    let me = PeerMaster {
        id: "m".into(),
        address: "m:1".into(),
        instance: "1".into(),
        tls: false,
    };
    let hour = Duration::from_secs(3600);
    let (election, _campaign) = Campaign::new(Arc::clone(&store), roster.clone(), me, hour);
    let (history, _task) = History::new(Arc::clone(&store), roster, election, hour);
    (history, store)
}

#[tokio::test]
async fn a_record_is_written_only_over_the_one_that_was_written_before() {
    let (history, store) = history();
    let running = record(1, State::Running);
    let first = history.save(running.clone(), 0).await.unwrap();
    let again = history.save(running.clone(), 0).await.unwrap();
    assert_eq!(first, again, "it is there already");
    let finished = record(1, State::Finished);
    let second = history.save(finished.clone(), first).await.unwrap();
    // What this master wrote last, without knowing that it was written, does not stop it.
    let mine = history.save(finished.clone(), first).await.unwrap();
    assert_eq!(mine, second, "the same is not written again");
    let mut theirs = running.clone();
    theirs.head.instance = "2".into();
    let overtaken = history.save(theirs, first).await;
    assert!(matches!(overtaken, Err(NotSaved::Overtaken)));
    let again = history.save(running.clone(), first).await.unwrap();
    assert!(again > second);
    let second = history.save(finished.clone(), first).await.unwrap();
    let id = &finished.head.id;
    let (read, revision) = history.read(id).await.unwrap().unwrap();
    assert_eq!((&read, revision), (&finished, second));
    let delete = Txn {
        ops: vec![Op::Delete(action_key(id))],
        ..Txn::default()
    };
    store.commit(delete).await.unwrap();
    let gone = history.save(running, second).await;
    assert!(matches!(gone, Err(NotSaved::Gone)));
    assert!(history.read(id).await.unwrap().is_none());
}

#[test]
fn what_is_old_or_too_much_is_doomed_and_what_runs_is_not() {
    let put = |record: Record| {
        Event::Put(Entry {
            key: action_key(&record.head.id),
            value: record.encode().into(),
            create_revision: 1,
            mod_revision: 1,
        })
    };
    let view = |records: Vec<Record>| {
        let events = records.into_iter().map(put).collect();
        let events = Events {
            revision: 1,
            events,
        };
        View::default().apply(&events, Instant::now()).0
    };
    let mixed = view(vec![
        record(1, State::Finished),
        record(2, State::Running),
        record(9, State::Finished),
    ]);
    let ids = |doomed: Vec<Arc<KnownAction>>| -> Vec<ActionId> {
        doomed.iter().map(|known| known.head.id.clone()).collect()
    };
    let second = Duration::from_secs(1);
    let old = doomed(&mixed, 10_000, Some(5 * second));
    assert_eq!(ids(old), [ActionId::new(0, 1)]);
    assert_eq!(ids(doomed(&mixed, 10_000, None)), []);
    let many = (0..MAX_ACTIONS as u64 + 2).map(|luck| record(luck, State::Finished));
    let many = view(many.collect());
    let oldest = [ActionId::new(0, 0), ActionId::new(0, 1)];
    assert_eq!(ids(doomed(&many, 0, None)), oldest);
}
