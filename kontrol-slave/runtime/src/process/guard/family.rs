//! The processes of one run: the program's main process, its process group, and whatever was re-parented to the guard.
//!
//! Only pids that can't mean another process are ever signalled: children of the guard, which keep their pid until the
//! guard reaps them, and the group of the main process, which is reaped last. A descendant that is neither (a child of
//! a child that left the group) is asked to end by its pidfd, see [`visit`], and becomes a child of the guard when its parent
//! is killed; hence the passes.

use super::super::control::Status;
use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, getpgid, getpid, kill_process,
        kill_process_group, pidfd_open, pidfd_send_signal, waitid, waitpid,
    },
};
use std::{fs, io, os::fd::OwnedFd, path::Path};

/// How many processes outside of the group are asked to end, and how far below the guard they are looked for. The rest is
/// killed without being asked.
const MOST_APART: usize = 512;
const DEEPEST: usize = 64;
/// How many of the processes that are left behind are named, and how much of a name is told.
const NAMED: usize = 5;
const NAME_CHARS: usize = 15;

/// The processes of one run.
#[derive(Debug)]
pub(super) struct Family {
    main: Pid,
}

impl Family {
    /// The family of a child that leads its own process group.
    pub(super) fn new(main: u32) -> Option<Self> {
        let main = i32::try_from(main).ok().and_then(Pid::from_raw)?;
        Some(Self { main })
    }

    /// The pid of the main process and the id of the group.
    pub(super) fn id(&self) -> i32 {
        self.main.as_raw_nonzero().get()
    }

    /// Whether the main process has ended. It is not reaped, so that its pid stays what it is.
    pub(super) fn main_has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.main), options) {
            Ok(status) => Ok(status.is_some()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks everything to end: the group at once, and whoever left it, as `timeout` and jobs of an interactive shell do. Who
    /// comes later, to clean up, is not asked.
    pub(super) fn terminate(&self) {
        let mut apart = Vec::new();
        // Before the group ends, which tears the tree apart.
        visit(getpid(), DEEPEST, &mut |pid, pidfd| {
            let left = getpgid(Some(pid)).is_ok_and(|group| group != self.main);
            if left && apart.len() < MOST_APART {
                apart.push(pidfd);
            }
        });
        let _ = kill_process_group(self.main, Signal::TERM);
        for pidfd in apart {
            let _ = pidfd_send_signal(pidfd, Signal::TERM);
        }
    }

    /// Kills the group and the main process.
    pub(super) fn kill(&self) {
        let _ = kill_process_group(self.main, Signal::KILL);
        let _ = kill_process(self.main, Signal::KILL);
    }

    /// One pass: kills everything that is left and reaps what is dead. True when only the dead main process was there:
    /// a child stays visible until it is reaped here, so nothing slips through between two parents.
    pub(super) fn kill_all(&self) -> io::Result<bool> {
        self.kill();
        // In this order: what the main process leaves behind is there before its end is seen.
        let ended = self.main_has_ended()?;
        let others = self.others();
        for pid in &others {
            let _ = kill_process(*pid, Signal::KILL);
            let _ = waitpid(Some(*pid), WaitOptions::NOHANG);
        }
        Ok(ended && others.is_empty())
    }

    /// Reaps what was re-parented to the guard and is dead.
    pub(super) fn reap_adopted(&self) {
        for pid in self.others() {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }

    /// The children of this process, the main process apart.
    pub(super) fn others(&self) -> Vec<Pid> {
        let mut others = children();
        others.retain(|pid| *pid != self.main);
        others
    }

    /// What others are called that have not ended, some of them.
    pub(super) fn names_of_others(&self) -> Vec<String> {
        let is_over = |pid: &Pid| {
            let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
            Stat::read(&stat).is_none_or(|stat| matches!(stat.state, b'Z' | b'X'))
        };
        let mut others = self.others();
        others.retain(|pid| !is_over(pid));
        let more = others.len().saturating_sub(NAMED);
        let name = |pid: &Pid| {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            plain(&String::from_utf8_lossy(&name))
        };
        let mut names: Vec<String> = others.iter().take(NAMED).map(name).collect();
        if more > 0 {
            names.push(format!("+{more}"));
        }
        names
    }

    /// Reaps the main process, which has ended.
    pub(super) fn bury(self) -> io::Result<Status> {
        loop {
            match waitpid(Some(self.main), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    return Ok(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Status::Exited(code),
                        (None, Some(signal)) => Status::Killed(signal),
                        (None, None) => continue,
                    });
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The name of a process, as one word. A process can call itself anything.
fn plain(name: &str) -> String {
    let one = |c: char| {
        if c.is_control() || c.is_whitespace() {
            '_'
        } else {
            c
        }
    };
    let name = name.trim_end_matches('\n');
    let name: String = name.chars().take(NAME_CHARS).map(one).collect();
    if name.is_empty() {
        "?".to_owned()
    } else {
        name
    }
}

/// Shows every descendant of a process, by its pid and a pidfd of it. The parent is a process that can't mean another: this
/// one, or one whose pidfd is held. A child whose parent it still is after its pidfd was taken is the child that was
/// listed, whatever became of the pid in between.
fn visit(parent: Pid, depth: usize, show: &mut dyn FnMut(Pid, OwnedFd)) {
    if depth == 0 {
        return;
    }
    let listed = listed(&Path::new("/proc").join(parent.to_string()));
    for pid in listed.unwrap_or_else(|_| looked_up(parent)) {
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_child = Stat::read(&stat).is_some_and(|stat| stat.parent == Some(parent));
        if is_child {
            visit(pid, depth - 1, show);
            show(pid, pidfd);
        }
    }
}

/// The children of this process, dead ones included. The kernel's lists of them are exact as long as nobody else reaps any
/// meanwhile (proc_pid_children(5)); a kernel without them has all processes looked at, which takes long where there are
/// many.
pub(in crate::process) fn children() -> Vec<Pid> {
    listed(Path::new("/proc/self")).unwrap_or_else(|_| looked_up(getpid()))
}

/// The children of each thread of a process: those that it started, or that were handed to it.
fn listed(process: &Path) -> io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(process.join("task"))? {
        let text = match fs::read_to_string(thread?.path().join("children")) {
            Ok(text) => text,
            // The thread has ended, or there are no lists.
            Err(_) if fs::exists("/proc/thread-self/children")? => continue,
            Err(error) => return Err(error),
        };
        let pids = text.split_ascii_whitespace();
        children.extend(pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
    }
    Ok(children)
}

fn looked_up(parent: Pid) -> Vec<Pid> {
    let mut children = Vec::new();
    each_process(|pid, stat| {
        if stat.parent == Some(parent) {
            children.push(pid);
        }
    });
    children
}

fn each_process(mut visit: impl FnMut(Pid, &Stat)) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // A process that ends meanwhile has no file any more, and is no child if it was another's.
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && let Ok(text) = fs::read(entry.path().join("stat"))
            && let Some(stat) = Stat::read(&text)
        {
            visit(pid, &stat);
        }
    }
}

/// The beginning of `/proc/<pid>/stat`: `pid (name) state parent ...`, where the name may hold anything.
struct Stat {
    state: u8,
    parent: Option<Pid>,
}

impl Stat {
    fn read(stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = str::from_utf8(&stat[after_name..]).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        Some(Self {
            state: *state.as_bytes().first()?,
            parent: Pid::from_raw(parent.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_hides_no_parent() {
        let parent = |stat| Stat::read(stat).and_then(|stat| stat.parent);
        let pid = |pid| Pid::from_raw(pid);
        assert_eq!(parent(b"7 (sh) S 42 7 7 0"), pid(42));
        assert_eq!(parent(b"7 (a) S 1 (\xff) R 42 7 7 0"), pid(42));
        assert_eq!(parent(b"7 (sh"), None);
        assert_eq!(parent(b"7 (kthreadd) S 0 0"), None);
    }

    #[test]
    fn a_name_is_one_word() {
        assert_eq!(plain("sleep\n"), "sleep");
        assert_eq!(plain("a b\nc"), "a_b_c");
        assert_eq!(plain("\n"), "?");
        assert_eq!(plain(&"x".repeat(99)).len(), NAME_CHARS);
    }

    #[test]
    fn a_child_is_seen_alive_and_dead() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let family = Family::new(child.id()).unwrap();
        assert!(children().contains(&family.main) && looked_up(getpid()).contains(&family.main));
        assert!(!family.main_has_ended().unwrap());
        family.kill();
        while !family.main_has_ended().unwrap() {
            std::thread::yield_now();
        }
        let seen = children().contains(&family.main) && looked_up(getpid()).contains(&family.main);
        assert!(seen, "it is not reaped");
        assert_eq!(family.bury().unwrap(), Status::Killed(9));
        assert!(child.wait().is_err(), "it was reaped");
    }
}
