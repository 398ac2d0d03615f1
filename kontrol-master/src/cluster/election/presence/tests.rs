//! Two masters under one id or address, and one whose address changes: what each writes and says.

use super::*;
use crate::cluster::{election::Campaign, roster::Roster, store::embedded::EmbeddedStore};
use kontrol_core::kv::{Entry, Event, Events};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const TTL: Duration = Duration::from_secs(5);

fn master(id: &str, address: &str, instance: &str) -> PeerMaster {
    PeerMaster {
        id: id.into(),
        address: address.into(),
        instance: instance.into(),
        tls: false,
    }
}

/// A master with that record, and the hand that changes its address.
fn presence(
    me: &PeerMaster,
) -> (
    Presence,
    watch::Receiver<Option<&'static str>>,
    watch::Sender<Advertised>,
) {
    let address = Some(me.address.clone());
    let (sender, advertised) = watch::channel(Advertised { address, ip: None });
    let (presence, trouble) = Presence::new(me.clone(), advertised);
    (presence, trouble, sender)
}

/// A view of these masters, of which each is also a candidate: the first since revision 1, and so on.
fn view(masters: &[PeerMaster]) -> View {
    let mut revision = 0;
    let mut events = Vec::new();
    for master in masters {
        revision += 1;
        for key in [
            format!("{MASTERS}{}", master.id),
            candidacy(LeaseId(revision)),
        ] {
            events.push(Event::Put(Entry {
                key,
                value: master.encode().into(),
                create_revision: revision,
                mod_revision: revision,
            }));
        }
    }
    let events = Events { revision, events };
    View::default().apply(&events, Instant::now()).0
}

fn keys(txn: Option<Txn>) -> Vec<String> {
    let ops = txn.into_iter().flat_map(|txn| txn.ops);
    ops.map(|op| match op {
        Op::Put { key, value, .. } => {
            let record: PeerMaster = serde_json::from_slice(&value).unwrap();
            format!("{key}={}@{}", record.id, record.address)
        }
        Op::Delete(key) => format!("-{key}"),
    })
    .collect()
}

fn unready(presence: &mut Presence, view: &View, epoch: Revision) -> Option<&'static str> {
    presence.judge(view, epoch, TTL, Instant::now());
    *presence.trouble.borrow()
}

#[test]
fn a_master_whose_record_stands_has_nothing_to_write_or_to_say() {
    let a = master("a", "10.0.0.1:80", "01");
    let (mut presence, _, _sender) = presence(&a);
    let view = view(&[a, master("b", "10.0.0.2:80", "02")]);
    assert_eq!(presence.mend(&view, ("leader/1", 1), LeaseId(1)), None);
    assert_eq!(unready(&mut presence, &view, 1), None);
}

#[test]
fn the_one_that_finds_its_id_taken_goes_by_another_and_back() {
    let a = master("m", "10.0.0.1:80", "01");
    let b = master("m", "10.0.0.2:80", "02");
    // The other one overwrote the record.
    let taken = view(&[a.clone(), b.clone()]);
    let (mut first, _, _sender) = presence(&a);
    let lease = LeaseId(1);
    let apart = ["masters/m~01=m~01@10.0.0.1:80", "leader/1=m~01@10.0.0.1:80"];
    assert_eq!(keys(first.mend(&taken, ("leader/1", 1), lease)), apart);
    assert!(unready(&mut first, &taken, 1).unwrap().contains("--id"));
    // Told once, and then not before it could be seen.
    first.told(3);
    assert_eq!(first.mend(&taken, ("leader/1", 1), lease), None);
    let (mut second, _, _other) = presence(&b);
    assert_eq!(second.mend(&taken, ("leader/2", 2), LeaseId(2)), None);
    assert_eq!(
        unready(&mut second, &taken, 2),
        None,
        "who has the id keeps it"
    );
    // It is gone: the id is free.
    let free = view(&[
        master("m~01", "10.0.0.1:80", "01"),
        master("x", "10.0.0.9:80", "09"),
        master("y", "10.0.0.8:80", "08"),
    ]);
    let back = [
        "masters/m=m@10.0.0.1:80",
        "-masters/m~01",
        "leader/1=m@10.0.0.1:80",
    ];
    assert_eq!(keys(first.mend(&free, ("leader/1", 1), lease)), back);
    assert_eq!(unready(&mut first, &free, 1), None);
}

#[tokio::test]
async fn an_id_is_claimed_where_it_is_free_or_ours() {
    let store: SharedStore = Arc::new(EmbeddedStore::memory());
    let a = master("m", "10.0.0.1:80", "01");
    let claim = async |me: &PeerMaster| presence(me).0.claim(&store).await.unwrap();
    let (record, compares) = claim(&a).await;
    assert_eq!(
        (record, compares),
        (a.clone(), vec![Compare::Absent("masters/m".into())])
    );
    let txn = Txn {
        ops: vec![Op::put("masters/m", a.encode())],
        ..Txn::default()
    };
    store.commit(txn).await.unwrap();
    for ours in [&a, &master("m", "10.0.0.1:80", "02")] {
        let (record, compares) = claim(ours).await;
        assert_eq!(record, *ours, "its own, or an earlier start's");
        assert!(matches!(compares[..], [Compare::ModRevision(..)]));
    }
    let (record, compares) = claim(&master("m", "10.0.0.2:80", "03")).await;
    assert_eq!((record.id.as_str(), compares), ("m~03", Vec::new()));
}

#[test]
fn an_address_that_changes_is_told() {
    let a = master("a", "10.0.0.1:80", "01");
    let (presence, _, sender) = presence(&a);
    sender.send_modify(|now| now.address = Some("10.0.0.7:80".into()));
    let written = keys(presence.mend(&view(&[a]), ("leader/1", 1), LeaseId(1)));
    assert_eq!(
        written,
        ["masters/a=a@10.0.0.7:80", "leader/1=a@10.0.0.7:80"]
    );
}

#[test]
fn of_two_at_one_address_the_later_is_not_ready_and_both_say_so() {
    let (a, b) = (
        master("a", "10.0.0.1:80", "01"),
        master("b", "10.0.0.1:80", "02"),
    );
    let view = view(&[a.clone(), b.clone()]);
    let (mut first, _, _one) = presence(&a);
    let (mut second, _, _two) = presence(&b);
    assert_eq!(unready(&mut first, &view, 1), None);
    assert!(
        unready(&mut second, &view, 2)
            .unwrap()
            .contains("--advertise")
    );
    for (presence, epoch) in [(&first, 1), (&second, 2)] {
        let trouble = presence.trouble(&view, epoch).unwrap();
        assert!(
            trouble.said.contains("10.0.0.1:80 as well"),
            "{}",
            trouble.said
        );
    }
}

#[test]
fn a_master_at_loopback_among_others_elsewhere_is_not_ready() {
    let (a, b) = (
        master("a", "127.0.0.1:80", "01"),
        master("b", "10.0.0.2:80", "02"),
    );
    let among = view(&[a.clone(), b.clone()]);
    let (mut local, _, _one) = presence(&a);
    assert!(unready(&mut local, &among, 1).unwrap().contains("loopback"));
    let (mut other, _, _two) = presence(&b);
    assert_eq!(unready(&mut other, &among, 2), None);
    let one_host = view(&[a, master("c", "127.0.0.1:81", "03")]);
    assert_eq!(
        unready(&mut local, &one_host, 1),
        None,
        "all of them on one host"
    );
}

#[tokio::test(start_paused = true)]
async fn what_stays_wrong_is_said_once_a_minute_and_what_passes_is_not() {
    let a = master("m", "10.0.0.1:80", "01");
    let (mut presence, _, _sender) = presence(&a);
    let taken = view(&[a.clone(), master("m", "10.0.0.2:80", "02")]);
    let start = Instant::now();
    let mut said = Vec::new();
    for second in 0..130 {
        let now = start + Duration::from_secs(second);
        presence.judge(&taken, 1, TTL, now);
        if presence
            .standing
            .as_ref()
            .is_some_and(|(_, _, said)| *said == Some(now))
        {
            said.push(second);
        }
    }
    assert_eq!(said, [6, 66, 126]);
    presence.judge(&view(&[a]), 1, TTL, start + Duration::from_secs(130));
    assert!(presence.standing.is_none() && presence.trouble.borrow().is_none());
}

#[tokio::test]
async fn without_an_address_it_is_not_ready_and_takes_no_part() {
    let (sender, advertised) = watch::channel(Advertised::default());
    let (mut presence, trouble) = Presence::new(master("a", "", "01"), advertised);
    let located = tokio::spawn(async move { presence.located().await });
    tokio::task::yield_now().await;
    assert!(trouble.borrow().unwrap().contains("--advertise") && !located.is_finished());
    sender.send_modify(|now| now.address = Some("10.0.0.1:80".into()));
    located.await.unwrap();
}

/// A master at work on a store: its roster and its candidacy.
async fn stand(store: &SharedStore, me: PeerMaster, token: &CancellationToken) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (roster, mirror) = Roster::new(Arc::clone(store));
    let (_election, campaign) = Campaign::new(Arc::clone(store), roster.clone(), me.clone(), TTL);
    tasks.spawn(mirror.run(token.clone()));
    tasks.spawn(campaign.run(token.clone()));
    let mut changes = roster.changes();
    while !roster
        .view()
        .candidates()
        .any(|one| one.master.instance == me.instance)
    {
        changes.next().await;
    }
    tasks
}

#[tokio::test(start_paused = true)]
async fn two_masters_with_one_id_stay_apart_until_one_of_them_is_gone() {
    let store: SharedStore = Arc::new(EmbeddedStore::memory());
    let (roster, mirror) = Roster::new(Arc::clone(&store));
    let [end, one, two] = std::array::from_fn(|_| CancellationToken::new());
    let mirror = tokio::spawn(mirror.run(end.clone()));
    let shown = async |wanted: &[&str]| {
        let mut changes = roster.changes();
        let ids = || -> Vec<String> {
            let mut ids: Vec<String> = roster.view().masters().map(|one| one.id.clone()).collect();
            ids.sort();
            ids
        };
        let wait = async {
            while ids() != wanted {
                changes.next().await;
            }
        };
        let found = tokio::time::timeout(TTL * 4, wait).await;
        assert!(found.is_ok(), "{wanted:?} never came, but {:?}", ids());
    };
    let first = stand(&store, master("m", "10.0.0.1:80", "01"), &one).await;
    shown(&["m"]).await;
    let second = stand(&store, master("m", "10.0.0.2:80", "02"), &two).await;
    shown(&["m", "m~02"]).await;
    let ids: Vec<String> = roster
        .view()
        .candidates()
        .map(|one| one.master.id.clone())
        .collect();
    assert_eq!(ids, ["m", "m~02"], "and so are the candidacies");
    one.cancel();
    first.join_all().await;
    shown(&["m"]).await;
    assert_eq!(roster.view().master("m").unwrap().instance, "02");
    two.cancel();
    second.join_all().await;
    end.cancel();
    mirror.await.unwrap();
}
