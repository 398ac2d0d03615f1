//! How values read in a table: spans of time, shortened JSON, and text of others that must not drive the terminal.

use super::output::json;
use prost_types::{Duration as ProtoDuration, Timestamp, Value};
use std::time::{Duration, SystemTime};

/// What stands where nothing is known.
pub(super) const NOTHING: &str = "-";
/// Longest payload in a table, in characters.
const MAX_PAYLOAD: usize = 40;

/// Text from elsewhere without control characters, so that no pod can drive the user's terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The same, and a mark where there is none.
pub(super) fn or_nothing(text: &str) -> String {
    if text.is_empty() {
        NOTHING.to_owned()
    } else {
        clean(text)
    }
}

/// The lines of what a program wrote, as they can be shown: text without control characters but tabs.
pub(super) fn clean_lines(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .map(|line| clean_line(line.strip_suffix(b"\n").unwrap_or(line)))
}

/// One such line, without its end.
pub fn clean_line(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = String::from_utf8_lossy(line);
    let parts: Vec<String> = line.split('\t').map(clean).collect();
    parts.join("\t")
}

/// A span of time in at most two units: `120ms`, `2.5s`, `3m12s`, `2h05m`, `3d04h`.
pub fn span(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0 => format!("{millis}ms"),
        1..10 if millis >= 100 => format!("{seconds}.{}s", millis / 100),
        1..60 => format!("{seconds}s"),
        60..3600 if seconds % 60 == 0 => format!("{minutes}m"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        86400.. => format!("{days}d{:02}h", hours % 24),
    }
}

/// A protobuf duration as a span; negative ones count as nothing.
pub(super) fn proto_span(duration: Option<&ProtoDuration>) -> String {
    duration.map_or_else(
        || NOTHING.to_owned(),
        |duration| span(Duration::try_from(*duration).unwrap_or_default()),
    )
}

/// How long ago a time was; what is in the future by another clock was just now.
pub(super) fn age(time: Option<&Timestamp>, now: SystemTime) -> String {
    let since = |time: &Timestamp| now.duration_since(SystemTime::try_from(*time).ok()?).ok();
    time.map_or_else(
        || NOTHING.to_owned(),
        |time| span(since(time).unwrap_or_default()),
    )
}

/// How long until a time.
pub(super) fn until(time: &Timestamp, now: SystemTime) -> String {
    let left = SystemTime::try_from(*time)
        .ok()
        .and_then(|time| time.duration_since(now).ok());
    span(left.unwrap_or_default())
}

/// A time by the clock on the wall here.
pub(super) fn moment(time: &Timestamp) -> String {
    jiff::Timestamp::new(time.seconds, time.nanos).map_or_else(
        |_| NOTHING.to_owned(),
        |time| {
            let zoned = time.to_zoned(jiff::tz::TimeZone::system());
            zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
        },
    )
}

/// When something ends, and how long until then.
pub(super) fn deadline(time: Option<&Timestamp>, now: SystemTime) -> String {
    time.map_or_else(
        || NOTHING.to_owned(),
        |time| format!("{} (in {})", moment(time), until(time, now)),
    )
}

/// A payload in one short piece of JSON.
pub(super) fn payload(value: Option<&Value>) -> String {
    let text = value.map_or_else(String::new, |value| {
        json(value, "google.protobuf.Value").unwrap_or_else(|_| "?".to_owned())
    });
    if text.is_empty() || text == "\"\"" {
        return NOTHING.to_owned();
    }
    shorten(&clean(&text), MAX_PAYLOAD)
}

/// Text of at most so many characters, and a mark where more was.
pub fn shorten(text: &str, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_exact_enough() {
        for (millis, text) in [
            (0, "0ms"),
            (120, "120ms"),
            (1000, "1s"),
            (2500, "2.5s"),
            (10_900, "10s"),
            (60_000, "1m"),
            (192_000, "3m12s"),
            (7_500_000, "2h05m"),
            (273_600_000, "3d04h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn payloads_are_short_and_cannot_drive_a_terminal() {
        let string = |text: &str| Value {
            kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
        };
        assert_eq!(payload(None), "-");
        assert_eq!(payload(Some(&string(""))), "-");
        assert_eq!(payload(Some(&string("\u{1b}[2J"))), "\"\\u001b[2J\"");
        assert_eq!(payload(Some(&string("\u{9b}2J"))), "\"\u{fffd}2J\"");
        assert_eq!(payload(Some(&string(&"é".repeat(99)))).chars().count(), 41);
        assert_eq!(clean("a\u{1b}b"), "a\u{fffd}b");
    }

    #[test]
    fn what_a_program_wrote_is_shown_line_by_line() {
        let lines = |bytes| clean_lines(bytes).collect::<Vec<_>>();
        assert_eq!(lines(b"a\tb\r\n\nc"), ["a\tb", "", "c"]);
        assert_eq!(lines(b"\x1b[2J\x07\xff\n"), ["\u{fffd}[2J\u{fffd}\u{fffd}"]);
        assert_eq!(lines(b""), [""; 0]);
    }

    #[test]
    fn a_time_in_the_future_was_just_now() {
        let now = SystemTime::now();
        let later = Timestamp::from(now + Duration::from_secs(5));
        assert_eq!(age(Some(&later), now), "0ms");
        assert_eq!(until(&later, now), "5s");
        assert_eq!(age(None, now), "-");
        let told = deadline(Some(&later), now);
        assert!(told.ends_with(" (in 5s)") && told.len() == 27, "{told}");
        assert_eq!(deadline(None, now), "-");
        let never = Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        };
        assert_eq!(moment(&never), "-");
    }
}
