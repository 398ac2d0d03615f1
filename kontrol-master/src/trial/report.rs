//! What a trial tells of one run: text for a person, or one JSON document.

use crate::ensemble::callback::{Listener, Run, Said};
use kontrol_cli::show::{clean, clean_line, shorten, span};
use kontrol_core::model::Exact;
use serde::{Deserialize, Serialize};
use std::{
    fmt, mem,
    sync::{Mutex, PoisonError},
};

/// Most bytes of standard error that are kept.
const MAX_HEARD_BYTES: usize = 1024 * 1024;
/// Most pods that a person is told by their ids.
const MAX_SHOWN_IDS: usize = 5;
/// Longest state of before that a person is shown, in characters.
const MAX_SHOWN_STATE: usize = 200;

/// What a callback is handed, in short.
#[derive(Debug, Serialize)]
pub(super) struct Handed {
    pub(super) digest: String,
    /// How many pods.
    pub(super) pods: usize,
    #[serde(flatten)]
    pub(super) changes: Changes,
    pub(super) epoch: i64,
    /// Absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<Exact>,
}

/// The CHANGES document, with the ids of its pods.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    joined: Vec<Id>,
    changed: Vec<Id>,
    left: Vec<Id>,
    since: Option<String>,
}

/// The id of a pod, read from the whole of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Named")]
struct Id(String);

/// What is read of a pod.
#[derive(Deserialize)]
struct Named {
    id: String,
}

impl From<Named> for Id {
    fn from(pod: Named) -> Self {
        Self(pod.id)
    }
}

impl Changes {
    /// Reads the CHANGES document.
    pub(super) fn read(document: &[u8]) -> Self {
        // It was written here.
        serde_json::from_slice(document).unwrap_or_default()
    }
}

impl Handed {
    /// The lines that a person is told before the run.
    pub(super) fn text(&self) -> String {
        let changes = &self.changes;
        let state = self.state.as_ref().map_or("none", Exact::as_str);
        [
            line("digest", &self.digest),
            line("pods", self.pods),
            line("joined", ids(&changes.joined)),
            line("changed", ids(&changes.changed)),
            line("left", ids(&changes.left)),
            line("state", shorten(&clean(state), MAX_SHOWN_STATE)),
        ]
        .join("\n")
    }
}

fn line(name: &str, value: impl fmt::Display) -> String {
    format!("  {name:<9} {value}")
}

/// How many pods, and the first of their ids.
fn ids(list: &[Id]) -> String {
    let mut text = list.len().to_string();
    for (index, Id(id)) in list.iter().take(MAX_SHOWN_IDS).enumerate() {
        let before = if index == 0 { ": " } else { ", " };
        text += before;
        text += &clean(id);
    }
    if list.len() > MAX_SHOWN_IDS {
        text += ", ...";
    }
    text
}

/// What one run said.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Words>);

/// What was said so far.
#[derive(Debug, Default)]
struct Words {
    lines: Vec<String>,
    bytes: usize,
    /// How many lines there was no room for.
    lost: usize,
    remarks: Vec<String>,
}

impl Listener for Heard {
    fn hear(&self, said: Said<'_>) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match said {
            Said::Line(line) if words.bytes + line.len() > MAX_HEARD_BYTES => words.lost += 1,
            Said::Line(line) => {
                words.bytes += line.len();
                words.lines.push(line.to_owned());
            }
            Said::LeftOut(variable) => words.remarks.push(format!(
                "{variable} is too long for an environment variable and was left out; the callback finds it in {variable}_FILE and on standard input"
            )),
            Said::LeftBehind(processes) => words.remarks.push(format!(
                "it left processes behind, which were killed: {processes}; nothing that it starts outlives its run"
            )),
        }
    }
}

/// What came of one run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report<'a> {
    /// 1 or 2.
    run: u8,
    handed: &'a Handed,
    accepted: bool,
    /// Why a master would have refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    /// What would become the state; absent when nothing would.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<&'a Exact>,
    exit_code: i32,
    /// In seconds, as everywhere in JSON: `0.012s`.
    duration: String,
    stderr: Vec<String>,
    /// Lines that were too many to keep.
    #[serde(skip_serializing_if = "is_zero")]
    stderr_lost: usize,
    remarks: Vec<String>,
    #[serde(skip)]
    span: String,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl<'a> Report<'a> {
    /// The report on a run that ended, taking what was heard of it.
    pub(super) fn new(number: u8, handed: &'a Handed, run: &'a Run, heard: &Heard) -> Self {
        let words = mem::take(&mut *heard.0.lock().unwrap_or_else(PoisonError::into_inner));
        Self {
            run: number,
            handed,
            accepted: run.outcome.is_ok(),
            refusal: run.outcome.as_ref().err().map(ToString::to_string),
            stored: run.outcome.as_ref().ok().and_then(Option::as_ref),
            exit_code: run.exit_code,
            duration: format!("{:.3}s", run.duration.as_secs_f64()),
            stderr: words.lines,
            stderr_lost: words.lost,
            remarks: words.remarks,
            span: span(run.duration),
        }
    }

    /// One JSON document on a line.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// The lines that a person is told after the run, the verdict left out.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (index, said) in self.stderr.iter().enumerate() {
            let name = if index == 0 { "said" } else { "" };
            push(&mut text, &line(name, clean_line(said.as_bytes())));
        }
        if self.stderr_lost > 0 {
            let more = format!("... and {} lines more", self.stderr_lost);
            push(&mut text, &line("", more));
        }
        for remark in &self.remarks {
            push(&mut text, &line("note", clean(remark)));
        }
        let ended = match self.exit_code {
            -1 => "before it started".to_owned(),
            code => format!("with exit code {code} after {}", self.span),
        };
        push(&mut text, &line("ended", ended));
        let stored = match self.stored {
            Some(state) => clean(state.as_str()),
            None => "nothing: the state stays as it was".to_owned(),
        };
        push(&mut text, &line("stored", stored));
        text
    }

    /// What a master would make of it, in a line.
    pub(super) fn verdict(&self) -> String {
        match &self.refusal {
            None => line("verdict", "accepted"),
            Some(reason) => line("verdict", format_args!("refused: {}", clean(reason))),
        }
    }
}

fn push(text: &mut String, line: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ensemble::callback::Failure;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn exact(text: &str) -> Exact {
        Exact::read(text.as_bytes()).unwrap()
    }

    fn handed(pods: usize, state: Option<&str>) -> Handed {
        let pod = |number: usize| json!({"id": format!("web-{number}"), "role": "web"});
        let joined: Vec<Value> = (0..pods).map(pod).collect();
        let changes = json!({"joined": joined, "changed": [], "left": [pod(9)], "since": "00ff"});
        Handed {
            digest: "0123".into(),
            pods,
            changes: Changes::read(changes.to_string().as_bytes()),
            epoch: 7,
            state: state.map(exact),
        }
    }

    fn run(exit_code: i32, outcome: Result<Option<Exact>, Failure>) -> Run {
        Run {
            exit_code,
            duration: Duration::from_millis(12),
            outcome,
        }
    }

    #[test]
    fn a_document_has_every_digit_and_tells_null_from_nothing() {
        let handed = handed(2, Some("[1.0,12345678901234567890]"));
        let document = |outcome| {
            let run = run(0, Ok(outcome));
            Report::new(1, &handed, &run, &Heard::default())
                .json()
                .unwrap()
        };
        assert_eq!(
            document(Some(exact("null"))),
            concat!(
                r#"{"run":1,"handed":{"digest":"0123","pods":2,"joined":["web-0","web-1"],"changed":[],"left":["web-9"],"#,
                r#""since":"00ff","epoch":7,"state":[1.0,12345678901234567890]},"accepted":true,"stored":null,"#,
                r#""exitCode":0,"duration":"0.012s","stderr":[],"remarks":[]}"#
            )
        );
        let nothing: Value = serde_json::from_str(&document(None)).unwrap();
        assert_eq!(nothing.get("stored"), None);
    }

    #[test]
    fn a_person_is_told_what_was_handed_said_and_refused() {
        let handed = handed(7, None);
        assert_eq!(
            handed.text(),
            [
                "  digest    0123",
                "  pods      7",
                "  joined    7: web-0, web-1, web-2, web-3, web-4, ...",
                "  changed   0",
                "  left      1: web-9",
                "  state     none",
            ]
            .join("\n")
        );
        let heard = Heard::default();
        heard.hear(Said::Line("one"));
        heard.hear(Said::Line("t\u{1b}wo"));
        heard.hear(Said::LeftBehind("sleep (7)"));
        let run = run(3, Err(Failure::Exit(3)));
        let report = Report::new(2, &handed, &run, &heard);
        assert_eq!(
            report.text(),
            [
                "  said      one",
                "            t\u{fffd}wo",
                "  note      it left processes behind, which were killed: sleep (7); nothing that it starts outlives its run",
                "  ended     with exit code 3 after 12ms",
                "  stored    nothing: the state stays as it was",
            ]
            .join("\n")
        );
        assert_eq!(
            report.verdict(),
            "  verdict   refused: the callback exited with code 3"
        );
    }

    #[test]
    fn a_flood_of_lines_is_kept_within_bounds() {
        let (heard, handed) = (Heard::default(), handed(0, None));
        let line = "x".repeat(1000);
        for _ in 0..2000 {
            heard.hear(Said::Line(&line));
        }
        let run = run(0, Ok(None));
        let report = Report::new(1, &handed, &run, &heard);
        assert_eq!(report.stderr.len() + report.stderr_lost, 2000);
        assert_eq!(report.stderr.len(), MAX_HEARD_BYTES / 1000);
        assert!(report.text().contains("lines more"));
    }
}
