//! One master, pods that report to it, and what both were like while somebody abused it.

use super::{
    bystanders::{Bystanders, Heard, PODS},
    wire::Target,
};
use crate::secured::{Secured, connect, token};
use anyhow::ensure;
use kontrol_runtime::{dial::Credentials, tls};
use kontrol_tests::{SOON, node::Master, process::usage, wait::eventually};
use std::{
    fmt::Write as _,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until};

/// How long each abuse is measured at the least.
const WINDOW: Duration = Duration::from_secs(2);
/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(20);
const MIB: u64 = 1024 * 1024;
/// What a master's memory may grow by while nobody abuses it, and what the allocator keeps of what was given back.
const SLACK_MIB: u64 = 64;

enum Place {
    Secured(Box<Secured>),
    Clear { master: Box<Master>, _dir: TempDir },
}

/// What an abuse came to.
pub(super) struct Done {
    /// What was done, in numbers.
    pub(super) note: String,
    /// What the abuser still holds, and the master has to let go of by itself.
    pub(super) held: Vec<Box<dyn Send>>,
}

impl Done {
    /// Nothing is held.
    pub(super) fn with(note: String) -> Self {
        Self {
            note,
            held: Vec::new(),
        }
    }
}

/// What was measured while somebody was at it.
struct Row {
    kind: String,
    note: String,
    keepalives: usize,
    quantiles: [Duration; 3],
    mib: [u64; 2],
}

pub(super) struct Stage {
    place: Place,
    pub(super) target: Target,
    bystanders: Bystanders,
    peak: Arc<AtomicU64>,
    rows: Vec<Row>,
    held: Vec<Box<dyn Send>>,
    /// The master's open files before anybody abused it.
    files: usize,
}

impl Stage {
    /// A master with TLS and tokens.
    pub(super) async fn secured() -> Self {
        let (slave, first) = token("slave", "pod-*");
        let (operator, second) = token("operator", "mallory");
        let secured = Secured::start(&[], &[&first, &second]).await;
        let target = Target {
            address: ([127, 0, 0, 1], secured.master.port()).into(),
            roots: Some(Arc::new(tls::roots(&secured.ca).unwrap())),
            operator: format!("Bearer {operator}"),
            slave: format!("Bearer {slave}"),
        };
        let credentials = secured.with_token(&slave);
        Self::begin(Place::Secured(Box::new(secured)), target, credentials).await
    }

    /// A master in clear text that asks for nothing.
    pub(super) async fn clear() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut master = Master::new("master", Vec::new(), Vec::new(), dir.path());
        master.start().await;
        master.ready().await;
        let target = Target {
            address: ([127, 0, 0, 1], master.port()).into(),
            roots: None,
            operator: String::new(),
            slave: String::new(),
        };
        Self::begin(
            Place::Clear {
                master: Box::new(master),
                _dir: dir,
            },
            target,
            Credentials::none(),
        )
        .await
    }

    async fn begin(mut place: Place, target: Target, credentials: Credentials) -> Self {
        let (address, tls) = (target.address, target.roots.is_some());
        let bystanders = Bystanders::start(move || {
            let credentials = credentials.clone();
            async move { connect(address.port(), tls, &credentials).await.unwrap() }
        });
        let pid = u32::try_from(place.master().process().pid()).unwrap();
        let peak = watch_memory(pid);
        let mut heard = Vec::new();
        eventually(SOON, "keepalive of every pod", async || {
            let new = bystanders.take();
            ensure!(new.failures.is_empty(), "{:?}", new.failures);
            heard.extend(new.latencies);
            ensure!(heard.len() >= PODS as usize, "{} of them", heard.len());
            Ok(())
        })
        .await;
        let mut stage = Self {
            place,
            target,
            bystanders,
            peak,
            rows: Vec::new(),
            held: Vec::new(),
            files: 0,
        };
        stage.files = stage.open_files();
        stage
    }

    fn pid(&mut self) -> u32 {
        u32::try_from(self.place.master().process().pid()).unwrap()
    }

    fn open_files(&mut self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        files.count()
    }

    /// The master's memory, in bytes.
    pub(super) fn memory(&mut self) -> u64 {
        usage(self.pid()).unwrap().resident_kib * 1024
    }

    /// Has somebody abuse the master, and looks at the others and at the memory, which may grow by so many MiB beside what
    /// it grows by anyway.
    pub(super) async fn during<D: Future<Output = Done>>(
        &mut self,
        kind: &str,
        mib: u64,
        abuse: impl FnOnce(Target) -> D,
    ) {
        let before = self.memory();
        self.peak.store(before, Ordering::Relaxed);
        self.heard(kind);
        let end = Instant::now() + WINDOW;
        let done = abuse(self.target.clone()).await;
        sleep_until(end).await;
        let mut heard = self.heard(kind);
        let peak = self.peak.load(Ordering::Relaxed);
        let row = Row {
            kind: kind.to_owned(),
            note: done.note,
            keepalives: heard.latencies.len(),
            quantiles: [0.5, 0.99, 1.0].map(|share| heard.quantile(share)),
            mib: [before, peak].map(|bytes| bytes / MIB),
        };
        eprintln!("{row}");
        self.rows.push(row);
        let bound = before / MIB + mib + SLACK_MIB;
        assert!(peak / MIB <= bound, "{kind}: more than {bound} MiB");
        self.held.extend(done.held);
    }

    /// What became of the others' keepalives, of which none may fail.
    fn heard(&self, kind: &str) -> Heard {
        let heard = self.bystanders.take();
        let failures = &heard.failures;
        assert!(
            failures.is_empty(),
            "{kind}: {} failed, like {}",
            failures.len(),
            failures[0]
        );
        heard
    }

    /// Waits until the master holds no more than before, while the abusers hold on to all that they can.
    pub(super) async fn lets_go(&mut self, within: Duration) {
        let began = Instant::now();
        let before = self.files;
        eventually(within, "master that has let go", async || {
            let now = self.open_files();
            ensure!(now <= before, "{now} open files, {before} before");
            Ok(())
        })
        .await;
        let (kind, waited) = ("it has let go", began.elapsed());
        let held = self.held.len();
        self.during(kind, 0, |_| async {
            Done::with(format!("{held} kept, {waited:.0?} later"))
        })
        .await;
        self.held.clear();
    }

    /// Shows what was measured, and asks a last time whether all is well.
    pub(super) fn end(mut self, title: &str) {
        let mut table = format!("\n{title}\n{HEAD}\n");
        for row in &self.rows {
            writeln!(table, "{row}").unwrap();
        }
        eprintln!("{table}");
        self.heard("at the end");
        let master = self.place.master();
        assert!(master.running());
        let log = master.log();
        assert!(!log.contains("panicked"), "{log}");
        let bytes = log.len() as u64;
        assert!(bytes < 4 * MIB, "{bytes} bytes of log");
    }
}

const HEAD: &str =
    "abuse                | keepalives |    p50 |    p99 |    max | MiB before | peak | what";

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = self
            .quantiles
            .map(|time| format!("{:.1}", time.as_secs_f64() * 1e3));
        let [before, peak] = self.mib;
        write!(
            f,
            "{:<20} | {:>10} | {p50:>6} | {p99:>6} | {max:>6} | {before:>10} | {peak:>4} | {}",
            self.kind, self.keepalives, self.note
        )
    }
}

impl Place {
    fn master(&mut self) -> &mut Master {
        match self {
            Self::Secured(secured) => &mut secured.master,
            Self::Clear { master, .. } => master,
        }
    }
}

/// The most memory that a process was seen to have, until it ends.
fn watch_memory(pid: u32) -> Arc<AtomicU64> {
    let peak = Arc::<AtomicU64>::default();
    let seen = Arc::downgrade(&peak);
    thread::spawn(move || {
        while let (Some(peak), Some(now)) = (seen.upgrade(), usage(pid)) {
            peak.fetch_max(now.resident_kib * 1024, Ordering::Relaxed);
            thread::sleep(LOOK);
        }
    });
    peak
}
