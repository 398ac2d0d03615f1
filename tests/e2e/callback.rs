//! The callback: what it is given, what becomes of what it says, when it runs and when it must not.

use anyhow::ensure;
use kontrol_tests::{
    SOON,
    cluster::Cluster,
    etcd::Etcd,
    pod::{PodSpec, from_proto},
    process::alive,
    script::{Plan, Recorder},
    small,
    wait::eventually,
};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn it_is_given_the_same_in_variables_on_stdin_and_in_files() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    for number in 0..3 {
        let pod = PodSpec::number(number).payload(json!({"name": format!("é'\"\n{number}")}));
        api.ping(&pod).await.unwrap();
    }
    let first = cluster.handled(0, 3).await;
    let run = recorder.runs().pop().unwrap();
    let read = run.read();
    assert_eq!(run.hash, first.digest);
    assert_eq!(read.md5.as_ref(), Some(&run.hash), "MD5 is HASH");
    assert_eq!(read.md5_of_pods.as_ref(), Some(&run.hash));
    assert_eq!(read.md5_of_file.as_ref(), Some(&run.hash));
    assert_eq!(
        read.stdin_agrees,
        Some(true),
        "stdin has {:?}",
        read.stdin_names
    );
    assert_eq!(read.ids, ["pod-0", "pod-1", "pod-2"]);
    assert_eq!(read.epoch, first.epoch);
    assert!(
        read.endpoint
            .as_ref()
            .is_some_and(|endpoint| !endpoint.is_empty())
    );
    assert_eq!(read.group, run.pid, "it leads a process group of its own");
    // Its own three, its log, and the one that lists them.
    assert!(
        read.descriptors.len() <= 5,
        "inherited descriptors: {:?}",
        read.descriptors
    );
    assert_eq!(
        recorder.runs()[0].read().state,
        None,
        "STATE is absent at first"
    );

    api.ping(&PodSpec::number(1).down()).await.unwrap();
    let mut changed = PodSpec::number(2);
    changed.role = "other".into();
    api.ping(&changed).await.unwrap();
    api.ping(&PodSpec::number(3)).await.unwrap();
    let second = cluster.ensemble(0, "second handled digest", |view| {
        view.digest != first.digest && view.handled_digest == view.digest && view.pod_count == 3
    });
    second.await;
    let runs = recorder.runs();
    let read = runs.last().unwrap().read();
    let state = read.state.as_ref().unwrap();
    assert_eq!(read.state_of_file.as_ref(), Some(state));
    assert!(state["runs"].as_u64().unwrap() >= 1);
    assert_eq!(read.changes, read.changes_of_file);
    let changes: String = runs
        .iter()
        .skip(1)
        .map(|run| run.read().changes.as_ref().unwrap().to_string())
        .collect();
    for number in 1..4 {
        let pod = PodSpec::number(number);
        let told = changes.contains(&pod.id) || changes.contains(&pod.expected_key());
        assert!(told, "{} is not in {changes}", pod.id);
    }
    assert!(changes.contains(r#""reason":"DOWN""#), "{changes}");
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_callback_sees_a_hash_that_md5sum_agrees_with_and_keeps_its_state() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::shell();
    let mut cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .callback(&recorder)
        .start()
        .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    let first = cluster.handled(0, 1).await;
    for index in 0..2 {
        let api = cluster.api(index);
        eventually(SOON, "state", async || {
            let state = api.state().await?;
            ensure!(
                from_proto(state.state.as_ref()) == json!({"hash": first.digest}),
                "{state:?}"
            );
            ensure!(state.digest == first.digest && state.epoch == first.epoch);
            Ok(())
        })
        .await;
        for route in ["/state", "/v1/state"] {
            let state = api.http("GET", route, None).await.ok();
            assert_eq!(state["state"]["hash"], first.digest.as_str());
        }
    }
    // The state outlives every master, and the roster that was handled is not handled again.
    for master in &mut cluster.masters {
        assert!(master.stop().await.success());
    }
    cluster.restart(0).await;
    cluster.restart(1).await;
    cluster.api(1).ping(&PodSpec::number(1)).await.unwrap();
    cluster.handled(1, 2).await;
    let runs = recorder.runs();
    assert_eq!(
        runs.last().unwrap().read().state,
        Some(json!({"hash": first.digest}))
    );
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_run_is_retried_and_seen_from_every_master() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    recorder.plan(&Plan {
        fails: 2,
        ..Plan::default()
    });
    let cluster = Cluster::on(&etcd.store())
        .masters(3)
        .patient()
        .callback(&recorder)
        .start()
        .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    for index in 0..3 {
        let view = cluster.ensemble(index, "failure", |view| {
            let status = view.callback.as_ref();
            let run = status.and_then(|status| status.last_run.as_ref());
            run.is_some_and(|run| run.exit_code == 7 || run.exit_code == 0)
        });
        assert!(view.await.callback.unwrap().configured);
    }
    let view = cluster.handled(0, 1).await;
    let runs = recorder.runs();
    assert!(runs.len() >= 3, "{runs:#?}");
    assert!(
        runs.iter().all(|run| run.read().state.is_none()),
        "a failure persists nothing"
    );
    cluster
        .ensemble(2, "success on another master", |view| {
            let status = view.callback.clone().unwrap_or_default();
            status.failures == 0
                && status
                    .last_run
                    .is_some_and(|run| run.exit_code == 0 && run.error.is_empty())
        })
        .await;
    assert_eq!(recorder.successes().last().unwrap().hash, view.digest);
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_no_json_is_a_failure_and_no_output_keeps_the_state() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let print = |text: &str| {
        recorder.plan(&Plan {
            prints: Some(text.into()),
            ..Plan::default()
        })
    };
    print("{\"good\": 1}");
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(0)).await.unwrap();
    cluster.handled(0, 1).await;
    for nonsense in ["not json", "{\"a\": 1} {\"b\": 2}"] {
        print(nonsense);
        let before = recorder.runs().len();
        api.ping(&PodSpec::number(0).payload(nonsense.into()))
            .await
            .unwrap();
        let failed = cluster.ensemble(0, "failure", |view| {
            let run = view.callback.clone().unwrap_or_default().last_run;
            let failed = run.is_some_and(|run| run.digest == view.digest && !run.error.is_empty());
            failed && view.handled_digest != view.digest
        });
        assert!(failed.await.callback.unwrap().failures > 0);
        assert!(recorder.runs().len() > before);
        assert_eq!(
            from_proto(api.state().await.unwrap().state.as_ref()),
            json!({"good": 1})
        );
        // A newer digest replaces the one that fails.
        print("");
        api.ping(&PodSpec::number(0).payload(json!({"after": nonsense})))
            .await
            .unwrap();
        cluster.handled(0, 1).await;
        assert_eq!(
            from_proto(api.state().await.unwrap().state.as_ref()),
            json!({"good": 1})
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_past_its_time_is_killed_with_all_its_children() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    recorder.plan(&Plan {
        takes: Duration::from_secs(100),
        stubborn: true,
        children: 2,
        ..Plan::default()
    });
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .callback(&recorder)
        .set("callback-timeout", "2s")
        .start()
        .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    let view = cluster.ensemble(0, "timed-out run", |view| {
        view.callback
            .as_ref()
            .is_some_and(|status| status.last_run.is_some() && status.failures > 0)
    });
    let run = view.await.callback.unwrap().last_run.unwrap();
    assert!(!run.error.is_empty() && run.exit_code != 0, "{run:?}");
    let first = recorder.runs().remove(0);
    eventually(SOON, "end of the run and its children", async || {
        ensure!(!alive(first.pid), "the callback lives");
        ensure!(
            first.read().children.iter().all(|pid| !alive(*pid)),
            "a child lives"
        );
        Ok(())
    })
    .await;
    recorder.plan(&Plan::default());
    cluster.handled(0, 1).await;
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_never_outlives_its_master() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    for kill in [false, true] {
        let recorder = Recorder::python();
        recorder.plan(&Plan {
            takes: Duration::from_secs(100),
            stubborn: true,
            children: 1,
            ..Plan::default()
        });
        let mut cluster = Cluster::on(&etcd.store())
            .patient()
            .callback(&recorder)
            .start()
            .await;
        cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
        let run = eventually(SOON, "running callback", async || {
            let mut runs = recorder.runs();
            ensure!(runs.len() == 1 && runs[0].read.is_some());
            Ok(runs.remove(0))
        })
        .await;
        let status = cluster.api(0).ensemble().await.unwrap().callback.unwrap();
        assert!(status.running_since.is_some());
        if kill {
            cluster.masters[0].kill();
        } else {
            assert!(cluster.masters[0].stop().await.success());
            assert!(
                !alive(run.pid),
                "a master that ends in peace waits for its callback's end"
            );
        }
        eventually(SOON, "end of the callback and its child", async || {
            ensure!(
                !alive(run.pid) && !alive(run.read().children[0]),
                "after kill = {kill}"
            );
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_text_is_a_callback_as_well() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:")
        .patient()
        .set(
            "shell-callback",
            r#"printf '{"md5":"%s"}' "$(printf %s "$PODS" | md5sum | cut -c1-32)""#,
        )
        .start()
        .await;
    cluster.api(0).ping(&PodSpec::number(0)).await.unwrap();
    let view = cluster.handled(0, 1).await;
    let state = cluster.api(0).state().await.unwrap();
    assert_eq!(
        from_proto(state.state.as_ref()),
        json!({"md5": view.digest})
    );
}
