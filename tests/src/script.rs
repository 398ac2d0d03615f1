//! Callbacks that write down how they were run, and the reading of what they wrote.
//!
//! A run is known from its first moment and gives signs of life, so that one that was killed has a known end as well.
//! Times are the machine's monotonic clock, the same for all processes and for [`now`].

use crate::history;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

/// The monotonic clock in seconds, as the callbacks read it.
pub fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What the next runs of a callback do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long a run takes.
    pub takes: Duration,
    /// How many runs fail before the first that succeeds.
    pub fails: u32,
    /// What a run prints instead of its own state.
    pub prints: Option<String>,
    /// Whether it ignores SIGTERM.
    pub stubborn: bool,
    /// How many children it starts, which it would kill at its end.
    pub children: u32,
    /// Whether it reads its standard input.
    pub reads_stdin: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            takes: Duration::ZERO,
            fails: 0,
            prints: None,
            stubborn: false,
            children: 0,
            reads_stdin: true,
        }
    }
}

/// One run of a callback.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// What it called itself.
    pub id: String,
    /// Its pid.
    pub pid: i32,
    /// When it started.
    pub start: f64,
    /// Its last sign of life.
    pub last: f64,
    /// Its exit code; none when it runs or was killed.
    pub code: Option<i32>,
    /// `HASH`.
    pub hash: String,
    /// What it read; none when it was killed before.
    pub read: Option<Read>,
}

impl Run {
    /// What it read. Panics when it did not come to that.
    pub fn read(&self) -> &Read {
        self.read
            .as_ref()
            .unwrap_or_else(|| panic!("the run did not come to read: {self:?}"))
    }
}

/// What a run read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Read {
    /// `MD5`.
    pub md5: Option<String>,
    /// The MD5 of `PODS`; none when there was no such variable.
    pub md5_of_pods: Option<String>,
    /// The MD5 of the file named by `PODS_FILE`.
    pub md5_of_file: Option<String>,
    /// Whether the pods of standard input are those of the file.
    pub stdin_agrees: Option<bool>,
    /// The names in the object of standard input, in lower case.
    pub stdin_names: Vec<String>,
    /// How many pods there were.
    pub pods: usize,
    /// Their ids, in order.
    pub ids: Vec<String>,
    /// Their seqs, in order.
    pub seqs: Vec<u64>,
    /// `KONTROL_EPOCH`.
    pub epoch: i64,
    /// `KONTROL_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `STATE`.
    pub state: Option<Value>,
    /// The file named by `STATE_FILE`.
    pub state_of_file: Option<Value>,
    /// `CHANGES`.
    pub changes: Option<Value>,
    /// The file named by `CHANGES_FILE`.
    pub changes_of_file: Option<Value>,
    /// The pids of its children.
    pub children: Vec<i32>,
    /// The user it ran as.
    pub uid: Option<u32>,
    /// Its process group.
    pub group: i32,
    /// Its open descriptors.
    pub descriptors: Vec<i32>,
}

#[derive(Debug, Deserialize)]
struct Line {
    run: String,
    event: String,
    at: f64,
    #[serde(default)]
    pid: i32,
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    code: Option<i32>,
}

/// A callback in a folder of its own, with its log.
#[derive(Debug)]
pub struct Recorder {
    dir: TempDir,
    program: PathBuf,
}

impl Recorder {
    /// A callback in Python that tells all about its runs.
    pub fn python() -> Self {
        Self::write("callback.py", include_str!("script/recorder.py"))
    }

    /// A callback in shell that tells HASH, the MD5 of PODS by md5sum, epoch and state.
    pub fn shell() -> Self {
        Self::write("callback.sh", include_str!("script/recorder.sh"))
    }

    fn write(name: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(name);
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let recorder = Self { dir, program };
        recorder.plan(&Plan::default());
        recorder
    }

    /// The program, for `--callback`.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Decides what the next runs do. A run that has begun goes on as it began.
    pub fn plan(&self, plan: &Plan) {
        let text = json!({
            "takes": plan.takes.as_secs_f64(), "fails": plan.fails, "prints": plan.prints, "stubborn": plan.stubborn,
            "children": plan.children, "reads_stdin": plan.reads_stdin,
        });
        // Renamed into place, so that no run reads half of it.
        let new = self.dir.path().join("plan.new");
        fs::write(&new, text.to_string()).unwrap();
        fs::rename(new, self.dir.path().join("plan.json")).unwrap();
    }

    /// Every run so far, in the order of their starts.
    pub fn runs(&self) -> Vec<Run> {
        let text = fs::read_to_string(self.dir.path().join("runs.jsonl")).unwrap_or_default();
        let mut runs: Vec<Run> = Vec::new();
        let mut places = HashMap::new();
        for text in text.split_inclusive('\n') {
            // A line that is being written has no end yet.
            let Some(text) = text.strip_suffix('\n') else {
                continue;
            };
            let line: Line =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"));
            let place = *places.entry(line.run.clone()).or_insert_with(|| {
                runs.push(Run {
                    id: line.run.clone(),
                    start: line.at,
                    ..Run::default()
                });
                runs.len() - 1
            });
            let run = &mut runs[place];
            run.last = line.at;
            match line.event.as_str() {
                "started" => {
                    run.pid = line.pid;
                    run.hash = line.hash.unwrap_or_default();
                }
                "read" => run.read = Some(serde_json::from_str(text).unwrap()),
                "ended" => run.code = line.code,
                _ => {}
            }
        }
        runs
    }

    /// The runs that succeeded.
    pub fn successes(&self) -> Vec<Run> {
        let mut runs = self.runs();
        runs.retain(|run| run.code == Some(0));
        runs
    }

    /// Panics when the runs break a promise of the contract.
    pub fn check(&self) {
        let runs = self.runs();
        let violations = history::violations(&runs);
        assert!(
            violations.is_empty(),
            "{}\n{runs:#?}",
            violations.join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SOON, pod, process::Process};
    use std::process::{Command, Stdio};

    fn run(recorder: &Recorder, pods: &str, input: &str) -> std::process::Output {
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("pods");
        fs::write(&file, pods).unwrap();
        let stdin = files.path().join("stdin");
        fs::write(&stdin, input).unwrap();
        Command::new(recorder.program())
            .env("HASH", pod::md5(pods))
            .env("MD5", pod::md5(pods))
            .env("PODS", pods)
            .env("PODS_FILE", &file)
            .env("STATE", r#"{"runs":4}"#)
            .env("KONTROL_EPOCH", "12")
            .stdin(Stdio::from(fs::File::open(stdin).unwrap()))
            .output()
            .unwrap()
    }

    #[test]
    fn both_callbacks_tell_what_they_saw() {
        let pods = r#"[{"id":"a\n","seq":3}]"#;
        for recorder in [Recorder::python(), Recorder::shell()] {
            let output = run(&recorder, pods, &format!("{{\"PODS\":{pods}}}"));
            assert!(output.status.success(), "{output:?}");
            let state: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(state["hash"], pod::md5(pods));
            let runs = recorder.runs();
            let [run] = &runs[..] else { panic!("{runs:?}") };
            assert_eq!(run.code, Some(0));
            assert_eq!(run.hash, pod::md5(pods));
            let read = run.read.as_ref().unwrap();
            assert_eq!(read.md5_of_pods.as_deref(), Some(run.hash.as_str()));
            assert_eq!(read.state, Some(json!({"runs": 4})));
            assert_eq!(read.epoch, 12);
            if recorder.program().ends_with("callback.py") {
                assert_eq!(read.md5_of_file, read.md5_of_pods);
                assert_eq!(read.stdin_agrees, Some(true));
                assert_eq!((read.pods, &read.seqs[..]), (1, &[3][..]));
            }
            recorder.check();
        }
    }

    #[tokio::test]
    async fn a_plan_makes_runs_fail_and_last() {
        let recorder = Recorder::python();
        recorder.plan(&Plan {
            fails: 1,
            takes: Duration::from_secs(100),
            reads_stdin: false,
            ..Plan::default()
        });
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::spawn(
            "callback",
            &mut Command::new(recorder.program()),
            &dir.path().join("log"),
        );
        crate::wait::eventually(SOON, "sign of life", async || {
            let runs = recorder.runs();
            anyhow::ensure!(runs.len() == 1 && runs[0].last > runs[0].start);
            Ok(())
        })
        .await;
        process.kill();
        assert_eq!(recorder.runs()[0].code, None);
        recorder.plan(&Plan {
            fails: 1,
            ..Plan::default()
        });
        assert_eq!(run(&recorder, "[]", "").status.code(), Some(7));
        assert_eq!(run(&recorder, "[]", "").status.code(), Some(0));
        assert_eq!(recorder.successes().len(), 1);
    }
}
