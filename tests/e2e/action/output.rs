//! Output: whole and in order, or marked; streamed as it comes; and never more in memory than was asked for.

use super::alone;
use anyhow::ensure;
use kontrol_proto::v1::Outcome;
use kontrol_tests::{
    SOON,
    action::{all, shell, span},
    heavy, small,
    wait::eventually,
};
use std::{fs, time::Duration};

const MEBIBYTE: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_megabytes_come_whole_or_marked_and_stay_out_of_memory() {
    let _permit = heavy().await;
    let (mut cluster, mut crew) = alone(1).await;
    let api = cluster.api(0);
    let before = (
        crew.slaves[0].process().usage().resident_kib,
        cluster.masters[0].process().usage().resident_kib,
    );
    let mut request = shell(all(), "seq 1 100000000 | head -c 50000000");
    request.max_output = 64 * MEBIBYTE as u64;
    let told = api.run(request.clone()).await;
    let out = &told.stdout.values().next().unwrap()[..];
    assert_eq!(out.len(), 50_000_000);
    let mut at = 0;
    for number in 1.. {
        let line = format!("{number}\n");
        let rest = &out[at..];
        if rest.len() < line.len() {
            break;
        }
        assert!(rest.starts_with(line.as_bytes()), "at byte {at}");
        at += line.len();
    }
    assert!(!told.only().truncated && told.truncated.is_empty());

    request.max_output = 0;
    let told = api.run(request).await;
    let result = told.only();
    assert_eq!((result.outcome(), result.exit_code), (Outcome::Exited, 0));
    assert_eq!(told.stdout.values().next().unwrap().len(), MEBIBYTE);
    assert_eq!(result.stdout_bytes, 50_000_000);
    assert!(result.truncated && told.truncated.len() == 1);
    let after = (
        crew.slaves[0].process().usage().resident_kib,
        cluster.masters[0].process().usage().resident_kib,
    );
    assert!(
        after.0 < before.0 + 16 * 1024,
        "the slave: {before:?} {after:?} KiB"
    );
    assert!(
        after.1 < before.1 + 32 * 1024,
        "the master: {before:?} {after:?} KiB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_does_not_read_slows_the_command_and_nothing_piles_up() {
    let _permit = heavy().await;
    let (mut cluster, mut crew) = alone(1).await;
    let api = cluster.api(0);
    let progress = cluster.dir.path().join("progress");
    let text = format!(
        "i=0; while [ $i -lt 400 ]; do head -c 100000 /dev/zero; i=$((i+1)); echo $i > {}; done",
        progress.display()
    );
    let mut request = shell(all(), &text);
    request.max_output = 64 * MEBIBYTE as u64;
    let mut dispatch = api.dispatch(request).await.unwrap();
    dispatch
        .until(SOON, "start", |told| !told.started.is_empty())
        .await;
    let stalled = eventually(SOON, "command that waits", async || {
        let count =
            || -> anyhow::Result<u32> { Ok(fs::read_to_string(&progress)?.trim().parse()?) };
        let before = count()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(count()? == before, "it goes on");
        Ok(before)
    })
    .await;
    assert!(
        stalled < 200,
        "{stalled} of 400 pieces were written to nobody"
    );
    let usage = cluster.masters[0].process().usage().resident_kib;
    assert!(usage < 128 * 1024, "{usage} KiB");
    let usage = crew.slaves[0].process().usage().resident_kib;
    assert!(usage < 64 * 1024, "{usage} KiB");
    let told = dispatch.finish(SOON * 2).await;
    assert_eq!(told.stdout.values().next().unwrap().len(), 40_000_000);
    assert_eq!(told.only().exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_come_as_they_are_and_without_a_newline() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let api = cluster.api(0);
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let file = cluster.dir.path().join("bytes");
    fs::write(&file, &bytes).unwrap();
    let told = api
        .run(shell(
            all(),
            &format!("cat {0}; cat {0} >&2", file.display()),
        ))
        .await;
    assert_eq!(told.stdout.values().next().unwrap(), &bytes);
    assert_eq!(told.stderr.values().next().unwrap(), &bytes);
    let told = api.run(shell(all(), "printf no-newline")).await;
    assert_eq!(told.text(), "no-newline");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_told_while_the_command_runs_and_goes_on_after_it_closed_a_stream() {
    let _permit = small().await;
    let (cluster, _crew) = alone(1).await;
    let gate = cluster.dir.path().join("gate");
    let text = format!(
        "echo first; exec 1>&-; until [ -e {} ]; do sleep 0.02; done; echo second >&2; exit 5",
        gate.display()
    );
    let mut dispatch = cluster.api(0).dispatch(shell(all(), &text)).await.unwrap();
    dispatch
        .until(SOON, "first line", |told| !told.stdout.is_empty())
        .await;
    assert!(dispatch.told.finished.is_empty());
    fs::write(&gate, "").unwrap();
    let told = dispatch.finish(SOON).await;
    assert_eq!(told.text(), "first\n");
    assert_eq!(told.stderr.values().next().unwrap(), b"second\n");
    assert_eq!(told.only().exit_code, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_dispatches_at_once_to_one_slave_all_run_once_a_few_at_a_time() {
    let _permit = heavy().await;
    let (mut cluster, mut crew) = alone(1).await;
    let log = cluster.dir.path().join("runs");
    let text = format!("echo $KONTROL_ACTION >> {}", log.display());
    let mut request = shell(all(), &text);
    request.timeout = span(Duration::from_secs(120));
    // From ten dispatchers: a thousand connections at once would test the kernel's backlog.
    let apis: Vec<_> = (0..10).map(|_| cluster.api(0)).collect();
    let runs = (0..1000).map(|number| {
        let (api, request) = (&apis[number % apis.len()], request.clone());
        async move {
            let dispatch = api.dispatch(request).await.unwrap();
            dispatch.finish(SOON * 6).await
        }
    });
    let told = futures::future::join_all(runs).await;
    for one in &told {
        assert_eq!(one.count(Outcome::Exited), 1, "{one:?}");
        assert_eq!(one.only().exit_code, 0);
    }
    let mut lines: Vec<String> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(lines.len(), 1000);
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), 1000, "each action ran once");
    let slave = crew.slaves[0].process().usage().resident_kib;
    let master = cluster.masters[0].process().usage().resident_kib;
    assert!(
        slave < 64 * 1024 && master < 256 * 1024,
        "{slave} and {master} KiB"
    );
}
