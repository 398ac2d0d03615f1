//! Several that report from one place: they come to rest, and restarts do not count as such.

use super::*;

/// Reporters that fight over one place, each at a master of its own choice, for this long. Returns how many writes that
/// cost in all, and how many of them in the second half.
async fn fight(reporters: Vec<Report>, masters: usize, hours: u64) -> (i64, i64) {
    const INTERVAL: Duration = Duration::from_secs(10);
    let store = memory();
    let mut all = Vec::new();
    for _ in 0..masters {
        all.push(Master::on(&store).await);
    }
    let rounds = hours * 3600 / INTERVAL.as_secs();
    let mut half = 0;
    for round in 0..rounds {
        if round == rounds / 2 {
            half = store.snapshot().await.unwrap().revision;
        }
        let mut accepted = 0;
        for (number, reporter) in reporters.iter().enumerate() {
            let report = Report {
                beat: round + 1,
                ..reporter.clone()
            };
            match all[number % masters].take(report).await {
                Ok(_) => accepted += 1,
                Err(Error::Superseded(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(accepted > 0, "somebody has the place");
        sleep(INTERVAL).await;
    }
    let end = store.snapshot().await.unwrap().revision;
    (end, end - half)
}

#[tokio::test(start_paused = true)]
async fn as_many_pods_on_one_address_as_there_may_be_come_to_rest() {
    let pods = |count: usize, nonces: bool| -> Vec<Report> {
        let pod = |number| Report {
            id: format!("p{number}"),
            nonce: if nonces {
                format!("n{number}")
            } else {
                String::new()
            },
            ..report(1)
        };
        (0..count).map(pod).collect()
    };
    let starts = |count: usize| -> Vec<Report> {
        (0..count)
            .map(|number| start(&format!("n{number}"), 1))
            .collect()
    };
    for few in [pods(3, true), pods(3, false), starts(3), pods(16, false)] {
        let count = i64::try_from(few.len()).unwrap();
        assert_eq!(fight(few, 2, 1).await, (count, 0), "each joins once");
    }
    for many in [pods(40, true), pods(40, false), starts(40)] {
        let (all, later) = fight(many, 2, 1).await;
        assert!(all < 200, "{all} writes");
        assert!(later <= 4, "{later} writes in the second half");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_restarted_again_and_again_is_never_refused() {
    let store = memory();
    let master = Master::on(&store).await;
    for number in 0..100 {
        let nonce = format!("n{number}");
        let accepted = master.take(start(&nonce, 1)).await.unwrap();
        assert_eq!(accepted.seq, 0, "it never left");
        if number > 0 {
            // What the one before has sent comes late.
            superseded(master.take(start(&format!("n{}", number - 1), 9)).await);
        }
        sleep(Duration::from_secs(200)).await;
    }
}
