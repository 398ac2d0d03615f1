//! What the contract promises about the runs of a callback, checked over a whole history of them. PURE.

use crate::script::Run;

/// Every promise that these runs, in the order of their starts, break.
///
/// - Never two at once, whichever master started them.
/// - `HASH` is the MD5 of the pods, however they were given.
/// - The epoch never goes back.
/// - None for a digest that was handled: the state that a run sees tells which one was (the recorder's own state holds
///   the `HASH` of the run that wrote it). A success whose master died before it could commit does not count, so that
///   a second success for one digest is only allowed when its state was not kept.
pub fn violations(runs: &[Run]) -> Vec<String> {
    let mut found = Vec::new();
    let mut last = f64::NEG_INFINITY;
    let mut epoch = i64::MIN;
    for (index, run) in runs.iter().enumerate() {
        let mut complain =
            |text: String| found.push(format!("run {index} (pid {}): {text}", run.pid));
        if run.start < last {
            complain(format!(
                "started {:.3} s before an earlier run's last sign of life",
                last - run.start
            ));
        }
        last = last.max(run.last);
        let Some(read) = &run.read else { continue };
        for (name, md5) in [
            ("MD5", &read.md5),
            ("the MD5 of PODS", &read.md5_of_pods),
            ("the MD5 of the file of PODS", &read.md5_of_file),
        ] {
            if md5.as_ref().is_some_and(|md5| *md5 != run.hash) {
                complain(format!("HASH is {}, but {name} is {md5:?}", run.hash));
            }
        }
        if read.stdin_agrees == Some(false) {
            complain("standard input tells other pods than the file".to_owned());
        }
        if read.epoch < epoch {
            complain(format!("epoch {} came after {epoch}", read.epoch));
        }
        epoch = epoch.max(read.epoch);
        let handled = read.state.as_ref().and_then(|state| state["hash"].as_str());
        if handled == Some(run.hash.as_str()) {
            complain(format!("digest {} was handled already", run.hash));
        }
        if !read.seqs.is_sorted_by(|a, b| a < b) {
            complain(format!(
                "the pods are not in the order of their seqs: {:?}",
                read.seqs
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Read;
    use serde_json::json;

    fn run(start: f64, last: f64, hash: &str, epoch: i64, handled: Option<&str>) -> Run {
        Run {
            start,
            last,
            hash: hash.into(),
            read: Some(Read {
                md5_of_pods: Some(hash.into()),
                epoch,
                state: handled.map(|hash| json!({"hash": hash})),
                ..Read::default()
            }),
            ..Run::default()
        }
    }

    #[test]
    fn a_good_history_has_no_violations() {
        let runs = [
            run(0.0, 1.0, "a", 1, None),
            run(1.5, 2.0, "b", 1, Some("a")),
            run(2.0, 3.0, "a", 4, Some("b")),
        ];
        assert_eq!(violations(&runs), Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        let base = run(0.0, 1.0, "a", 5, None);
        let cases = [
            (run(0.9, 2.0, "b", 5, None), "sign of life"),
            (run(1.0, 2.0, "b", 4, None), "came after"),
            (run(1.0, 2.0, "a", 5, Some("a")), "handled already"),
        ];
        for (second, complaint) in cases {
            let found = violations(&[base.clone(), second]);
            assert!(
                found.len() == 1 && found[0].contains(complaint),
                "{found:?}"
            );
        }
        let mut wrong = base;
        wrong.hash = "b".into();
        wrong.read.as_mut().unwrap().seqs = vec![2, 1];
        assert_eq!(violations(&[wrong]).len(), 2);
    }
}
