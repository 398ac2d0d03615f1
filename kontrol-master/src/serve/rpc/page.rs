//! Pages of the roster, so that no answer grows with it: a gRPC client takes messages of 4 MiB unless told otherwise.

use super::convert;
use kontrol_core::view::{Member, View};
use kontrol_proto::v1::Pod;
use prost::Message;
use std::ops::Bound::{Excluded, Unbounded};

/// Most of a page, in bytes as protobuf. One pod always fits: the largest takes some 1.2 MiB, and most 200 bytes.
const BYTES: usize = 1024 * 1024;

/// Some pods of a roster, in the order of their seqs.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) pods: Vec<Pod>,
    /// Behind which seq the next page begins; none when this is the last.
    pub(super) next: Option<u64>,
}

/// The next page behind a seq, of at most `most` pods, of those that are wanted.
pub(super) fn page(
    view: &View,
    behind: Option<u64>,
    most: usize,
    wanted: impl Fn(&Member) -> bool,
) -> Page {
    let begin = behind.map_or(Unbounded, Excluded);
    let order = view.order().range((begin, Unbounded));
    let members = order.filter_map(|(_, pod)| view.member(pod.key()));
    let mut members = members.filter(|member| wanted(member)).peekable();
    let (mut pods, mut bytes) = (Vec::new(), 0);
    while pods.len() < most
        && bytes < BYTES
        && let Some(member) = members.next()
    {
        let pod = convert::member(view, member);
        bytes += pod.encoded_len();
        pods.push(pod);
    }
    let next = members.peek().and(pods.last()).map(|pod| pod.seq);
    Page { pods, next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::{
        kv::{Entry, Snapshot},
        model::Pod as Record,
        testing::report,
        view::pod_key,
    };
    use tokio::time::Instant;

    fn view(pods: u8, payload: usize) -> View {
        let entries = (1..=pods).map(|host| {
            let mut report = report(host);
            report.payload = "x".repeat(payload).into();
            let pod = Record::join(report, u64::from(host) * 10, 1);
            Entry {
                key: pod_key(pod.key()),
                value: pod.encode().into(),
                create_revision: 1,
                mod_revision: 1,
            }
        });
        let snapshot = Snapshot {
            revision: 7,
            entries: entries.collect(),
        };
        View::default().replace(&snapshot, Instant::now()).0
    }

    fn pages(view: &View, most: usize, wanted: impl Fn(&Member) -> bool) -> Vec<Vec<u64>> {
        let (mut all, mut behind) = (Vec::new(), None);
        loop {
            let page = page(view, behind, most, &wanted);
            assert!(page.pods.iter().map(Message::encoded_len).sum::<usize>() < 2 * BYTES);
            all.push(page.pods.iter().map(|pod| pod.seq).collect());
            behind = page.next;
            if behind.is_none() {
                return all;
            }
        }
    }

    #[test]
    fn pages_are_bounded_by_count_and_size_and_the_last_says_so() {
        let few = view(5, 0);
        assert_eq!(pages(&few, 2, |_| true), [&[10, 20][..], &[30, 40], &[50]]);
        assert_eq!(pages(&few, 5, |_| true), [[10, 20, 30, 40, 50]]);
        let odd = |member: &Member| member.pod.seq() != 50;
        assert_eq!(pages(&few, 4, odd), [[10, 20, 30, 40]]);
        assert_eq!(pages(&few, 3, |_| false), [Vec::<u64>::new()]);
        let large = pages(&view(100, 40_000), usize::MAX, |_| true);
        assert!(large.len() > 3, "{large:?}");
        let all: Vec<u64> = large.into_iter().flatten().collect();
        assert_eq!(all, (1..=100).map(|n| n * 10).collect::<Vec<_>>());
    }
}
