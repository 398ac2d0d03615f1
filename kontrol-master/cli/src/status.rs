//! `kontrol-master status`: the ensemble at a glance.

use super::{
    error::CliError,
    masters::Masters,
    operate::words,
    output::{Format, Output, Style},
    text::{age, clean, proto_span, until},
};
use kontrol_proto::v1::{
    CallbackRun, CallbackStatus, GetEnsembleRequest, GetEnsembleResponse, Master, Safeguard,
    Settings,
};
use std::time::SystemTime;

/// Asks for the ensemble and shows it.
pub(super) async fn run(masters: &Masters, output: &mut Output<'_>) -> Result<(), CliError> {
    let ensemble = masters
        .read(async |client| client.ensemble().get_ensemble(GetEnsembleRequest {}).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&ensemble, "kontrol.v1.GetEnsembleResponse"),
        Format::Table => show(lines(&ensemble, SystemTime::now()), output),
    }
}

/// What something is called, and how it is.
pub(super) type Line = (&'static str, Style, String);

/// Shows lines, their names in a column.
pub(super) fn show(lines: Vec<Line>, output: &mut Output<'_>) -> Result<(), CliError> {
    for (name, style, value) in lines {
        let name = output.paint(Style::Bold, &format!("{name:<10}"));
        let value = output.paint(style, &value);
        output.line(format_args!("{name}  {value}"))?;
    }
    Ok(())
}

fn lines(ensemble: &GetEnsembleResponse, now: SystemTime) -> Vec<Line> {
    let plain = |name, value: String| (name, Style::Plain, value);
    let mut lines = vec![
        plain(
            "Ensemble",
            clean(&format!("{}/{}", ensemble.namespace, ensemble.app)),
        ),
        plain("Pods", ensemble.pod_count.to_string()),
        plain("Digest", clean(&ensemble.digest)),
        handled(&ensemble.digest, &ensemble.handled_digest),
        leader(ensemble.leader.as_ref(), ensemble.epoch),
    ];
    for (index, master) in ensemble.masters.iter().enumerate() {
        let mut roles = Vec::new();
        if ensemble.leader.as_ref().is_some_and(|l| l.id == master.id) {
            roles.push("leads");
        }
        if master.id == ensemble.master {
            roles.push("answered");
        }
        let roles = match roles.as_slice() {
            [] => String::new(),
            roles => format!(" ({})", roles.join(", ")),
        };
        let name = if index == 0 { "Masters" } else { "" };
        lines.push(plain(name, format!("{}{roles}", self::master(master))));
    }
    if let Some(callback) = &ensemble.callback {
        self::callback(callback, now, &mut lines);
    }
    if let Some(hold) = &ensemble.hold {
        let text = format!(
            "{}, since {}; to end it: kontrol-master resume",
            words::hold(hold, now),
            age(hold.since.as_ref(), now)
        );
        lines.push(("Held", Style::Notable, text));
    }
    if let Some(safeguard) = &ensemble.safeguard {
        self::safeguard(safeguard, now, &mut lines);
    }
    if let Some(settings) = &ensemble.settings {
        lines.push(plain("Settings", self::settings(settings)));
    }
    lines.push(plain("Revision", ensemble.revision.to_string()));
    lines
}

/// Which digest the callback handled last.
pub(super) fn handled(digest: &str, handled: &str) -> Line {
    let (style, text) = if handled.is_empty() {
        (Style::Notable, "none yet".to_owned())
    } else if handled == digest {
        (Style::Good, "this digest".to_owned())
    } else {
        (Style::Notable, format!("another: {}", clean(handled)))
    };
    ("Handled", style, text)
}

fn leader(leader: Option<&Master>, epoch: i64) -> Line {
    match leader {
        Some(leader) => (
            "Leader",
            Style::Good,
            format!("{}, epoch {epoch}", master(leader)),
        ),
        None => (
            "Leader",
            Style::Bad,
            "none: nobody expires and no callback runs until there is one".to_owned(),
        ),
    }
}

/// A master's id and address.
pub(super) fn master(master: &Master) -> String {
    clean(&format!("{} at {}", master.id, master.address))
}

fn callback(status: &CallbackStatus, now: SystemTime, lines: &mut Vec<Line>) {
    let (style, text) = if !status.configured {
        (Style::Plain, "not configured on the leader".to_owned())
    } else if status.running_since.is_some() {
        let since = age(status.running_since.as_ref(), now);
        (Style::Notable, format!("running for {since}"))
    } else if status.pending_since.is_some() {
        let since = age(status.pending_since.as_ref(), now);
        let text = format!("a change waits for the damper since {since}");
        (Style::Notable, text)
    } else {
        (Style::Plain, "idle".to_owned())
    };
    lines.push(("Callback", style, text));
    if !status.error.is_empty() {
        lines.push(("Trouble", Style::Bad, clean(&status.error)));
    }
    if let Some(run) = &status.last_run {
        let style = if run.error.is_empty() {
            Style::Good
        } else {
            Style::Bad
        };
        let ago = age(run.start.as_ref(), now);
        lines.push((
            "Last run",
            style,
            format!(
                "{ago} ago for {}, {}",
                clean(&run.digest),
                self::outcome(run)
            ),
        ));
    }
    if status.failures > 0 {
        let next = match &status.retry_at {
            Some(time) => format!("next try in {}", until(time, now)),
            None => "no further try is planned".to_owned(),
        };
        let text = format!("{} since the last success, {next}", status.failures);
        lines.push(("Failures", Style::Bad, text));
    }
}

fn safeguard(safeguard: &Safeguard, now: SystemTime, lines: &mut Vec<Line>) {
    let style = words::safeguard_style(safeguard);
    let text = format!(
        "{}, since {}",
        words::safeguard(safeguard, now),
        age(safeguard.since.as_ref(), now)
    );
    lines.push(("Safeguard", style, text));
    if safeguard.released_by.is_empty() {
        let text = "it ends when pods come back, with kontrol-master release, or at that time";
        lines.push(("", Style::Plain, text.to_owned()));
    }
}

/// How long a run took and how it ended.
pub(super) fn outcome(run: &CallbackRun) -> String {
    let took = proto_span(run.duration.as_ref());
    if run.error.is_empty() {
        format!("done in {took}")
    } else {
        let error = clean(&run.error);
        format!("failed after {took}, exit code {}: {error}", run.exit_code)
    }
}

fn settings(settings: &Settings) -> String {
    let lease = settings.lease.as_ref().map_or_else(String::new, |lease| {
        format!(
            " (the store grants no lease under {})",
            proto_span(Some(lease))
        )
    });
    let safeguard = match settings.safeguard {
        0 => "off".to_owned(),
        percent => format!(
            "over {percent}% of {} pods or more (at most {})",
            settings.safeguard_min,
            proto_span(settings.safeguard_max.as_ref())
        ),
    };
    format!(
        "ttl {}, interval {}, damper {} (at most {}), fover {}{lease}, lost {}, history {}, safeguard {safeguard}",
        proto_span(settings.ttl.as_ref()),
        proto_span(settings.interval.as_ref()),
        proto_span(settings.damper.as_ref()),
        proto_span(settings.damper_max.as_ref()),
        proto_span(settings.fover.as_ref()),
        proto_span(settings.lost.as_ref()),
        proto_span(settings.history.as_ref()),
    )
}
