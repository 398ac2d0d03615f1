//! Actions on real slaves: who gets them, what runs, what comes back, and what the history keeps.

mod command_line;
mod execution;
mod idle;
mod lost;
mod output;
mod scale;
mod serving;

use anyhow::ensure;
use kontrol_proto::v1::{ActionState, Outcome, Selector};
use kontrol_tests::{
    SOON,
    action::{Told, all, argv, ids, shell, span},
    cluster::Cluster,
    crew::{self, Crew},
    etcd::Etcd,
    heavy,
    pod::PodSpec,
    small,
    wait::eventually,
};
use std::{collections::BTreeSet, fs, time::Duration};
use tokio::time::Instant;
use tonic::Code;

/// A tier of three masters on etcd, with a crew.
async fn tier(etcd: &Etcd, size: usize) -> (Cluster, Crew) {
    let mut cluster = Cluster::on(&etcd.store())
        .masters(3)
        .patient()
        .start()
        .await;
    let crew = Crew::start(&mut cluster, size).await;
    (cluster, crew)
}

/// One master without etcd, with a crew.
pub(super) async fn alone(size: usize) -> (Cluster, Crew) {
    let mut cluster = Cluster::on("memory:").patient().start().await;
    let crew = Crew::start(&mut cluster, size).await;
    (cluster, crew)
}

fn finished(told: &Told) -> BTreeSet<String> {
    told.finished.keys().cloned().collect()
}

fn keys(indices: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    indices.into_iter().map(crew::key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_slaves_are_reached_from_each_master_and_each_answers_once() {
    let _permit = heavy().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    const SIZE: usize = 200;
    let (cluster, _crew) = tier(&etcd, SIZE).await;
    let log = cluster.dir.path().join("runs");
    let text = format!(
        "echo $KONTROL_KEY >> {}; echo out $KONTROL_ID; echo err >&2",
        log.display()
    );
    for index in 0..3 {
        let told = cluster.api(index).run(shell(all(), &text)).await;
        assert_eq!(finished(&told), keys(0..SIZE));
        assert_eq!(
            told.summary.as_ref().unwrap().succeeded as usize,
            SIZE,
            "{told:?}"
        );
        for number in 0..SIZE {
            let key = crew::key(number);
            let said = String::from_utf8(told.stdout[&key].clone()).unwrap();
            assert_eq!(said, format!("out slave-{number}\n"));
            assert_eq!(told.stderr[&key], b"err\n");
        }
    }
    let runs = fs::read_to_string(&log).unwrap();
    assert_eq!(
        runs.lines().count(),
        3 * SIZE,
        "each ran once for each dispatch"
    );
    let spread: Vec<usize> =
        futures::future::join_all(cluster.urls().iter().map(|url| crew::attached_to(url)))
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
    assert!(
        spread.iter().all(|slaves| *slaves > SIZE / 10),
        "{spread:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_choose_by_key_id_role_label_or_all_and_tell_what_is_not_there() {
    let _permit = small().await;
    let (cluster, _crew) = alone(4).await;
    let api = cluster.api(0);
    let run = async |selector: Selector| api.run(argv(selector, &["true"])).await;
    let selector = Selector::default;
    for (selector, expected) in [
        (all(), keys(0..4)),
        (
            Selector {
                keys: vec![crew::key(1)],
                ..selector()
            },
            keys([1]),
        ),
        (ids(&["slave-0", "slave-3"]), keys([0, 3])),
        (
            Selector {
                roles: vec!["web".into()],
                ..selector()
            },
            keys([0, 2]),
        ),
        (
            Selector {
                labels: "number in (1,2)".into(),
                ..selector()
            },
            keys([1, 2]),
        ),
        (
            Selector {
                roles: vec!["db".into()],
                labels: "number!=1".into(),
                ..selector()
            },
            keys([3]),
        ),
        (
            Selector {
                labels: "none".into(),
                ..selector()
            },
            keys([]),
        ),
    ] {
        let told = run(selector.clone()).await;
        assert_eq!(finished(&told), expected, "{selector:?}");
    }
    let unknown = Selector {
        keys: vec!["zz".into()],
        ..ids(&["slave-0", "nobody"])
    };
    let told = run(unknown).await;
    assert_eq!(told.count(Outcome::Exited), 1);
    for name in ["zz", "nobody"] {
        let result = &told.finished[name];
        assert_eq!(result.outcome(), Outcome::Unreachable, "{result:?}");
        assert!(result.error.contains("no live pod"), "{result:?}");
    }
    let nothing = api.dispatch(argv(selector(), &["true"])).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    assert!(nothing.message().contains("selector"), "{nothing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_slave_is_unreachable_and_holds_nobody_up() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let api = cluster.api(0);
    api.ping(&PodSpec::number(7)).await.unwrap();
    let start = Instant::now();
    let mut dispatch = api.dispatch(argv(all(), &["true"])).await.unwrap();
    dispatch
        .until(SOON, "end of the slave", |told| {
            told.finished.contains_key(&crew::key(0))
        })
        .await;
    assert!(start.elapsed() < Duration::from_secs(2));
    let told = dispatch.finish(SOON).await;
    let result = &told.finished[&PodSpec::number(7).expected_key()];
    assert_eq!(result.outcome(), Outcome::Unreachable);
    assert!(result.error.contains("not attached"), "{result:?}");
    assert_eq!(result.exit_code, -1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_in_steps_and_stops_after_too_many_failures() {
    let _permit = small().await;
    let (cluster, _crew) = alone(6).await;
    let api = cluster.api(0);
    let log = cluster.dir.path().join("steps");
    let text = format!(
        "echo + >> {0}; sleep 0.2; echo - >> {0}; [ $KONTROL_ID != slave-2 ]",
        log.display()
    );
    let mut request = shell(all(), &text);
    request.concurrency = 2;
    let told = api.run(request.clone()).await;
    let summary = told.summary.as_ref().unwrap();
    assert_eq!(
        (summary.succeeded, summary.failed, summary.stopped),
        (5, 1, false)
    );
    let (mut now, mut most) = (0_i32, 0);
    for line in fs::read_to_string(&log).unwrap().lines() {
        now += if line == "+" { 1 } else { -1 };
        most = most.max(now);
    }
    assert_eq!((now, most), (0, 2));

    request.concurrency = 1;
    request.max_failures = 1;
    request.command.as_mut().unwrap().shell = "false".into();
    let told = api.run(request).await;
    let summary = told.summary.as_ref().unwrap();
    assert_eq!(
        (summary.failed, summary.cancelled, summary.stopped),
        (1, 5, true)
    );
    assert_eq!(told.started.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_is_cancelled_by_any_master_or_by_the_departure_of_its_dispatcher() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let (cluster, _crew) = tier(&etcd, 2).await;
    let mark = cluster.dir.path().join("mark");
    let text = format!("echo $$ >> {}; echo up; sleep 600", mark.display());
    // A command that was started may be cancelled before its shell does a thing.
    let up = |told: &Told| told.stdout.len() == 2;
    let gone = async || {
        eventually(SOON, "end of the commands", async || {
            for pid in fs::read_to_string(&mark)?.lines() {
                ensure!(!kontrol_tests::process::alive(pid.parse()?), "{pid} runs");
            }
            Ok(())
        })
        .await;
    };
    let mut dispatch = cluster.api(0).dispatch(shell(all(), &text)).await.unwrap();
    dispatch.until(SOON, "commands that are up", up).await;
    let action = dispatch.told.action.clone();
    assert!(!cluster.api(1).cancel(&action).await.unwrap());
    let told = dispatch.finish(SOON).await;
    assert_eq!(told.count(Outcome::Cancelled), 2, "{told:?}");
    gone().await;
    eventually(SOON, "record of the end", async || {
        ensure!(cluster.api(2).cancel(&action).await?, "still runs there");
        Ok(())
    })
    .await;
    let unknown = cluster.api(0).cancel(&"0".repeat(28)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut dispatch = cluster.api(1).dispatch(shell(all(), &text)).await.unwrap();
    dispatch.until(SOON, "commands that are up", up).await;
    let action = dispatch.told.action.clone();
    drop(dispatch);
    gone().await;
    eventually(SOON, "record of the end", async || {
        let action = cluster.api(0).action(&action).await?;
        ensure!(action.state() == ActionState::Finished, "{action:?}");
        let summary = action.summary.unwrap();
        ensure!(summary.cancelled == 2, "{summary:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_action_outlives_its_dispatcher() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let (cluster, _crew) = tier(&etcd, 2).await;
    let gate = cluster.dir.path().join("gate");
    let text = format!(
        "until [ -e {} ]; do sleep 0.05; done; echo done",
        gate.display()
    );
    let mut request = shell(all(), &text);
    request.detach = true;
    let mut dispatch = cluster.api(0).dispatch(request).await.unwrap();
    dispatch
        .until(SOON, "start", |told| told.started.len() == 2)
        .await;
    let action = dispatch.told.action.clone();
    drop(dispatch);
    fs::write(&gate, "").unwrap();
    eventually(SOON, "end of the detached action", async || {
        let action = cluster.api(2).action(&action).await?;
        ensure!(action.state() == ActionState::Finished, "{action:?}");
        ensure!(action.detach && action.summary.as_ref().unwrap().succeeded == 2);
        ensure!(
            action
                .results
                .iter()
                .all(|result| &result.stdout_tail[..] == b"done\n")
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_the_same_from_every_master_and_keeps_no_secrets() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let (cluster, _crew) = tier(&etcd, 2).await;
    let mut request = shell(all(), "yes line | head -c 100000; echo end; exit 4");
    let command = request.command.as_mut().unwrap();
    command.env.insert("TOKEN".into(), "hush-hush".into());
    command.input = Some(kontrol_tests::pod::to_proto(&"input-secret".into()));
    request.timeout = span(Duration::from_secs(33));
    let told = cluster.api(0).run(request).await;
    let mut seen = Vec::new();
    for index in 0..3 {
        let api = cluster.api(index);
        let action = eventually(SOON, "record of the end", async || {
            let action = api.action(&told.action).await?;
            ensure!(action.state() == ActionState::Finished, "{action:?}");
            Ok(action)
        })
        .await;
        let listed = eventually(SOON, "action in the list", async || {
            let listed = api.history().await?;
            ensure!(
                listed.len() == 1 && listed[0].finished.is_some(),
                "{listed:?}"
            );
            Ok(listed)
        })
        .await;
        assert!(listed[0].results.is_empty());
        seen.push(action);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:#?}");
    let action = &seen[0];
    assert_eq!(action.id, told.action);
    assert_eq!(action.master, "master-0");
    assert!(action.dispatcher.starts_with("127.0.0.1 "), "{action:?}");
    assert!(action.selector.as_ref().unwrap().all);
    assert_eq!(action.timeout, span(Duration::from_secs(33)));
    assert_eq!(action.summary.as_ref().unwrap().failed, 2);
    for result in &action.results {
        assert_eq!((result.outcome(), result.exit_code), (Outcome::Exited, 4));
        assert_eq!(result.stdout_bytes, 100_004);
        assert!(result.stdout_tail.ends_with(b"\nend\n") && result.stdout_tail.len() <= 4096);
    }
    let raw = etcd.read(&format!("{}actions/", cluster.prefix())).await;
    assert_eq!(raw.len(), 1);
    let record = raw.values().next().unwrap();
    for secret in ["input-secret", "hush-hush"] {
        assert!(!record.contains(secret), "{record}");
    }
    assert!(record.contains("\"TOKEN\""), "the name is kept: {record}");
    let none = cluster.api(1).action(&"0".repeat(28)).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let wrong = cluster.api(1).action("x").await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_forgets_in_time_on_every_store() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    for store in ["memory:".to_owned(), etcd.store()] {
        let mut cluster = Cluster::on(&store)
            .patient()
            .set("history", "10s")
            .start()
            .await;
        let _crew = Crew::start(&mut cluster, 1).await;
        let api = cluster.api(0);
        let told = api.run(argv(all(), &["true"])).await;
        assert_eq!(api.action(&told.action).await.unwrap().id, told.action);
        eventually(SOON * 2, "forgotten action", async || {
            ensure!(api.history().await?.is_empty(), "still there");
            Ok(())
        })
        .await;
    }
}
