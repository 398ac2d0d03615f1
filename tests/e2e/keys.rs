//! Keys, the order of seqs, the digest, and what operators find in etcd.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    pod::{PodSpec, digest_of, integer, md5, pods_document},
    script::Recorder,
    small,
    wait::eventually,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn first_keepalives_through_any_master_give_seqs_in_order_and_every_master_the_same_digest() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(3)
        .patient()
        .start()
        .await;
    for number in 0..9 {
        let pod = PodSpec::number(number)
            .payload(json!({"number": number, "text": "é\"\n", "nested": [1.5, null]}));
        let answer = cluster.api(number as usize % 3).ping(&pod).await.unwrap();
        assert_eq!(answer.key, pod.expected_key());
        assert_eq!(answer.seq, u64::from(number));
        assert_eq!(answer.ttl.unwrap().seconds, 60);
        let interval = answer.interval.unwrap();
        assert!(interval.seconds < 60 && (interval.seconds, interval.nanos) > (0, 0));
    }
    for index in 0..3 {
        let api = cluster.api(index);
        let list = eventually(SOON, "nine pods", async || {
            let list = api.pods().await?;
            ensure!(list.pods.len() == 9, "{} pods", list.pods.len());
            Ok(list)
        })
        .await;
        let seqs: Vec<u64> = list.pods.iter().map(|pod| pod.seq).collect();
        assert_eq!(seqs, (0..9).collect::<Vec<u64>>());
        assert_eq!(
            list.digest,
            digest_of(&list.pods),
            "{}",
            pods_document(&list.pods)
        );
        let view = api.ensemble().await.unwrap();
        assert_eq!((view.digest, view.pod_count), (list.digest, 9));
        assert_eq!(view.masters.len(), 3);
        assert!(view.epoch > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_both_families_have_the_promised_keys() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    for (ip, key) in [
        ("172.16.123.1", "39mysN"),
        ("255.255.255.254", "4GFfc2"),
        ("127.0.0.1", "2kce4N"),
        ("::ffff:10.0.0.1", "blXcB"),
        ("2001:db8::1", ""),
    ] {
        let mut pod = PodSpec::number(0);
        pod.ip = ip.into();
        pod.key = key.into();
        let answer = api.ping(&pod).await.unwrap();
        assert_eq!(answer.key, pod.expected_key());
        let found = eventually(SOON, "pod by its key", async || {
            Ok(api.pod(&answer.key).await?)
        })
        .await;
        assert_eq!(found.key, answer.key);
    }
    // An IPv4-mapped address and its IPv4 are one pod.
    let mut pod = PodSpec::number(0);
    pod.ip = "10.0.0.1".into();
    assert_eq!(api.ping(&pod).await.unwrap().seq, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_holds_what_the_contract_says() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::shell();
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .ensemble("shop-ns", "shop")
        .callback(&recorder)
        .start()
        .await;
    let pod = PodSpec::number(0);
    cluster.api(0).ping(&pod).await.unwrap();
    let view = cluster.handled(0, 1).await;

    let keys = etcd.read("/").await;
    assert!(
        keys.keys()
            .all(|key| key.starts_with("/kontrol/shop-ns/shop/")),
        "{keys:#?}"
    );
    let value = |key: &str| -> Value {
        let text = keys.get(&format!("/kontrol/shop-ns/shop/{key}"));
        let text = text.unwrap_or_else(|| panic!("no {key} in {keys:#?}"));
        serde_json::from_str(text).unwrap_or_else(|_| json!(text))
    };
    let record = value(&format!("pods/{}", pod.expected_key()));
    let expected = pod.json();
    for field in [
        "app", "id", "ip", "role", "nonce", "payload", "labels", "node",
    ] {
        assert_eq!(record[field], expected[field], "{field} of {record}");
    }
    assert_eq!(record["seq"], 0);
    assert_eq!(integer(&value("seq")), 1, "the next seq to give");
    for id in ["master-0", "master-1"] {
        let address = cluster.masters[if id == "master-0" { 0 } else { 1 }].address();
        assert!(
            value(&format!("masters/{id}"))
                .to_string()
                .contains(&address)
        );
    }
    let leaders = keys.keys().filter(|key| key.contains("/leader/")).count();
    assert_eq!(leaders, 2, "one candidate for each master in {keys:#?}");
    let state = value("state").to_string();
    assert!(state.contains(&view.digest), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seq_is_never_given_again() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    for number in 0..3 {
        cluster.api(0).ping(&PodSpec::number(number)).await.unwrap();
    }
    for number in 0..2 {
        let goodbye = PodSpec::number(number).down();
        cluster.api(0).ping(&goodbye).await.unwrap();
    }
    // The third one falls silent.
    cluster
        .ensemble(0, "empty roster", |view| view.pod_count == 0)
        .await;
    assert_eq!(
        cluster.api(1).ping(&PodSpec::number(0)).await.unwrap().seq,
        3
    );
    cluster
        .api(1)
        .ping(&PodSpec::number(0).down())
        .await
        .unwrap();
    cluster
        .ensemble(0, "empty roster", |view| view.pod_count == 0)
        .await;

    for master in &mut cluster.masters {
        assert!(master.stop().await.success());
    }
    cluster.restart(0).await;
    assert_eq!(
        cluster.api(0).ping(&PodSpec::number(7)).await.unwrap().seq,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_covers_what_the_contract_says_and_nothing_else() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    let pod = PodSpec::number(0);
    api.ping(&pod).await.unwrap();
    let first = cluster
        .ensemble(0, "one pod", |view| view.pod_count == 1)
        .await;

    let mut noted = pod.clone();
    noted
        .annotations
        .insert("note".into(), "not in the digest".into());
    api.ping(&noted).await.unwrap();
    let seen = eventually(SOON, "annotation", async || {
        let pod = api.pod(&pod.expected_key()).await?;
        ensure!(pod.annotations.len() == 1);
        Ok(pod)
    })
    .await;
    assert!(seen.first_seen.is_some() && seen.last_heard.is_some());
    assert_eq!(api.ensemble().await.unwrap().digest, first.digest);

    let mut digests = vec![first.digest];
    let changes: [fn(&mut PodSpec); 6] = [
        |pod| pod.payload = json!({"a": 1}),
        |pod| pod.role = "other".into(),
        |pod| pod.app = "other".into(),
        |pod| pod.node = "other".into(),
        |pod| pod.nonce = "00000000000000ff".into(),
        |pod| {
            pod.labels.insert("tier".into(), "1".into());
        },
    ];
    for change in changes {
        change(&mut noted);
        api.ping(&noted).await.unwrap();
        let view = cluster
            .ensemble(0, "digest never seen before", |view| {
                !digests.contains(&view.digest)
            })
            .await;
        digests.push(view.digest);
    }
    let list = api.pods().await.unwrap();
    assert_eq!(md5(&pods_document(&list.pods)), list.digest);
    assert_eq!(list.pods[0].seq, 0, "no change costs the seq");
}

#[tokio::test(flavor = "multi_thread")]
async fn ensembles_on_one_etcd_know_nothing_of_each_other() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let tier = async |namespace: &str, app: &str| {
        Cluster::on(&etcd.store())
            .patient()
            .ensemble(namespace, app)
            .start()
            .await
    };
    // The last two are prefixes of others.
    let tiers = [
        tier("a", "web").await,
        tier("b", "web").await,
        tier("a", "we").await,
        tier("a", "web-2").await,
    ];
    for (count, tier) in (1..).zip(&tiers) {
        for number in 0..count {
            let mut pod = PodSpec::number(number);
            pod.app = format!("any-{number}");
            let answer = tier.api(0).ping(&pod).await.unwrap();
            assert_eq!(answer.seq, u64::from(number), "each counts for itself");
        }
    }
    for (count, tier) in (1..).zip(&tiers) {
        let view = tier
            .ensemble(0, "its own pods", |view| view.pod_count == count)
            .await;
        assert_eq!(view.masters.len(), 1);
        assert_eq!(view.leader.unwrap().address, tier.masters[0].address());
    }
}
