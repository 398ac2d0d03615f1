//! Files that others write: when to look at them, and a bounded read that never blocks the keepalives.
//!
//! The *folder* is watched, not the file: an atomic rename replaces the file, and Kubernetes swaps the symbolic link
//! `..data` beside it, neither of which a watch on the file would see. Where the kernel tells nothing (network file
//! systems, no inotify instance left) a slow tick is all there is. On a tick, and when something else in the folder
//! changed (it may be `/tmp`), callers only compare the file's stamp. Bursts of events are one.

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event};
use rustix::fs::OFlags;
use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

/// How often to look where the kernel tells nothing.
const TICK: Duration = Duration::from_secs(5);
/// How long to let a burst of events pass: writing a file makes several.
const BURST: Duration = Duration::from_millis(20);

/// How long a file may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Why to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Something in the folder changed: read.
    Event,
    /// Time passed, or something beside the file changed: compare stamps.
    Tick,
}

/// What the watcher's thread tells.
#[derive(Debug, Default)]
struct Signal {
    wake: Notify,
    /// Whether it is the file itself that changed.
    own: AtomicBool,
}

/// Tells when something in a folder may have changed.
#[derive(Debug)]
pub struct Changes {
    folder: PathBuf,
    /// The file that counts; none: all of the folder does.
    file: Option<OsString>,
    signal: Arc<Signal>,
    watcher: Option<RecommendedWatcher>,
    tick: Instant,
}

impl Changes {
    /// Watches the folder that holds a file.
    pub fn of_file(path: &Path) -> Self {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        };
        Self::new(folder, path.file_name().map(OsString::from))
    }

    /// Watches a folder, not the folders in it.
    pub fn of_folder(folder: &Path) -> Self {
        Self::new(folder, None)
    }

    fn new(folder: &Path, file: Option<OsString>) -> Self {
        let mut changes = Self {
            folder: folder.to_owned(),
            file,
            signal: Arc::default(),
            watcher: None,
            tick: Instant::now() + TICK,
        };
        if let Err(error) = changes.watch() {
            let every = crate::duration::show(TICK);
            tracing::warn!(folder = %folder.display(), "cannot watch the folder ({error}): looking every {every} instead");
        }
        changes
    }

    fn watch(&mut self) -> notify::Result<()> {
        let (signal, file) = (self.signal.clone(), self.file.clone());
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let own = match &event {
                    Ok(event) if !is_change(&event.kind) => return,
                    Ok(event) => file.as_ref().is_none_or(|file| {
                        let mut names = event.paths.iter().filter_map(|path| path.file_name());
                        names.any(|name| name == file)
                    }),
                    // Events were lost.
                    Err(_) => true,
                };
                signal.own.fetch_or(own, Ordering::Relaxed);
                signal.wake.notify_one();
            })?;
        watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
        self.watcher = Some(watcher);
        Ok(())
    }

    /// Waits for a reason to look. Not cancel safe: a reason may be lost.
    pub async fn next(&mut self) -> Hint {
        let event = tokio::select! {
            () = self.signal.wake.notified() => true,
            () = sleep_until(self.tick) => false,
        };
        if event {
            sleep(BURST).await;
            let own = self.signal.own.swap(false, Ordering::Relaxed);
            return if own { Hint::Event } else { Hint::Tick };
        }
        self.tick = Instant::now() + TICK;
        // The folder may have come since; if so, something may have happened in it before the watch.
        if self.watcher.is_none() && self.watch().is_ok() {
            return Hint::Event;
        }
        Hint::Tick
    }
}

/// Whether an event can mean new content. Our own reading makes events as well, which must not.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == event::AccessKind::Close(event::AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// What tells one version of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A file as it was last read.
#[derive(Debug, Default)]
pub enum Content {
    /// It does not exist.
    #[default]
    Missing,
    /// It cannot be read.
    Failed(io::Error),
    /// Its bytes: one more than was asked for when it has more.
    Read {
        /// Which version it was.
        stamp: Stamp,
        /// What it held.
        bytes: Vec<u8>,
    },
}

impl Content {
    /// Whether the file is still the one that was read.
    pub async fn is_current(&self, path: &Path, reader: &Reader) -> bool {
        let path = path.to_owned();
        let now = reader.look(move || std::fs::metadata(path)).await;
        match (self, now) {
            (Self::Read { stamp, .. }, Ok(Ok(meta))) => *stamp == Stamp::from(&meta),
            (Self::Missing, Ok(Err(error))) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// Looks at files on threads that may block: a dead network file system must stop nothing else. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    /// One that hangs keeps its thread, and there must be some for others.
    turns: Arc<Semaphore>,
}

impl Reader {
    /// A reader of which so many looks are under way at once.
    pub fn new(at_once: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(at_once)),
        }
    }

    /// Does what looks at files; an error when that takes too long.
    pub async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let turns = Arc::clone(&self.turns);
        let look = async {
            let turn = turns.acquire_owned().await.map_err(io::Error::other)?;
            let look = spawn_blocking(move || {
                // Given back when the look is over, not when nobody waits for it any more.
                let _turn = turn;
                work()
            });
            look.await.map_err(io::Error::other)
        };
        let late = || {
            let reason = format!("it does not answer within {} s", ANSWER.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, reason)
        };
        timeout(ANSWER, look).await.unwrap_or_else(|_| Err(late()))
    }

    /// Reads a file, `limit` and one byte at most.
    pub async fn read(&self, path: &Path, limit: usize) -> Content {
        let path = path.to_owned();
        let content = self.look(move || read_now(&path, limit)).await;
        content.unwrap_or_else(Content::Failed)
    }
}

/// Reads a file, on this thread. Nothing but a file is read: a pipe would wait for its writer, a device never end.
pub fn read_now(path: &Path, limit: usize) -> Content {
    let attempt = || {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        if !meta.is_file() {
            let reason = "it is no regular file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        Ok((Stamp::from(&meta), bytes))
    };
    match attempt() {
        Ok((stamp, bytes)) => Content::Read { stamp, bytes },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Missing,
        Err(error) => Content::Failed(error),
    }
}
