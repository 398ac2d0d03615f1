//! How a hold and a safeguard read, in answers, in `status` and in `watch`.

use super::super::{
    actions::words::who,
    output::Style,
    text::{deadline, or_nothing},
};
use kontrol_proto::v1::{Hold, Safeguard};
use std::time::SystemTime;

/// Until when, by whom and why the callback is held; behind "held".
pub(in super::super) fn hold(hold: &Hold, now: SystemTime) -> String {
    format!(
        "until {} by {}: {}",
        deadline(hold.until.as_ref(), now),
        who(&hold.by),
        or_nothing(&hold.reason)
    )
}

/// Why silent pods stay, and until when; or that they leave.
pub(in super::super) fn safeguard(safeguard: &Safeguard, now: SystemTime) -> String {
    let silent = silent(safeguard);
    if safeguard.released_by.is_empty() {
        format!(
            "removals are frozen until {} at the latest: {silent}",
            deadline(safeguard.until.as_ref(), now)
        )
    } else {
        format!(
            "released by {}, so that silent pods leave now: {silent}",
            who(&safeguard.released_by)
        )
    }
}

/// How that stands out.
pub(in super::super) fn safeguard_style(safeguard: &Safeguard) -> Style {
    if safeguard.released_by.is_empty() {
        Style::Bad
    } else {
        Style::Notable
    }
}

/// How many pods are silent.
pub(super) fn silent(safeguard: &Safeguard) -> String {
    let verb = if safeguard.silent == 1 { "is" } else { "are" };
    format!(
        "{} of {} pods {verb} silent",
        safeguard.silent, safeguard.pods
    )
}
