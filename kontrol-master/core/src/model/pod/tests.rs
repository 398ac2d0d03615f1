//! Reports, records and their limits.

use super::*;
use crate::{
    limits::MAX_LABELS,
    testing::{any_pod, report},
};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn the_document_has_ten_sorted_fields_and_nothing_else() {
    let report = Report {
        annotations: BTreeMap::from([("note".into(), "not in the digest".into())]),
        payload: json!({"b": 1.0, "a": [true]}),
        ..report(1)
    };
    assert_eq!(
        str::from_utf8(Pod::join(report, 7, 1).canonical()).unwrap(),
        r#"{"app":"web","id":"web-1","ip":"127.0.0.1","key":"2kce4N","labels":{"app":"web"},"node":"","nonce":"00000000000000aa","payload":{"a":[true],"b":1},"role":"front","seq":7}"#
    );
}

#[test]
fn an_update_keeps_seq_and_remembers_the_incarnations_before() {
    let start = |nonce: &str| Report {
        nonce: nonce.into(),
        ..report(1)
    };
    let pod = Pod::join(start("aa"), 7, 1);
    let again = pod.update(start("bb")).update(start("cc"));
    assert_eq!((again.seq(), again.first_seen_ms()), (7, 1));
    for before in ["aa", "bb"] {
        assert!(again.has_retired(&Incarnation::new("web-1", before)));
    }
    assert!(!again.has_retired(&again.incarnation()));
    let back = Pod::decode(&again.encode()).unwrap();
    assert_eq!(back, again);
}

#[test]
fn a_beat_that_no_double_holds_is_kept_whole() {
    for beat in [0, (1 << 53) - 1, (1 << 53) + 1, u64::MAX] {
        let pod = Pod::join(Report { beat, ..report(1) }, 7, 1);
        assert_eq!(Pod::decode(&pod.encode()).unwrap().beat(), beat);
    }
}

#[test]
fn each_limit_names_its_field() {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    let cases: [(&str, Report); 9] = [
        (
            "app",
            Report {
                app: String::new(),
                ..report(1)
            },
        ),
        (
            "id",
            Report {
                id: long.clone(),
                ..report(1)
            },
        ),
        (
            "role",
            Report {
                role: "a\nb".into(),
                ..report(1)
            },
        ),
        (
            "node",
            Report {
                node: long.clone(),
                ..report(1)
            },
        ),
        (
            "nonce",
            Report {
                nonce: long.clone(),
                ..report(1)
            },
        ),
        (
            "ip",
            Report {
                ip: IpAddr::from([0, 0, 0, 0]),
                ..report(1)
            },
        ),
        (
            "labels[a]",
            Report {
                labels: BTreeMap::from([("a".into(), long)]),
                ..report(1)
            },
        ),
        (
            "labels",
            Report {
                labels: (0..65).map(|n| (n.to_string(), String::new())).collect(),
                ..report(1)
            },
        ),
        (
            "payload",
            Report {
                payload: deep,
                ..report(1)
            },
        ),
    ];
    for (field, report) in cases {
        assert_eq!(
            report.check("", &Limits::default()).unwrap_err().field,
            field
        );
    }
    // Control characters take six bytes each.
    let annotations =
        (0..MAX_LABELS).map(|n| (n.to_string(), "\u{1}".repeat(MAX_ANNOTATION_BYTES)));
    let report_of_many = Report {
        annotations: annotations.collect(),
        ..report(1)
    };
    assert_eq!(
        report_of_many
            .check("", &Limits::default())
            .unwrap_err()
            .field,
        "annotations"
    );
    assert_eq!(
        report(1)
            .check("blXcB", &Limits::default())
            .unwrap_err()
            .field,
        "key"
    );
    assert_eq!(report(1).check("2kce4N", &Limits::default()), Ok(()));
}

#[test]
fn a_master_may_take_less_than_the_most() {
    let limits = Limits {
        labels: 1,
        json_depth: 2,
        ..Limits::default()
    };
    assert_eq!(report(1).check("", &limits), Ok(()));
    let two = BTreeMap::from([("a".to_owned(), "b".to_owned()), ("c".into(), "d".into())]);
    for (report, said) in [
        (
            Report {
                labels: two.clone(),
                ..report(1)
            },
            "labels has more than 1 entries (--max-labels)",
        ),
        (
            Report {
                annotations: two,
                ..report(1)
            },
            "annotations has more than 1 entries (--max-labels)",
        ),
        (
            Report {
                payload: json!([[["x"]]]),
                ..report(1)
            },
            "payload nests deeper than 2 levels (--max-json-depth)",
        ),
    ] {
        assert_eq!(report.check("", &limits).unwrap_err().to_string(), said);
        assert_eq!(report.check("", &Limits::default()), Ok(()));
    }
}

/// The names of labels and annotations as Kubernetes has them: 253 bytes, a slash, 63 bytes; as many as promised.
#[test]
fn what_kubernetes_allows_is_taken() {
    let name = |n: usize| format!("{n:03}{}/{}", "p".repeat(250), "n".repeat(63));
    let labels: BTreeMap<String, String> =
        (0..MAX_LABELS).map(|n| (name(n), "v".repeat(63))).collect();
    let mut report = Report {
        annotations: labels
            .keys()
            .map(|name| (name.clone(), "v".repeat(4096)))
            .collect(),
        labels,
        ..report(1)
    };
    assert_eq!(report.check("", &Limits::default()), Ok(()));
    report.labels.insert(name(MAX_LABELS), String::new());
    assert_eq!(
        report.check("", &Limits::default()).unwrap_err().field,
        "labels"
    );
    report.labels = BTreeMap::from([(name(0) + "n", String::new())]);
    assert_eq!(
        report
            .check("", &Limits::default())
            .unwrap_err()
            .to_string(),
        "labels is longer than 317 bytes"
    );
}

/// As anybody can write one with etcdctl.
#[test]
fn a_record_whose_numbers_are_beyond_all_reason_is_refused_or_reads_back() {
    let pod = Pod::join(report(1), MAX_SAFE_INTEGER, u64::MAX);
    let retired = pod.retire(None);
    let back = Pod::decode(&pod.after(retired).encode()).unwrap();
    assert_eq!(back.first_seen_ms(), u64::MAX);
    assert_eq!(back.encode(), Pod::decode(&back.encode()).unwrap().encode());
    let beyond = Pod::join(report(1), MAX_SAFE_INTEGER + 1, 1).encode();
    let error = Pod::decode(&beyond).unwrap_err().to_string();
    assert!(error.starts_with("has seq 9007199254740992"), "{error}");
}

proptest! {
    #[test]
    fn a_record_reads_back(pod in any_pod()) {
        let back = Pod::decode(&pod.encode()).unwrap();
        prop_assert_eq!(back.canonical(), pod.canonical());
        prop_assert_eq!(back.encode(), pod.encode());
    }
}
