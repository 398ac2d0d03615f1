//! The embedded stores: the conformance suite on both, and what only a file must do.

use super::*;
use crate::cluster::store::{
    SharedStore,
    conformance::{Bench, commit, conformance, delete, put, texts, txn},
};
use futures::FutureExt;
use kontrol_core::kv::{Event, Op};
use redb::{Database, DatabaseError, StorageBackend, backends::FileBackend};
use std::{
    io::{self, BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
};

const ENSEMBLE: &str = "/kontrol/default/test/";

fn bench(store: EmbeddedStore, keep: Option<tempfile::TempDir>) -> Bench {
    let store = Arc::new(store);
    let forgetful = store.clone();
    Bench {
        store,
        forget: Box::new(move |revision| {
            let store = forgetful.clone();
            async move {
                let kept = store.shared.lock().revision() - revision;
                store.forget_all_but(usize::try_from(kept).unwrap());
            }
            .boxed()
        }),
        _keep: Box::new(keep),
    }
}

fn in_memory() -> Option<Bench> {
    Some(bench(EmbeddedStore::memory(), None))
}

fn in_a_file() -> Option<Bench> {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::file(dir.path(), ENSEMBLE).unwrap();
    Some(bench(store, Some(dir)))
}

mod memory {
    use super::*;

    conformance!(async { in_memory() }, async { in_memory() });
}

mod on_disk {
    use super::*;

    conformance!(async { in_a_file() }, async { in_a_file() });
}

fn file_store(dir: &Path) -> SharedStore {
    Arc::new(EmbeddedStore::file(dir, ENSEMBLE).unwrap())
}

fn refusal(result: Result<EmbeddedStore, StoreError>) -> String {
    match result {
        Err(StoreError::Refused(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reopened_file_has_everything_but_the_keys_of_leases() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made/on/the/way");
    let store = file_store(&dir);
    let (lease, _) = store.grant(Duration::from_secs(5)).await.unwrap();
    let bound = Op::Put {
        key: "leader/1".into(),
        value: "me".into(),
        lease: Some(lease),
    };
    let first = commit(&store, [put("a", "1"), put("b", "1"), bound]).await;
    let second = commit(&store, [put("a", "2"), delete("b")]).await;
    let before = store.snapshot().await.unwrap();
    let mut watch = store.watch(first).await.unwrap();
    let events = watch.next().await.unwrap();
    drop((store, watch));

    let store = file_store(&dir);
    let after = store.snapshot().await.unwrap();
    assert_eq!(texts(&after), [("a", "2")]);
    assert_eq!(after.entries[0], before.entries[0]);
    assert_eq!(after.revision, second + 1);
    let then = store.snapshot_at("", first).await.unwrap();
    assert_eq!(texts(&then), [("a", "1"), ("b", "1"), ("leader/1", "me")]);
    assert_eq!(store.snapshot_at("", second).await.unwrap(), before);
    let mut watch = store.watch(first).await.unwrap();
    let again = watch.next().await.unwrap();
    assert_eq!(again.events[..2], events.events[..]);
    assert_eq!(
        again.events[2..],
        [Event::Delete {
            key: "leader/1".into(),
            revision: second + 1
        }]
    );
    let error = store.keep_alive(lease).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseGone(_)), "{error}");
    assert!(commit(&store, [put("a", "3")]).await > after.revision);
}

#[tokio::test]
async fn a_file_serves_one_process_and_one_ensemble() {
    let dir = tempfile::tempdir().unwrap();
    let store = file_store(dir.path());
    let text = refusal(EmbeddedStore::file(dir.path(), ENSEMBLE));
    assert!(text.contains("in use by another process"), "{text}");
    drop(store);
    let text = refusal(EmbeddedStore::file(dir.path(), "/kontrol/default/other/"));
    assert!(
        text.contains("holds the ensemble /kontrol/default/test/"),
        "{text}"
    );
    file_store(dir.path());
}

#[test]
fn what_is_no_store_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kontrol.redb");
    for content in ["", "something else entirely"] {
        std::fs::write(&path, content).unwrap();
        let text = refusal(EmbeddedStore::file(dir.path(), ENSEMBLE));
        assert!(text.contains("kontrol.redb"), "{text}");
        assert!(text.contains("backup"), "says what to do: {text}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    let text = refusal(EmbeddedStore::file(&path, ENSEMBLE));
    assert!(text.contains("can't make the directory"), "{text}");
}

/// A store in this directory, with what it holds.
async fn filled(dir: &Path) -> Snapshot {
    let store = file_store(dir);
    for n in 0..30 {
        let value = format!("{n}").repeat(400);
        commit(
            &store,
            [
                put(&format!("pods/{n}"), &value),
                put("seq", &n.to_string()),
            ],
        )
        .await;
    }
    commit(&store, [put("state", "acknowledged last")]).await;
    store.snapshot().await.unwrap()
}

/// A copy of the directory whose file was changed.
fn damaged(dir: &Path, damage: impl FnOnce(&mut Vec<u8>)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["kontrol.redb", "kontrol.revision"] {
        std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
    }
    let path = copy.path().join("kontrol.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    damage(&mut bytes);
    std::fs::write(path, bytes).unwrap();
    copy
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_whole_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled(dir.path()).await;
    let whole = std::fs::read(dir.path().join("kontrol.redb")).unwrap();
    let length = whole.len();
    let mut refused = 0;
    let mut try_with = async |what: String, damage: &dyn Fn(&mut Vec<u8>)| {
        let copy = damaged(dir.path(), damage);
        match EmbeddedStore::file(copy.path(), ENSEMBLE) {
            Ok(store) => assert_eq!(store.snapshot().await.unwrap(), before, "{what}"),
            Err(StoreError::Refused(text)) => {
                assert!(text.contains("backup"), "{what}: says what to do: {text}");
                refused += 1;
            }
            Err(error) => panic!("{what}: {error}"),
        }
    };
    for at in [0, 1, 100, 4096, length / 2, length - 4096, length - 1] {
        try_with(format!("cut at {at}"), &|bytes| bytes.truncate(at)).await;
    }
    // What says which commit is the last one, a commit's own record, and each page that is in use.
    let pages: Vec<usize> = (0..length)
        .step_by(4096)
        .filter(|page| whole[*page..page + 4096] != [0; 4096])
        .collect();
    let places = pages.iter().map(|page| page + 70);
    for at in (0..12).chain((64..320).step_by(9)).chain(places) {
        try_with(format!("a bit at {at}"), &|bytes| bytes[at] ^= 1).await;
    }
    for page in pages {
        try_with(format!("page at {page}"), &|bytes| {
            bytes[page..page + 4096].fill(0)
        })
        .await;
    }
    assert!(refused > 20, "{refused}");
}

#[tokio::test]
async fn an_older_copy_of_the_file_is_refused_until_a_person_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let before = filled(dir.path()).await;
    let file = dir.path().join("kontrol.redb");
    let older = std::fs::read(&file).unwrap();
    let store = file_store(dir.path());
    commit(&store, [put("seq", "31")]).await;
    drop(store);
    std::fs::write(&file, older).unwrap();
    let text = refusal(EmbeddedStore::file(dir.path(), ENSEMBLE));
    assert!(
        text.contains("remove") && text.contains("kontrol.revision"),
        "{text}"
    );
    std::fs::remove_file(dir.path().join("kontrol.revision")).unwrap();
    let store = file_store(dir.path());
    assert_eq!(store.snapshot().await.unwrap(), before);
}

#[tokio::test]
async fn a_start_that_was_cut_short_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kontrol.new"), "half a").unwrap();
    let store = file_store(dir.path());
    commit(&store, [put("a", "1")]).await;
    drop(store);
    assert!(!dir.path().join("kontrol.new").exists());
    assert_eq!(
        texts(&file_store(dir.path()).snapshot().await.unwrap()),
        [("a", "1")]
    );
}

/// A disk that is full while the file `full` lies beside the database.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: std::path::PathBuf,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        if self.full.exists() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn open(path: &Path) -> Result<Database, DatabaseError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut builder = Database::builder();
        builder.set_check_integrity_on_open(true);
        builder.create_with_backend(Self {
            file: FileBackend::new(file)?,
            full: path.with_file_name("full"),
        })
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.check()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (file, state) = File::open_with(dir.path(), ENSEMBLE, Disk::open).unwrap();
    let store: SharedStore = Arc::new(EmbeddedStore::with_file(file, state).unwrap());
    let start = commit(&store, [put("a", "1")]).await;
    std::fs::write(dir.path().join("full"), "").unwrap();
    for _ in 0..3 {
        let error = store.commit(txn([], [put("a", "2")])).await.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Unavailable(_) | StoreError::Indeterminate(_)
            ),
            "{error}"
        );
        assert!(error.to_string().contains("kontrol.redb"), "{error}");
    }
    std::fs::remove_file(dir.path().join("full")).unwrap();
    let mut watch = store.watch(start).await.unwrap();
    let last = commit(&store, [put("a", "3")]).await;
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(texts(&snapshot), [("a", "3")]);
    assert_eq!(snapshot.revision, last);
    let mut revision = start;
    while revision < last {
        revision = watch.next().await.unwrap().revision;
    }
    drop(store);
    let again = file_store(dir.path());
    assert_eq!(again.snapshot().await.unwrap(), snapshot);
}

/// The child of the next test: writes until it is killed, and tells what it was told is stored.
#[tokio::test]
async fn writer_that_is_killed() {
    let Ok(dir) = std::env::var("KONTROL_TEST_KILLED_WRITER") else {
        return;
    };
    let store = file_store(Path::new(&dir));
    for n in 0_u64.. {
        let text = n.to_string();
        commit(&store, [put("a", &text), put("b", &text)]).await;
        eprintln!("stored {n}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("cluster::store::embedded::tests::writer_that_is_killed")
            .env("KONTROL_TEST_KILLED_WRITER", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stored = None;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut read = |line: io::Result<String>| {
            let number = line.unwrap().strip_prefix("stored ").map(str::to_owned);
            if let Some(number) = number {
                stored = Some(number.parse::<u64>().unwrap());
            }
        };
        lines.by_ref().take(20 * round).for_each(&mut read);
        child.kill().unwrap();
        child.wait().unwrap();
        lines.for_each(&mut read);
        let stored = stored.expect("the child stored something");

        let store = file_store(dir.path());
        let snapshot = store.snapshot().await.unwrap();
        let values: Vec<u64> = texts(&snapshot)
            .iter()
            .map(|(_, value)| value.parse().unwrap())
            .collect();
        assert_eq!(values.len(), 2);
        assert_eq!(values[0], values[1], "half a transaction");
        assert!(
            values[0] == stored || values[0] == stored + 1,
            "stored {stored}, found {}",
            values[0]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_costs_no_virtual_time() {
    let dir = tempfile::tempdir().unwrap();
    let memory: SharedStore = Arc::new(EmbeddedStore::memory());
    for store in [memory, file_store(dir.path())] {
        let start = tokio::time::Instant::now();
        for n in 0..20 {
            let write = commit(&store, [put("a", &n.to_string())]);
            tokio::time::timeout(Duration::from_millis(1), write)
                .await
                .expect("the clock stands still");
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
