//! The etcd store on real etcd servers: the conformance suite, and what only a server on a network can do to its users.

mod server;
mod tls;

use self::server::{Etcd, is_missing, unique_app};
use super::{addresses::Name, *};
use crate::cluster::store::{
    SharedStore,
    conformance::{Bench, commit, committed, conformance, events_to, put, texts, txn},
};
use etcd_client::{Permission, PermissionType};
use futures::FutureExt;
use kontrol_core::kv::{Event, Events};
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};
use tokio::time::timeout;

/// More than any call may take, on a machine that has other things to do as well.
const SOON: Duration = Duration::from_secs(4);
/// What a test may wait for something that must come.
const AT_LAST: Duration = Duration::from_secs(30);

fn store_with(etcd: &Etcd, app: &str, options: EtcdOptions) -> SharedStore {
    let prefix = format!("/kontrol/default/{app}/");
    Arc::new(EtcdStore::new(&etcd.endpoints(), prefix, options).unwrap())
}

fn store(etcd: &Etcd) -> SharedStore {
    store_with(etcd, &unique_app(), EtcdOptions::default())
}

async fn client(etcd: &Etcd) -> Client {
    Client::connect(etcd.endpoints(), None).await.unwrap()
}

async fn bench(etcd: impl FnOnce() -> &'static Etcd) -> Option<Bench> {
    if is_missing() {
        return None;
    }
    let etcd = etcd();
    let client = client(etcd).await;
    Some(Bench {
        store: store(etcd),
        forget: Box::new(move |revision| {
            let mut client = client.clone();
            async move {
                client.compact(revision, None).await.unwrap();
            }
            .boxed()
        }),
        _keep: Box::new(()),
    })
}

/// The server of the whole suite, in which each test has an ensemble of its own. It ends with this process.
fn shared() -> &'static Etcd {
    static ETCD: OnceLock<Etcd> = OnceLock::new();
    ETCD.get_or_init(Etcd::start_forever)
}

/// A server whose history nobody else needs.
fn forgetful() -> &'static Etcd {
    static ETCD: OnceLock<Etcd> = OnceLock::new();
    ETCD.get_or_init(Etcd::start_forever)
}

mod on_etcd {
    use super::*;

    conformance!(bench(shared), bench(forgetful));
}

/// Waits for a call to succeed. Only for calls that may be repeated.
async fn at_last<T, F: Future<Output = Result<T, StoreError>>>(call: impl Fn() -> F) -> T {
    let end = Instant::now() + AT_LAST;
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn next_error(watch: &mut Box<dyn Watch>) -> StoreError {
    timeout(AT_LAST, async {
        loop {
            if let Err(error) = watch.next().await {
                return error;
            }
        }
    })
    .await
    .expect("the watch ends")
}

#[tokio::test]
async fn the_keys_are_where_etcdctl_finds_them_and_ensembles_are_apart() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::start(1);
    let [web, web2] = ["web", "web2"].map(|app| store_with(&etcd, app, EtcdOptions::default()));
    let start = web.snapshot().await.unwrap().revision;
    let mut watch = web.watch(start).await.unwrap();
    commit(&web2, [put("pods/a", "other")]).await;
    let last = commit(&web, [put("pods/a", "mine")]).await;
    let raw = client(&etcd)
        .await
        .get("/kontrol/default/web/pods/a", None)
        .await
        .unwrap();
    assert_eq!(raw.kvs()[0].value(), b"mine");
    assert_eq!(texts(&web.snapshot().await.unwrap()), [("pods/a", "mine")]);
    assert_eq!(events_to(&mut watch, last).await.len(), 1);
    // What a person may put there by hand must not stop anybody.
    let odd = [b"/kontrol/default/web/".as_slice(), &[0xff]].concat();
    client(&etcd).await.put(odd, "x", None).await.unwrap();
    let last = commit(&web, [put("pods/b", "mine")]).await;
    assert_eq!(events_to(&mut watch, last).await.len(), 1);
    assert_eq!(web.snapshot().await.unwrap().entries.len(), 2);
}

#[tokio::test]
async fn a_master_may_start_before_etcd() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::prepare(1);
    let store = store(&etcd);
    let started = Instant::now();
    for error in [
        store.snapshot().await.unwrap_err(),
        store.commit(txn([], [put("a", "1")])).await.unwrap_err(),
        store.grant(SOON).await.unwrap_err(),
        store.watch(0).await.map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(error.to_string().contains("127.0.0.1:"), "{error}");
    }
    assert!(started.elapsed() < SOON);
    let _etcd = etcd.run();
    at_last(|| store.snapshot()).await;
    commit(&store, [put("a", "1")]).await;
}

#[tokio::test]
async fn a_commit_to_an_etcd_that_is_paused_is_indeterminate() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::start(1);
    let store = store(&etcd);
    let first = commit(&store, [put("a", "1")]).await;
    let (lease, _) = store.grant(Duration::from_secs(3)).await.unwrap();
    etcd.pause(0);
    let compare = [Compare::ModRevision("a".into(), first)];
    let write = txn(compare, [put("a", "2")]);
    let error = timeout(SOON, store.commit(write.clone()))
        .await
        .expect("a call has a deadline")
        .unwrap_err();
    assert!(matches!(error, StoreError::Indeterminate(_)), "{error}");
    let error = timeout(SOON, store.snapshot()).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let error = timeout(SOON, store.keep_alive(lease)).await.unwrap();
    assert!(
        matches!(error, Err(StoreError::Unavailable(_))),
        "{error:?}"
    );
    etcd.resume(0);
    // Read back and decide: whichever it was, to send it again does it once.
    at_last(|| store.snapshot()).await;
    let again = at_last(|| store.commit(write.clone())).await;
    let found = store.read(&["a".into()]).await.unwrap();
    assert_eq!(texts(&found), [("a", "2")]);
    if let Outcome::Committed(revision) = again {
        assert_eq!(found.entries[0].mod_revision, revision);
    }
    let history = store.watch(first).await.unwrap().next().await.unwrap();
    assert_eq!(history.events.len(), 1, "{history:?}");
}

#[tokio::test]
async fn a_watch_ends_with_its_etcd_and_goes_on_after_it() {
    if is_missing() {
        return;
    }
    let mut etcd = Etcd::start(1);
    let store = store(&etcd);
    let (lease, ttl) = store.grant(Duration::from_secs(20)).await.unwrap();
    let first = commit(&store, [put("a", "1")]).await;
    let mut watch = store.watch(first - 1).await.unwrap();
    events_to(&mut watch, first).await;
    etcd.kill(0);
    let error = next_error(&mut watch).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    etcd.restart(0);
    let mut watch = at_last(|| store.watch(first)).await;
    assert_eq!(at_last(|| store.keep_alive(lease)).await, ttl);
    let second = commit(&store, [put("a", "2")]).await;
    assert_eq!(events_to(&mut watch, second).await.len(), 1);
}

#[tokio::test]
async fn a_quiet_watch_stays_and_a_silent_etcd_ends_it() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::start(1);
    let store = store(&etcd);
    let first = commit(&store, [put("a", "1")]).await;
    let mut watch = store.watch(first).await.unwrap();
    // Longer than a watch waits for a sign of life.
    let quiet = timeout(Duration::from_secs(5), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let second = commit(&store, [put("a", "2")]).await;
    assert_eq!(events_to(&mut watch, second).await.len(), 1);
    etcd.pause(0);
    let error = next_error(&mut watch).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    etcd.resume(0);
}

#[tokio::test]
async fn a_lease_of_another_master_can_be_kept_alive() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::start(1);
    let (lease, ttl) = store(&etcd).grant(Duration::from_secs(9)).await.unwrap();
    assert_eq!(store(&etcd).keep_alive(lease).await.unwrap(), ttl);
}

fn user(name: &str, password: &str) -> EtcdOptions {
    EtcdOptions {
        user: Some(name.into()),
        password: Some(password.into()),
        tls: None,
    }
}

#[tokio::test]
async fn a_password_is_used_refreshed_and_told_when_it_is_wrong() {
    if is_missing() {
        return;
    }
    let mut etcd = Etcd::start(1);
    let app = unique_app();
    let early = store_with(&etcd, &app, user("kontrol", "geheim"));
    let nobody = store_with(&etcd, &app, EtcdOptions::default());
    let start = commit(&early, [put("a", "before there is a password")]).await;

    let mut admin = client(&etcd).await;
    admin.user_add("root", "root", None).await.unwrap();
    admin.role_add("root").await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.user_add("kontrol", "geheim", None).await.unwrap();
    admin.user_add("guest", "guest", None).await.unwrap();
    admin.role_add("kontrol").await.unwrap();
    let own = Permission::new(PermissionType::Readwrite, "/kontrol/").with_prefix();
    admin.role_grant_permission("kontrol", own).await.unwrap();
    admin.user_grant_role("kontrol", "kontrol").await.unwrap();
    admin.auth_enable().await.unwrap();

    commit(&early, [put("a", "1")]).await;
    let wrong = store_with(&etcd, &app, user("kontrol", "falsch"));
    let guest = store_with(&etcd, &app, user("guest", "guest"));
    for (store, text) in [
        (&nobody, "KONTROL_ETCD_USER"),
        (&wrong, "wrong user or password"),
        (&guest, "permission denied"),
    ] {
        for error in [
            store.snapshot().await.unwrap_err(),
            store.commit(txn([], [put("a", "x")])).await.unwrap_err(),
            store.watch(start).await.map(|_| ()).unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Refused(_)), "{error}");
            let shown = error.to_string();
            assert!(
                !shown.contains("falsch") && !shown.contains("geheim"),
                "{shown}"
            );
            assert!(shown.contains(text), "{shown}");
        }
    }
    // A restart makes every token void; no caller has to know.
    let store = store_with(&etcd, &app, user("kontrol", "geheim"));
    let (lease, _) = store.grant(Duration::from_secs(20)).await.unwrap();
    let last = commit(&store, [put("a", "2")]).await;
    etcd.kill(0);
    etcd.restart(0);
    at_last(|| store.keep_alive(lease)).await;
    let next = commit(&store, [put("a", "3")]).await;
    let mut watch = store.watch(last).await.unwrap();
    assert_eq!(events_to(&mut watch, next).await.len(), 1);
    commit(&early, [put("a", "4")]).await;
}

#[test]
fn half_a_user_is_refused() {
    let options = EtcdOptions {
        user: Some("kontrol".into()),
        ..EtcdOptions::default()
    };
    let error = EtcdStore::new(&["h:1".into()], "/", options).unwrap_err();
    assert!(
        error.to_string().contains("KONTROL_ETCD_PASSWORD"),
        "{error}"
    );
}

/// One commit after the other for a while; what each came to.
async fn commits(store: &SharedStore, count: usize) -> Vec<Result<Outcome, StoreError>> {
    let mut outcomes = Vec::new();
    for n in 0..count {
        let write = store.commit(txn([], [put("n", &n.to_string())]));
        outcomes.push(timeout(SOON, write).await.expect("a call has a deadline"));
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_or_dead_member_costs_one_deadline_and_no_lease() {
    if is_missing() {
        return;
    }
    let mut etcd = Etcd::start(3);
    let store = store(&etcd);
    let (lease, ttl) = store.grant(Duration::from_secs(5)).await.unwrap();
    let first = commit(&store, [put("n", "start")]).await;
    let mut watch = store.watch(first).await.unwrap();
    // The first member named is the one in use, be it etcd's leader or not.
    etcd.pause(0);
    let outcomes = commits(&store, 5).await;
    assert!(
        matches!(outcomes[0], Err(StoreError::Indeterminate(_))),
        "{outcomes:?}"
    );
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    // One more if etcd had to find another leader meanwhile.
    assert!(failed <= 2, "{outcomes:?}");
    assert_eq!(store.keep_alive(lease).await.unwrap(), ttl);
    let error = next_error(&mut watch).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let mut watch = store.watch(first).await.unwrap();
    assert!(matches!(watch.next().await, Ok(Events { .. })));
    etcd.resume(0);
    etcd.kill(1);
    at_last(|| store.keep_alive(lease)).await;
    let last = at_last(|| store.commit(txn([], [put("n", "end")]))).await;
    let mut watch = at_last(|| store.watch(first)).await;
    let last = committed(last);
    // More may come behind it: the member that was paused now carries out the first write, whose end was unclear.
    let events = events_to(&mut watch, last).await;
    let is_end = |event: &Event| match event {
        Event::Put(entry) => entry.mod_revision == last && entry.value == "end",
        Event::Delete { .. } => false,
    };
    assert!(events.iter().any(is_end), "{events:?}");
}

/// The addresses that the name of the next test stands for.
static BEHIND_ONE_NAME: OnceLock<Vec<std::net::SocketAddr>> = OnceLock::new();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_of_a_name_is_a_member() {
    if is_missing() {
        return;
    }
    let mut etcd = Etcd::start(3);
    let addresses = etcd.endpoints();
    let addresses = addresses.iter().map(|text| text.parse().unwrap());
    BEHIND_ONE_NAME.set(addresses.collect()).unwrap();
    let name = Name::with("etcd.test:1", |_, _| {
        Ok(BEHIND_ONE_NAME.get().unwrap().clone())
    });
    let members = Members::of(vec![name.unwrap()], EtcdOptions::default());
    let store: SharedStore = Arc::new(EtcdStore::of(members, unique_app()));
    commit(&store, [put("n", "start")]).await;
    etcd.pause(0);
    let outcomes = commits(&store, 5).await;
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert!(failed <= 2, "{outcomes:?}");
    etcd.resume(0);
    // A member alone answers, but not as etcd does with a majority.
    etcd.kill(1);
    at_last(|| store.commit(txn([], [put("n", "end")]))).await;
    at_last(|| store.snapshot()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_takes_no_longer_than_whom_it_serves_waits() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::start(1);
    let store = store(&etcd);
    let hurried = crate::cluster::store::serving(&store, Duration::from_millis(250));
    commit(&hurried, [put("n", "start")]).await;
    etcd.pause(0);
    let start = Instant::now();
    let error = hurried.commit(txn([], [put("n", "1")])).await.unwrap_err();
    assert!(matches!(error, StoreError::Indeterminate(_)), "{error}");
    let error = hurried.snapshot().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(start.elapsed() < CALL_TIMEOUT, "{:?}", start.elapsed());
    etcd.resume(0);
    at_last(|| hurried.snapshot()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_promised_and_all_comes_back() {
    if is_missing() {
        return;
    }
    let etcd = Etcd::start(3);
    let store = store(&etcd);
    commit(&store, [put("a", "1")]).await;
    etcd.pause(1);
    etcd.pause(2);
    for outcome in commits(&store, 2).await {
        let error = outcome.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Unavailable(_) | StoreError::Indeterminate(_)
            ),
            "{error}"
        );
    }
    let error = timeout(SOON, store.snapshot()).await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    etcd.resume(1);
    etcd.resume(2);
    at_last(|| store.snapshot()).await;
    at_last(|| store.commit(txn([], [put("a", "2")]))).await;
    let found = at_last(|| store.snapshot()).await;
    assert!(texts(&found).contains(&("a", "2")));
}
