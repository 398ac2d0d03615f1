//! What a keepalive is told that is refused: who has its place, and what to do.

use super::Place;
use crate::cluster::error::Error;
use kontrol_core::{
    model::{Incarnation, Report},
    plan::{Plan, may_take},
};

/// What a report is told that is refused.
pub(super) fn refused(report: &Report, place: &Place, plan: Plan) -> Error {
    let pod = place.pod();
    let itself = place
        .departed()
        .is_some_and(|gone| gone.incarnation == Incarnation::of(report));
    if let (Some(pod), Some(by)) = (pod, &report.by)
        && pod.id() != report.id
        && !may_take(report, pod)
    {
        return Error::Superseded(format!(
            "the pod {:?} has the address {}, and {by} may not take its place: it comes in once that one has left; give each pod an address of its own, or evict the other",
            pod.id(),
            pod.ip()
        ));
    }
    let by = match pod {
        _ if plan == Plan::Kept => {
            "too many starts or pods report from this address by turns".to_owned()
        }
        None if itself => {
            return Error::Superseded(format!(
                "nonce {}: beat {} came after a later one, and after the pod had left",
                report.nonce, report.beat
            ));
        }
        Some(pod) if pod.id() != report.id => format!(
            "the pod {:?} reports from the same address {}",
            pod.id(),
            pod.ip()
        ),
        Some(_) => "a newer start of the same pod reports".to_owned(),
        None => format!("a newer start or pod reported from {} and left", report.ip),
    };
    let nonce = if report.nonce.is_empty() {
        String::new()
    } else {
        format!("nonce {}: ", report.nonce)
    };
    Error::Superseded(format!(
        "{nonce}{by}; give each pod an address of its own, or stop one of the two"
    ))
}
