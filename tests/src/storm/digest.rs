//! I2: at one revision there is one digest, and anyone can compute it.

use super::{
    record::{Event, History},
    store::Digests,
};

/// Every digest that was told for a revision and is not that of the pods in the store.
pub(super) fn violations(history: &History) -> Vec<String> {
    let digests = Digests::of(history);
    let views = history.views.iter();
    let of_views = views.filter_map(|view| {
        let expected = digests.at(view.revision);
        (view.digest != expected).then(|| {
            format!(
                "master {} told {} at revision {}, where it is {expected}",
                view.master, view.digest, view.revision
            )
        })
    });
    // A watch tells the digest behind the changes that made it, with their revision.
    let told = history.watches.iter().flat_map(|watch| &watch.told);
    let of_watches = told.filter_map(|told| {
        let Event::Digest(digest) = &told.event else {
            return None;
        };
        let expected = digests.at(told.revision);
        (digest != expected).then(|| {
            format!(
                "a watch on master {} told {digest} at revision {}, where it is {expected}",
                told.master, told.revision
            )
        })
    });
    of_views.chain(of_watches).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            record::View,
            samples::{history, pod},
            store::digest,
        },
        *,
    };

    #[test]
    fn another_digest_than_that_of_the_pods_is_found() {
        let record = pod("a", 1, 0, 0);
        let right = digest(record.iter());
        let mut told = history(&[(2, "k", record), (4, "k", None)]);
        let view = |revision, digest: &str| View {
            master: 0,
            revision,
            digest: digest.to_owned(),
        };
        let none = "d751713988987e9331980363e24189ce";
        told.views = vec![
            view(19, none),
            view(20, &right),
            view(39, &right),
            view(40, none),
        ];
        assert_eq!(violations(&told), Vec::<String>::new());
        told.views = vec![view(20, none)];
        assert_eq!(violations(&told).len(), 1);
    }
}
