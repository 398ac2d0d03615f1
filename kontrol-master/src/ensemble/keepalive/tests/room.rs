//! What a master takes that was told to take less than the most.

use super::*;

fn pod(host: u8) -> Report {
    Report {
        beat: 1,
        ..report(host)
    }
}

fn is_full(answer: &Result<Committed, Error>) -> bool {
    matches!(answer, Err(Error::Exhausted(why)) if why.contains("has its 2 pods (--max-pods)"))
}

async fn small(store: &SharedStore) -> Master {
    let limits = Limits {
        pods: 2,
        payload_bytes: 4,
        ..Limits::default()
    };
    Master::taking(store, limits).await
}

#[tokio::test(start_paused = true)]
async fn a_full_ensemble_takes_no_other_pod_and_keeps_those_that_it_has() {
    let store = memory();
    let master = small(&store).await;
    for host in [1, 2] {
        master.take(pod(host)).await.unwrap();
    }
    master.catch_up().await;
    assert!(is_full(&master.take(pod(3)).await));
    // It says something new, another start has its place, and another pod has.
    let news = Report {
        payload: json!("ab"),
        beat: 2,
        ..report(1)
    };
    master.take(news).await.unwrap();
    master.take(start("bb", 1)).await.unwrap();
    let other = Report {
        id: "other".into(),
        nonce: "cc".into(),
        ..report(1)
    };
    master.take(other).await.unwrap();
    master.catch_up().await;
    assert!(is_full(&master.take(pod(3)).await));
    master.take(down(pod(2))).await.unwrap();
    master.catch_up().await;
    master.take(pod(3)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn those_count_that_the_roster_does_not_show_yet() {
    let store = memory();
    let master = small(&store).await;
    master.client.behind.send_replace(true);
    // Of those that come at once, in one transaction, as well.
    let answers = futures::future::join_all((1..=9).map(|host| master.take(pod(host)))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2);
    assert_eq!(answers.iter().filter(|answer| is_full(answer)).count(), 7);
    assert!(is_full(&master.take(pod(10)).await));
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_once_can_be_written_again_though_it_would_not_be_taken_now() {
    let store = memory();
    let large = |beat| Report {
        payload: json!("large"),
        beat,
        ..report(1)
    };
    Master::on(&store).await.take(large(1)).await.unwrap();
    let master = small(&store).await;
    master.catch_up().await;
    let again = master.committer.commit(large(2), true).await.unwrap();
    assert!(!again.unchanged);
    let larger = Report {
        payload: json!("larger"),
        beat: 3,
        ..report(1)
    };
    let refused = master.take(larger).await.unwrap_err().to_string();
    assert_eq!(
        refused,
        "payload has 8 bytes of JSON, and 4 are the limit (--max-payload)"
    );
}
