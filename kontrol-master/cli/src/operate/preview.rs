//! `kontrol-master preview`: what the next run of the callback would be handed, and what it waits for.
//!
//! The answer grows with the ensemble. A program gets all of it; for a person it is counted, and the first pods of each
//! kind are named.

use super::super::{
    error::CliError,
    masters::Masters,
    output::{Format, Output, Style},
    status::{self, Line, handled},
    text::{clean, deadline, or_nothing},
};
use kontrol_proto::v1::{
    PreviewCallbackRequest, PreviewCallbackResponse, WaitReason, preview_callback_response::Wait,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{fmt, time::SystemTime};

/// Largest answer: that of 100,000 pods which all joined, with 2 KiB each, is 400 MB.
const MAX_PREVIEW_BYTES: usize = 512 * 1024 * 1024;
/// How many pods of each kind are named.
const MAX_NAMED: usize = 20;

/// What the callback finds on its standard input, as far as a person is told.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Input<'a> {
    pods: Pods,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
    changes: Changes,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Changes {
    joined: Pods,
    changed: Pods,
    left: Pods,
    since: Option<String>,
}

/// How many pods, and the first of them.
#[derive(Debug, Default)]
struct Pods {
    count: usize,
    first: Vec<Pod>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    key: String,
    id: String,
}

impl<'de> Deserialize<'de> for Pods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Pods;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of pods")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pods, A::Error> {
                let mut first = Vec::new();
                while first.len() < MAX_NAMED
                    && let Some(pod) = list.next_element()?
                {
                    first.push(pod);
                }
                let mut count = first.len();
                if count == MAX_NAMED {
                    while list.next_element::<IgnoredAny>()?.is_some() {
                        count += 1;
                    }
                }
                Ok(Pods { count, first })
            }
        }
        deserializer.deserialize_seq(Counting)
    }
}

/// Asks for it and shows it.
pub(in super::super) async fn run(
    masters: &Masters,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let answer = masters
        .read(async |client| {
            let client = client.operate();
            let mut client = client.max_decoding_message_size(MAX_PREVIEW_BYTES);
            client.preview_callback(PreviewCallbackRequest {}).await
        })
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.PreviewCallbackResponse"),
        Format::Table => status::show(lines(&answer, SystemTime::now())?, output),
    }
}

fn lines(answer: &PreviewCallbackResponse, now: SystemTime) -> Result<Vec<Line>, CliError> {
    let mut lines = vec![
        ("Digest", Style::Plain, clean(&answer.digest)),
        handled(&answer.digest, &answer.handled_digest),
    ];
    if !answer.input_json.is_empty() {
        let input = serde_json::from_str(&answer.input_json).map_err(|error| {
            CliError::Failed(format!("cannot read what the master answers: {error}"))
        })?;
        self::input(&input, &mut lines);
    }
    for (index, wait) in answer.waits.iter().enumerate() {
        let name = if index == 0 { "Waits for" } else { "" };
        lines.push((name, style(wait.reason()), self::wait(wait, now)));
    }
    if answer.waits.is_empty() {
        let text = "nothing: it starts in a moment, or goes on";
        lines.push(("Waits for", Style::Good, text.to_owned()));
    }
    Ok(lines)
}

fn input(input: &Input<'_>, lines: &mut Vec<Line>) {
    let changes = &input.changes;
    let since = match &changes.since {
        Some(since) => clean(since),
        None => "the beginning: every pod counts as joined".to_owned(),
    };
    let state = match input.state.map(RawValue::get) {
        None => "null, or none yet".to_owned(),
        Some(state) => format!("{} bytes", state.len()),
    };
    lines.push(("Pods", Style::Plain, input.pods.count.to_string()));
    lines.push(("State", Style::Plain, state));
    lines.push(("Since", Style::Plain, since));
    for (name, style, pods) in [
        ("Joined", Style::Good, &changes.joined),
        ("Changed", Style::Notable, &changes.changed),
        ("Left", Style::Bad, &changes.left),
    ] {
        if pods.count == 0 {
            lines.push((name, Style::Plain, "none".to_owned()));
            continue;
        }
        lines.push((name, style, pods.count.to_string()));
        for pod in &pods.first {
            let text = format!("{} {}", or_nothing(&pod.key), or_nothing(&pod.id));
            lines.push(("", Style::Plain, text));
        }
        let more = pods.count - pods.first.len();
        if more > 0 {
            lines.push(("", Style::Plain, format!("and {more} more")));
        }
    }
}

fn wait(wait: &Wait, now: SystemTime) -> String {
    let text = if wait.text.is_empty() {
        match wait.reason() {
            WaitReason::Unspecified => "something that this program does not know",
            WaitReason::NoCallback => "a leader that has a callback",
            WaitReason::NoLeader => "a leader",
            WaitReason::NothingNew => "a change: this digest was handled",
            WaitReason::Damper => "the damper",
            WaitReason::Retry => "the next try",
            WaitReason::Held => "the end of the hold",
            WaitReason::Running => "the end of the run that goes on",
            WaitReason::Safeguard => "nothing, but silent pods are in the list",
            WaitReason::Trouble => "the end of some trouble",
        }
        .to_owned()
    } else {
        clean(&wait.text)
    };
    match &wait.until {
        Some(until) => format!("{text}; until {}", deadline(Some(until), now)),
        None => text,
    }
}

fn style(reason: WaitReason) -> Style {
    match reason {
        WaitReason::NothingNew => Style::Good,
        WaitReason::NoCallback | WaitReason::NoLeader | WaitReason::Trouble => Style::Bad,
        WaitReason::Unspecified
        | WaitReason::Damper
        | WaitReason::Retry
        | WaitReason::Held
        | WaitReason::Running
        | WaitReason::Safeguard => Style::Notable,
    }
}
