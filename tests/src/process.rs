//! One child process: its log, its signals, its end.
//!
//! Owns the pid until it is reaped, so that no signal can hit another process. A process that is dropped is killed,
//! and so is everything that it started and that outlived it (a callback of a master that was killed, say).

use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How many lines of a log are shown when a test fails.
const SHOWN_LINES: usize = 80;

/// A process that this test started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    log: PathBuf,
    /// What it had started, last time this was looked at: pid and start time, which together are never reused.
    offspring: BTreeSet<(i32, u64)>,
    quiet: bool,
}

impl Process {
    /// Starts a program. Both of its output streams are appended to the log.
    pub fn spawn(name: impl Into<String>, command: &mut Command, log: &Path) -> Self {
        let name = name.into();
        let file = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        Self {
            name,
            child,
            status: None,
            log: log.to_owned(),
            offspring: BTreeSet::new(),
            quiet: false,
        }
    }

    /// Its name in the test.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Everything that it wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended; nothing while it runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Sends a signal, unless it ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            self.offspring.extend(descendants(self.pid()));
            let pid = Pid::from_raw(self.pid()).unwrap();
            kill_process(pid, signal).unwrap();
            if signal == Signal::STOP {
                self.stands_still();
            }
        }
    }

    /// Waits until every thread has stopped: the signal is on its way when it was sent, and a thread on another processor
    /// answers one more request.
    fn stands_still(&self) {
        let stopped = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // A thread that has ended meanwhile has no state.
            let state = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.trim_start().chars().next());
            state.is_none_or(|state| "TtZX".contains(state))
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid()))
            && !tasks.flatten().all(stopped)
        {
            assert!(Instant::now() < deadline, "{} does not stop", self.name);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it (SIGKILL) and reaps it. What it had started is left alone until the drop.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.status.is_none() {
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// The same process, whose log somebody else shows: one that was started again with the same log.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Waits for its end.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{} did not end within {within:?}",
                self.name
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it has used. Panics when it ended.
    pub fn usage(&self) -> Usage {
        usage(self.child.id()).unwrap()
    }
}

/// Kills these processes (SIGKILL) as if their machine had lost its power: all at once, and only then are they reaped. What
/// they had started is not looked for.
pub fn kill_at_once<'a>(processes: impl IntoIterator<Item = &'a mut Process>) {
    let mut processes: Vec<_> = processes.into_iter().collect();
    for process in &mut processes {
        if process.status().is_none() {
            let pid = Pid::from_raw(process.pid()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        }
    }
    for process in processes {
        if process.status.is_none() {
            process.status = Some(process.child.wait().unwrap());
        }
    }
}

/// What a process has used of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// User and system time, of all its threads.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_kib: u64,
    /// The part of it that is not backed by files, such as the program itself.
    pub anonymous_kib: u64,
}

/// What the process with this pid has used; nothing when there is none.
pub fn usage(pid: u32) -> Option<Usage> {
    /// Linux counts in hundredths of a second here, whatever the kernel's own clock does.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<u32> = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Usage {
        cpu: TICK * (fields.get(11)? + fields.get(12)?),
        resident_kib: kib("VmRSS:")?,
        anonymous_kib: kib("RssAnon:")?,
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.offspring.extend(descendants(self.pid()));
            self.child.kill().ok();
            self.child.wait().ok();
        }
        for &(pid, start) in &self.offspring {
            if stat(pid).is_some_and(|(_, now)| now == start) {
                kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).ok();
            }
        }
        if thread::panicking() && !self.quiet {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!("--- log of {} ---\n{}", self.name, tail.join("\n"));
        }
    }
}

/// Whether a process with this pid exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| {
        let state = text
            .rsplit_once(')')
            .map(|(_, rest)| rest.trim_start().chars().next());
        !matches!(state, Some(Some('Z' | 'X')))
    })
}

/// The parent and the start time of a process.
fn stat(pid: i32) -> Option<(i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.nth(1)?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

/// Every process below this one: pid and start time.
pub fn descendants(root: i32) -> BTreeSet<(i32, u64)> {
    let pids: Vec<i32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let stats: Vec<(i32, i32, u64)> = pids
        .into_iter()
        .filter_map(|pid| stat(pid).map(|(parent, start)| (pid, parent, start)))
        .collect();
    let mut found = BTreeSet::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for &(pid, _, start) in stats.iter().filter(|(_, of, _)| *of == parent) {
            if found.insert((pid, start)) {
                parents.push(pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_process_takes_along_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]);
        let mut process = Process::spawn("sh", &mut command, &dir.path().join("log"));
        let children = crate::wait::eventually(crate::SOON, "two children", async || {
            let children = descendants(process.pid());
            anyhow::ensure!(children.len() == 2, "{children:?}");
            Ok(children)
        })
        .await;
        process.kill();
        assert!(children.iter().all(|(pid, _)| alive(*pid)));
        drop(process);
        crate::wait::eventually(crate::SOON, "no child", async || {
            anyhow::ensure!(!children.iter().any(|(pid, _)| alive(*pid)));
            Ok(())
        })
        .await;
    }

    #[tokio::test]
    async fn the_end_and_the_output_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let mut process = Process::spawn("sh", &mut command, &dir.path().join("log"));
        assert_eq!(process.ended(crate::SOON).await.code(), Some(3));
        assert_eq!(process.log(), "out\nerr\n");
    }
}
