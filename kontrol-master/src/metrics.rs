//! Prometheus metrics, registered once and handed in. No pod key is ever a label.

use kontrol_core::model::action::{Ended, Outcome};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{fmt, sync::atomic::Ordering, time::Duration};
use tonic::Code;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

/// What turns something away when it is full, rather than have its sender wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Keepalives that the leader is to be told of: they are refused.
    Relay,
    /// Keepalives that take the way through the store: they are refused.
    Detour,
    /// Keepalives that are to be written: they are refused.
    Changes,
    /// Ends of channels: the TTL decides.
    Ends,
    /// Actions, for which there is no place or memory: they are refused.
    Actions,
    /// Orders for a slave that is attached here: they are given again.
    Orders,
    /// Messages between masters about actions: the link is opened again.
    Links,
    /// What slaves tell an action: it asks them again.
    Notices,
    /// What a watch is told: it is cut off.
    Watches,
    /// Connections of an address that has many: they are closed.
    Connections,
    /// Pods that are to join a full ensemble: they are refused.
    Pods,
    /// Requests that are too large: they are refused.
    Sizes,
    /// Reads and actions of a caller that has made many in this second: they are refused.
    Rate,
    /// Streams of a caller that has many: they are refused.
    Streams,
    /// Reads and actions while many are worked on: they are refused.
    Requests,
    /// Requests that wait for their rest: they are refused.
    Uploads,
    /// Answers that wait for their readers: reads are refused.
    Answers,
}

impl Queue {
    const ALL: [Self; 17] = [
        Self::Relay,
        Self::Detour,
        Self::Changes,
        Self::Ends,
        Self::Actions,
        Self::Orders,
        Self::Links,
        Self::Notices,
        Self::Watches,
        Self::Connections,
        Self::Pods,
        Self::Sizes,
        Self::Rate,
        Self::Streams,
        Self::Requests,
        Self::Uploads,
        Self::Answers,
    ];

    fn label(self) -> QueueLabel {
        let queue = match self {
            Self::Relay => "relay",
            Self::Detour => "detour",
            Self::Changes => "changes",
            Self::Ends => "ends",
            Self::Actions => "actions",
            Self::Orders => "orders",
            Self::Links => "links",
            Self::Notices => "notices",
            Self::Watches => "watches",
            Self::Connections => "connections",
            Self::Pods => "pods",
            Self::Sizes => "sizes",
            Self::Rate => "rate",
            Self::Streams => "streams",
            Self::Requests => "requests",
            Self::Uploads => "uploads",
            Self::Answers => "answers",
        };
        QueueLabel { queue }
    }
}

type Histograms = Family<OperationLabel, Histogram, fn() -> Histogram>;

/// Every metric of a master.
pub struct Metrics {
    registry: Registry,
    keepalives: Family<ResultLabel, Counter>,
    /// Pods in the roster.
    pub pods: Gauge,
    /// Pods that joined, left and changed, as this master saw it.
    roster_changes: Family<ResultLabel, Counter>,
    /// 1 while this master leads.
    pub leading: Gauge,
    /// The epoch of the leader; 0 while there is none.
    pub epoch: Gauge,
    /// 1 while the store's watch is up.
    pub store_up: Gauge,
    /// 1 while an operator holds the callback.
    pub held: Gauge,
    /// 1 while the safeguard holds removals back.
    pub frozen: Gauge,
    /// Silent pods that it keeps.
    pub silent: Gauge,
    /// How often the digest changed.
    pub digest_changes: Counter,
    store_seconds: Histograms,
    callback_runs: Family<ResultLabel, Counter>,
    callback_seconds: Histogram,
    /// Slaves that are attached to this master.
    pub attached: Gauge,
    action_targets: Family<OutcomeLabel, Counter>,
    action_seconds: Histogram,
    turned_away: Family<QueueLabel, Counter>,
    refused: Family<ResultLabel, Counter>,
    handshakes_failed: Counter,
    /// 1 while everybody who reaches this master may do everything.
    pub insecure: Gauge,
    /// Log lines that nobody took in time.
    log_lines_dropped: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn store_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 14))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("kontrol_master");
        let metrics = Self {
            keepalives: Family::default(),
            pods: Gauge::default(),
            roster_changes: Family::default(),
            leading: Gauge::default(),
            epoch: Gauge::default(),
            store_up: Gauge::default(),
            held: Gauge::default(),
            frozen: Gauge::default(),
            silent: Gauge::default(),
            digest_changes: Counter::default(),
            store_seconds: Family::new_with_constructor(store_histogram),
            callback_runs: Family::default(),
            callback_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            attached: Gauge::default(),
            action_targets: Family::default(),
            action_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            turned_away: Family::default(),
            refused: Family::default(),
            handshakes_failed: Counter::default(),
            insecure: Gauge::default(),
            log_lines_dropped: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "keepalives",
            "Keepalives taken in, by result",
            metrics.keepalives.clone(),
        );
        registry.register("pods", "Pods in the roster", metrics.pods.clone());
        registry.register(
            "roster_changes",
            "Pods that joined, changed and left",
            metrics.roster_changes.clone(),
        );
        registry.register(
            "leading",
            "1 while this master leads",
            metrics.leading.clone(),
        );
        registry.register(
            "epoch",
            "The epoch of the leader; 0 while there is none",
            metrics.epoch.clone(),
        );
        registry.register(
            "store_up",
            "1 while the watch of the store is up",
            metrics.store_up.clone(),
        );
        registry.register(
            "callback_held",
            "1 while an operator holds the callback",
            metrics.held.clone(),
        );
        registry.register(
            "safeguard_frozen",
            "1 while the safeguard holds back removals for silence",
            metrics.frozen.clone(),
        );
        registry.register(
            "safeguard_silent_pods",
            "Silent pods that the safeguard keeps in the roster",
            metrics.silent.clone(),
        );
        registry.register(
            "digest_changes",
            "Changes of the digest",
            metrics.digest_changes.clone(),
        );
        registry.register_with_unit(
            "store",
            "Calls of the store",
            Unit::Seconds,
            metrics.store_seconds.clone(),
        );
        registry.register(
            "callback_runs",
            "Runs of the callback on this master, by result",
            metrics.callback_runs.clone(),
        );
        registry.register_with_unit(
            "callback",
            "How long the callback ran",
            Unit::Seconds,
            metrics.callback_seconds.clone(),
        );
        registry.register(
            "attached_slaves",
            "Slaves that are attached to this master",
            metrics.attached.clone(),
        );
        registry.register(
            "action_targets",
            "Targets of this master's actions that have ended, by outcome",
            metrics.action_targets.clone(),
        );
        registry.register_with_unit(
            "action",
            "How long the commands of this master's actions ran",
            Unit::Seconds,
            metrics.action_seconds.clone(),
        );
        for queue in Queue::ALL {
            // So that each is there from the beginning: whoever asks for its increase misses none.
            drop(metrics.turned_away.get_or_create(&queue.label()));
        }
        registry.register(
            "calls_refused",
            "Calls refused for who asked, by the code of the refusal",
            metrics.refused.clone(),
        );
        registry.register(
            "tls_handshakes_failed",
            "Connections whose TLS did not come about",
            metrics.handshakes_failed.clone(),
        );
        registry.register(
            "insecure",
            "1 while everybody who reaches this master from elsewhere may do everything",
            metrics.insecure.clone(),
        );
        registry.register(
            "turned_away",
            "What a full queue, or a limit, did not take: its sender is refused, cut off, or asks again",
            metrics.turned_away.clone(),
        );
        registry.register(
            "log_lines_dropped",
            "Log lines of this process that whoever reads them did not take in time",
            metrics.log_lines_dropped.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// Counts a keepalive, by what became of it.
    pub fn keepalive(&self, result: &'static str) {
        self.keepalives.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a pod that joined, changed or left.
    pub fn roster_change(&self, result: &'static str) {
        self.roster_changes
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    /// Counts a call of the store.
    pub fn store_call(&self, operation: &'static str, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        let label = OperationLabel { operation, result };
        self.store_seconds
            .get_or_create(&label)
            .observe(took.as_secs_f64());
    }

    /// Counts a run of the callback.
    pub fn callback_run(&self, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        self.callback_runs
            .get_or_create(&ResultLabel { result })
            .inc();
        self.callback_seconds.observe(took.as_secs_f64());
    }

    /// Counts the end of an action on a target.
    pub fn action_ended(&self, ended: &Ended) {
        let outcome = match ended.outcome {
            Outcome::Exited if ended.succeeded() => "ok",
            Outcome::Exited => "failed",
            Outcome::TimedOut => "timed_out",
            Outcome::Cancelled => "cancelled",
            Outcome::Refused => "refused",
            Outcome::Unreachable => "unreachable",
            Outcome::Lost => "lost",
        };
        self.action_targets
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
        if ended.outcome == Outcome::Exited {
            self.action_seconds.observe(ended.duration.as_secs_f64());
        }
    }

    /// Counts what a full queue did not take.
    pub fn turned_away(&self, queue: Queue) {
        self.turned_away.get_or_create(&queue.label()).inc();
    }

    /// Counts a call that was refused for who asked.
    pub fn refused(&self, code: Code) {
        let result = if code == Code::Unauthenticated {
            "unauthenticated"
        } else if code == Code::PermissionDenied {
            "permission_denied"
        } else {
            "other"
        };
        self.refused.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a connection whose TLS did not come about.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// The text that `/metrics` serves.
    pub fn encode(&self) -> String {
        let dropped = kontrol_runtime::logging::dropped();
        let counter = self.log_lines_dropped.inner();
        counter.store(dropped, Ordering::Relaxed);
        let mut text = String::new();
        // Writing to a string has no way to fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// What stands in the guide: each metric with its type, and the text of its row.
    fn told() -> BTreeMap<&'static str, (&'static str, &'static str)> {
        let rows = include_str!("../../deploy/operating.md").lines();
        let rows = rows.filter_map(|row| row.strip_prefix("| `kontrol_master_"));
        rows.map(|row| {
            let (name, rest) = row.split_once("` | ").unwrap();
            let (kind, text) = rest.split_once(" | ").unwrap();
            (name, (kind, text))
        })
        .collect()
    }

    /// Metrics of which each has something to show.
    fn used() -> Metrics {
        let metrics = Metrics::default();
        metrics.keepalive("accepted");
        metrics.roster_change("joined");
        for ok in [true, false] {
            metrics.store_call("commit", ok, Duration::ZERO);
            metrics.callback_run(ok, Duration::ZERO);
        }
        for outcome in [
            Outcome::Exited,
            Outcome::TimedOut,
            Outcome::Cancelled,
            Outcome::Refused,
            Outcome::Unreachable,
            Outcome::Lost,
        ] {
            for exit_code in [0, 1] {
                metrics.action_ended(&Ended {
                    exit_code,
                    ..Ended::untold(outcome, "")
                });
            }
        }
        for code in [Code::Unauthenticated, Code::PermissionDenied, Code::Unknown] {
            metrics.refused(code);
        }
        metrics
    }

    #[test]
    fn the_guide_tells_of_each_metric_its_type_and_its_labels() {
        let told = told();
        let text = used().encode();
        let mut types = BTreeSet::new();
        for line in text.lines() {
            if let Some(line) = line.strip_prefix("# TYPE kontrol_master_") {
                let (name, kind) = line.split_once(' ').unwrap();
                let total = if kind == "counter" { "_total" } else { "" };
                types.insert(format!("{name}{total} {kind}"));
                continue;
            }
            let Some((name, labels)) = line.split_once('{') else {
                continue;
            };
            let name = name.strip_prefix("kontrol_master_").unwrap();
            let name = name.trim_end_matches("_bucket");
            let name = name.trim_end_matches("_sum").trim_end_matches("_count");
            let (labels, _) = labels.split_once('}').unwrap();
            for label in labels.split(',') {
                let (label, value) = label.split_once('=').unwrap();
                let text = told[name].1;
                let value = value.trim_matches('"');
                let is_told = |word| text.contains(&format!("`{word}`"));
                assert!(
                    label == "le" || is_told(label) && is_told(value),
                    "deploy/operating.md says of {name} nothing of {label} {value}"
                );
            }
        }
        let told: BTreeSet<_> = told
            .iter()
            .map(|(name, (kind, _))| format!("{name} {kind}"))
            .collect();
        assert_eq!(
            types, told,
            "what is there, and what deploy/operating.md tells"
        );
    }

    #[test]
    fn alerts_are_about_metrics_that_are_there() {
        let (told, alerts) = (told(), include_str!("../../deploy/alerts.yml"));
        let metrics: Vec<_> = alerts.split("kontrol_master_").skip(1).collect();
        assert!(!metrics.is_empty());
        for metric in metrics {
            let end = metric.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
            let name = &metric[..end.unwrap_or(metric.len())];
            assert!(told.contains_key(name), "deploy/alerts.yml: {name}");
        }
    }
}
