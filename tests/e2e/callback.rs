//! The callback: what it is given, what becomes of what it says, when it runs and when it must not.

use anyhow::ensure;
use kontrol_tests::pod::from_proto;
use kontrol_tests::{
    SLACK, SOON,
    cluster::Cluster,
    etcd::Etcd,
    fleet::Fleet,
    heavy,
    pod::PodSpec,
    process::alive,
    script::{Plan, Recorder},
    small,
    wait::{eventually, throughout},
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
        let view = cluster.ensemble(0, "failure", |view| {
            let status = view.callback.clone().unwrap_or_default();
            status.failures > 0 && status.last_run.is_some_and(|run| !run.error.is_empty())
        });
        assert_ne!(
            view.await.handled_digest,
            api.ensemble().await.unwrap().digest
        );
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
async fn a_change_during_a_run_is_handled_by_a_later_one() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    recorder.plan(&Plan {
        takes: Duration::from_secs(2),
        ..Plan::default()
    });
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(0)).await.unwrap();
    eventually(SOON, "running callback", async || {
        ensure!(
            recorder
                .runs()
                .iter()
                .any(|run| run.read.as_ref().is_some_and(|read| read.pods == 1))
        );
        Ok(())
    })
    .await;
    api.ping(&PodSpec::number(1)).await.unwrap();
    let view = cluster.handled(0, 2).await;
    assert_eq!(recorder.successes().last().unwrap().hash, view.digest);
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roster_that_goes_back_to_what_was_handled_runs_nothing() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let damper = Duration::from_secs(2);
    let cluster = Cluster::on(&etcd.store())
        .patient()
        .damper(damper)
        .callback(&recorder)
        .start()
        .await;
    let api = cluster.api(0);
    let pod = PodSpec::number(0);
    api.ping(&pod).await.unwrap();
    cluster.handled(0, 1).await;
    let runs = recorder.runs().len();
    api.ping(&pod.clone().payload("away".into())).await.unwrap();
    api.ping(&pod).await.unwrap();
    throughout(damper * 2, "no run", async || {
        ensure!(recorder.runs().len() == runs, "{:#?}", recorder.runs());
        Ok(())
    })
    .await;
    // Nor does a state that is put by hand.
    api.put_state(&json!({"by": "hand"})).await.unwrap();
    throughout(damper * 2, "no run", async || {
        ensure!(recorder.runs().len() == runs, "{:#?}", recorder.runs());
        Ok(())
    })
    .await;
    let put = api
        .http(
            "PUT",
            "/v1/state",
            Some(&json!({"state": {"by": "http", "runs": 40}})),
        )
        .await;
    put.ok();
    api.ping(&PodSpec::number(1)).await.unwrap();
    cluster.handled(0, 2).await;
    let last = recorder.runs().pop().unwrap();
    assert_eq!(last.read().state, Some(json!({"by": "http", "runs": 40})));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_endless_change_runs_start_within_the_dampers_bound() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let bound = Duration::from_secs(3);
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .damper(Duration::from_secs(1))
        .set("damper-max", "3s")
        .callback(&recorder)
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(1), 0, 20);
    fleet.joined().await;
    cluster.handled(0, 20).await;
    let quiet = recorder.runs().len();
    let start = kontrol_tests::script::now();
    // A change every 200 ms or less: the damper alone would never fire.
    for round in 0..60 {
        fleet.change(round % 20, |pod| pod.payload(round.into()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let end = kontrol_tests::script::now();
    let runs = recorder.runs();
    let mut starts = vec![start];
    starts.extend(runs[quiet..].iter().map(|run| run.start));
    starts.push(end);
    assert!(starts.len() >= 4, "{starts:?}");
    for pair in starts.windows(2) {
        let gap = Duration::from_secs_f64((pair[1] - pair[0]).max(0.0));
        assert!(gap <= bound + SLACK, "{gap:?} without a start: {starts:?}");
    }
    let most = (end - start).ceil() as usize;
    assert!(
        runs.len() - quiet <= most,
        "the damper holds back: {} runs in {most} s",
        runs.len() - quiet
    );
    let view = cluster
        .ensemble(0, "handled storm", |view| {
            view.handled_digest == view.digest
        })
        .await;
    let list = cluster.api(1).pods().await.unwrap();
    assert_eq!(list.digest, view.digest);
    assert_eq!(
        recorder.successes().last().unwrap().hash,
        view.digest,
        "the last run saw the final roster"
    );
    recorder.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_pods_reach_it_whole() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let recorder = Recorder::python();
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .damper(Duration::from_secs(2))
        .callback(&recorder)
        .start()
        .await;
    let fleet = Fleet::numbered(&cluster.urls(), Duration::from_secs(15), 0, 3000);
    let seqs = fleet.joined().await;
    let mut given: Vec<u64> = seqs.into_values().collect();
    given.sort_unstable();
    assert_eq!(
        given,
        (0..3000).collect::<Vec<u64>>(),
        "each seq once, and none lost"
    );
    let view = cluster.handled(0, 3000).await;
    let run = recorder.successes().pop().unwrap();
    let read = run.read();
    assert_eq!((read.pods, &run.hash), (3000, &view.digest));
    assert_eq!(
        read.md5_of_pods, None,
        "PODS is over 128 KiB, so there is no such variable"
    );
    assert_eq!(read.md5_of_file.as_ref(), Some(&run.hash));
    assert_eq!(read.stdin_agrees, Some(true));
    recorder.check();
    let log = cluster
        .masters
        .iter()
        .map(kontrol_tests::node::Master::log)
        .collect::<String>();
    assert!(log.contains("PODS"), "the log says that PODS was left out");

    // A callback that doesn't read its standard input is fine as well.
    recorder.plan(&Plan {
        reads_stdin: false,
        ..Plan::default()
    });
    fleet.leave(0).await;
    cluster.handled(0, 2999).await;
    fleet.nobody_was_lost();
    recorder.check();
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
