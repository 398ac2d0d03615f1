//! The guard: a small synchronous process beside its parent that runs a program once and sees to its end.
//!
//! The hidden subcommand `guard <run directory or -> <grace in ms> <user or -> <open files or -> <program> [argument...]`,
//! with the control socket as standard input and the program's own standard output and error. It lives in a session of its own, so that what
//! stops the parent's (Ctrl-C, Ctrl-Z) leaves it alone and the program can't type into the parent's terminal (TIOCSTI); and
//! it is the subreaper of whatever the program starts.
//!
//! It ends only when none of that is alive. A program that is asked to end has its grace until all of that has ended, not
//! its main process alone: that may be a shell, which ends at once. What a program leaves behind that ends by itself is
//! killed at once. Its own failures end the program too.

mod family;
mod orders;
mod plan;

use super::{
    DIRECTORY_PREFIX, INPUT_FILE, NONE, OWN_EXECUTABLE,
    control::{self, Cause, Order, Report, Status},
    given,
    shim::{self, NOT_STARTED_FILE},
    user::{self, Identity},
};
use family::Family;
use orders::{Orders, Told};
use plan::{Act, Plan};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, OFlags, fchown, memfd_create},
    io::{Errno, FdFlags, fcntl_setfd},
    process::{getpid, set_child_subreaper, setsid},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    flag, low_level,
};
use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

pub(super) use family::children;

/// The hidden subcommand.
pub(super) const NAME: &str = "guard";
/// How long to wait before looking again for what is left after SIGKILL, if nothing is heard of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What to run, from the command line.
struct Task {
    directory: Option<PathBuf>,
    grace_ms: u64,
    user: OsString,
    open_files: OsString,
    argv: Vec<OsString>,
}

impl Task {
    fn read(arguments: &mut dyn Iterator<Item = OsString>) -> Option<Self> {
        let directory = given(Some(arguments.next()?)).map(PathBuf::from);
        let grace_ms = arguments.next()?.to_str()?.parse().ok()?;
        let user = arguments.next()?;
        let open_files = arguments.next()?;
        Some(Self {
            directory,
            grace_ms,
            user,
            open_files,
            argv: arguments.collect(),
        })
    }

    /// Whom the program is to become.
    fn identity(&self) -> io::Result<Option<Identity>> {
        user::identity(given(Some(self.user.clone())).as_deref())
    }
}

/// The process of the guard.
pub(super) fn main(arguments: &mut dyn Iterator<Item = OsString>) -> ExitCode {
    let Some(task) = Task::read(arguments) else {
        return ExitCode::from(2);
    };
    let mut orders = Orders::default();
    let report = guard(&task, &mut orders)
        .unwrap_or_else(|error| Report::NotStarted(format!("its guard fails: {error}")));
    let code = match &report {
        Report::NotStarted(_) => -1,
        Report::Ended(_, status) => status.code(),
    };
    orders::tell(&report);
    if orders.is_over()
        && let Some(directory) = &task.directory
    {
        remove(directory);
    }
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Runs the program to its end. An error means that it did not start.
fn guard(task: &Task, orders: &mut Orders) -> io::Result<Report> {
    // Fails only for the leader of a process group, as somebody may start it by hand.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    let mut signals = Signals::new()?;
    let timer = timerfd_create(
        TimerfdClockId::Boottime,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;

    // Nothing runs before it is known how long it may run.
    let mut plan = match orders.wait_first()? {
        Told::Order(Order::Until(lease)) => Plan::new(lease, task.grace_ms),
        Told::Order(Order::Stop) => return Ok(Report::Ended(Cause::Stop, Status::NotRun)),
        Told::Gone => return Ok(Report::Ended(Cause::ParentGone, Status::NotRun)),
    };
    if !matches!(plan.act(control::boottime_ms()), Act::Wait(_)) {
        return Ok(Report::Ended(plan.cause(), Status::NotRun));
    }
    let mut family = match start(task, orders) {
        Ok(family) => family,
        Err(error) => return Ok(Report::NotStarted(error.to_string())),
    };
    // For the parent, should this process be killed. Then PDEATHSIG remains, even without that.
    orders::tell_pid(family.id());

    if let Err(error) = supervise(&mut family, &mut plan, orders, &mut signals, &timer) {
        complain(&format!("end the program, its guard fails: {error}"));
        plan.end(Cause::Signal, control::boottime_ms());
    }
    if plan.cause() == Cause::Itself {
        orders::tell_left(&family.names_of_others());
    }
    let mut passes = 0_u32;
    while !family.kill_all()? {
        passes += 1;
        if passes.is_multiple_of(50) {
            complain(&format!(
                "still waiting for processes of the program to die: {:?}",
                family.others()
            ));
        }
        signals.wait(LOOK_AGAIN)?;
    }
    let status = family.bury()?;
    let reason = task.directory.as_ref();
    let reason = reason.and_then(|at| fs::read_to_string(at.join(NOT_STARTED_FILE)).ok());
    Ok(match reason {
        Some(reason) if plan.cause() == Cause::Itself => Report::NotStarted(reason),
        _ => Report::Ended(plan.cause(), status),
    })
}

/// Starts the program behind the shim, in a process group of its own.
fn start(task: &Task, orders: &mut Orders) -> io::Result<Family> {
    let directory = task.directory.as_deref().map(Path::as_os_str);
    let mut command = Command::new(OWN_EXECUTABLE);
    command
        .arg0(env::args_os().next().unwrap_or_default())
        .arg(shim::NAME)
        .arg(getpid().as_raw_nonzero().to_string())
        .arg(directory.unwrap_or(OsStr::new(NONE)))
        .arg(&task.user)
        .arg(&task.open_files);
    // Not among the variables of the shim. Inherited, and closed by the shim.
    let environment = orders.preamble.environment.take();
    let environment = environment.map(|block| readable("environment", block));
    let environment = environment.transpose()?;
    match &environment {
        Some(file) => {
            fcntl_setfd(file, FdFlags::empty())?;
            command.arg(file.as_raw_fd().to_string()).env_clear()
        }
        None => command.arg(NONE),
    };
    command
        .args(&task.argv)
        .stdin(input(task, orders.preamble.input.take())?)
        .process_group(0);
    if let Some(identity) = task.identity()? {
        // So that it may open /dev/stdout and /dev/stderr, as scripts do. Where even root may not give them away, it does
        // without.
        let (uid, gid) = identity.owner();
        let _ = fchown(io::stdout(), Some(uid), Some(gid));
        let _ = fchown(io::stderr(), Some(uid), Some(gid));
    }
    let child = command.spawn()?;
    Family::new(child.id()).ok_or_else(|| io::Error::other("the program has no pid"))
}

/// Something to read these bytes from: a file that takes no disk.
fn readable(name: &str, bytes: Vec<u8>) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    match file.write_all(&bytes) {
        Ok(()) => {
            file.rewind()?;
            Ok(file.into())
        }
        // The limit of a file's size counts for such files as well, but for no pipe.
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => piped(bytes),
        Err(error) => Err(error),
    }
}

/// A pipe with these bytes, more than it holds. What nobody reads any more is nobody's loss.
fn piped(bytes: Vec<u8>) -> io::Result<OwnedFd> {
    let (reader, writer) = io::pipe()?;
    thread::Builder::new().spawn(move || {
        let mut writer = writer;
        let _ = writer.write_all(&bytes);
    })?;
    Ok(reader.into())
}

/// What the program reads.
fn input(task: &Task, input: Option<Vec<u8>>) -> io::Result<Stdio> {
    Ok(match (input, &task.directory) {
        (Some(input), _) => readable("input", input)?.into(),
        (None, Some(directory)) => File::open(directory.join(INPUT_FILE))?.into(),
        (None, None) => Stdio::null(),
    })
}

/// Returns when the program's main process has ended by itself, or everything has that was asked to, or is to be killed.
fn supervise(
    family: &mut Family,
    plan: &mut Plan,
    orders: &mut Orders,
    signals: &mut Signals,
    timer: &OwnedFd,
) -> io::Result<()> {
    let mut asked = false;
    // In this order: what the main process leaves behind is there before its end is seen.
    while !(family.main_has_ended()? && (!asked || family.others().is_empty())) {
        let now = control::boottime_ms();
        match plan.act(now) {
            Act::Terminate => {
                family.terminate();
                asked = true;
                continue;
            }
            Act::Kill => return Ok(()),
            Act::Wait(at) => arm(timer, at)?,
        }
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(&signals.pipe, PollFlags::IN),
            PollFd::new(timer, PollFlags::IN),
        ];
        if !orders.is_closed() {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_signal = !fds[0].revents().is_empty();
        let has_word = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
        if has_signal {
            if signals.take() {
                plan.end(Cause::Signal, control::boottime_ms());
            }
            family.reap_adopted();
        }
        if has_word {
            for told in orders.read()? {
                match told {
                    Told::Order(Order::Until(lease)) => plan.renew(lease),
                    Told::Order(Order::Stop) => plan.end(Cause::Stop, control::boottime_ms()),
                    Told::Gone => plan.end(Cause::ParentGone, control::boottime_ms()),
                }
            }
        }
    }
    Ok(())
}

/// Sets the timer to a time of CLOCK_BOOTTIME, in which the sleep of the machine counts.
fn arm(timer: &OwnedFd, at: Option<u64>) -> io::Result<()> {
    // All zero would disarm it.
    let at = at.map(|at| Duration::from_millis(at.max(1)));
    let spec = |value: Duration| Timespec {
        tv_sec: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: value.subsec_nanos().into(),
    };
    let value = Itimerspec {
        it_interval: spec(Duration::ZERO),
        it_value: spec(at.unwrap_or(Duration::ZERO)),
    };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &value)?;
    Ok(())
}

/// Signals as something to poll.
struct Signals {
    pipe: UnixStream,
    asked: Arc<AtomicBool>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (pipe, writer) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let asked = Arc::new(AtomicBool::new(false));
        // A service manager sends its SIGTERM to every process of the service.
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            flag::register(signal, asked.clone())?;
            low_level::pipe::register(signal, writer.try_clone()?)?;
        }
        low_level::pipe::register(SIGCHLD, writer)?;
        Ok(Self { pipe, asked })
    }

    /// Takes what has come; tells whether this process was asked to end.
    fn take(&mut self) -> bool {
        let mut bytes = [0; 64];
        while matches!(self.pipe.read(&mut bytes), Ok(length) if length > 0) {}
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// Waits for a signal, but not forever.
    fn wait(&mut self, at_most: Duration) -> io::Result<()> {
        let at_most = Timespec::try_from(at_most).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&at_most)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.take();
        Ok(())
    }
}

/// Removes the run directory of a process that can't. Nothing else, so that a wrong argument costs nobody a directory.
fn remove(directory: &Path) {
    let name = directory.file_name().and_then(OsStr::to_str);
    if name.is_some_and(|name| name.starts_with(DIRECTORY_PREFIX)) {
        let _ = fs::remove_dir_all(directory);
    }
}

/// Says it on standard error, which goes to the parent's log, unless that is full or closed: nothing holds up a guard.
fn complain(text: &str) {
    // Opened anew, for a mode that counts for this process alone.
    let mut stderr = File::options();
    stderr
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    if let Ok(mut stderr) = stderr.open("/proc/self/fd/2") {
        let _ = stderr.write_all(format!("kontrol guard: {text}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_directory_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join(format!("{DIRECTORY_PREFIX}1"));
        fs::create_dir(&run).unwrap();
        fs::write(run.join("pods.json"), "[]").unwrap();
        remove(&run);
        remove(directory.path());
        assert!(!run.exists() && directory.path().exists());
    }
}
