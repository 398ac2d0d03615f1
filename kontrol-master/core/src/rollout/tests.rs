//! What a rollout promises, by example.

mod network;

use super::*;
use std::collections::BTreeMap;

type Roster = BTreeMap<u128, String>;

impl Incarnations for Roster {
    fn nonce(&self, key: PodKey) -> Option<&str> {
        self.get(&key.as_u128()).map(String::as_str)
    }
}

fn limits() -> Limits {
    Limits {
        concurrency: usize::MAX,
        batch: usize::MAX,
        max_failures: 0,
        attach: Duration::from_secs(3),
        window: 8,
        tail: 4,
    }
}

fn target(host: u128, nonce: &str) -> Target {
    let key = PodKey::from_u128(host);
    Target {
        key: key.to_string(),
        id: format!("pod-{host}"),
        pod: Ok(key),
        nonce: nonce.into(),
    }
}

fn slave(host: u128, nonce: &str) -> Slave {
    Slave {
        key: PodKey::from_u128(host),
        nonce: nonce.into(),
    }
}

fn roster(hosts: std::ops::Range<u128>) -> Roster {
    hosts.map(|host| (host, "a".to_owned())).collect()
}

fn rollout(hosts: std::ops::Range<u128>, limits: Limits) -> Rollout {
    Rollout::new(hosts.map(|host| target(host, "a")).collect(), limits)
}

fn exited(exit_code: i32) -> Said {
    Said::Finished(Ended {
        outcome: Outcome::Exited,
        exit_code,
        ..Ended::untold(Outcome::Exited, "")
    })
}

fn effects(rollout: &mut Rollout) -> Vec<Effect> {
    std::iter::from_fn(|| rollout.effect()).collect()
}

fn outcomes(rollout: &Rollout) -> Vec<Option<Outcome>> {
    let targets = 0..rollout.targets().count();
    targets
        .map(|index| rollout.ended(index).map(|ended| ended.outcome))
        .collect()
}

#[test]
fn turns_are_taken_as_far_as_concurrency_allows() {
    let (now, roster) = (Instant::now(), roster(0..3));
    let mut rollout = rollout(
        0..3,
        Limits {
            concurrency: 2,
            ..limits()
        },
    );
    rollout.advance(now, &roster);
    let first = vec![slave(0, "a"), slave(1, "a")];
    assert_eq!(effects(&mut rollout), [Effect::Order(Order::Run, first)]);
    rollout.said(&slave(1, "a"), exited(0));
    rollout.advance(now, &roster);
    assert_eq!(
        effects(&mut rollout),
        [
            Effect::Order(Order::Forget, vec![slave(1, "a")]),
            Effect::Tell(Event::Finished(1)),
            Effect::Order(Order::Run, vec![slave(2, "a")]),
        ]
    );
    for host in [0, 2] {
        rollout.said(&slave(host, "a"), exited(0));
    }
    assert!(rollout.is_over());
    assert_eq!(
        (rollout.counts().succeeded, rollout.counts().ended()),
        (3, 3)
    );
}

#[test]
fn too_many_failures_stop_the_rollout_and_leave_alone_what_runs() {
    let (now, roster) = (Instant::now(), roster(0..4));
    let (concurrency, max_failures) = (2, 1);
    let mut rollout = rollout(
        0..4,
        Limits {
            concurrency,
            max_failures,
            ..limits()
        },
    );
    rollout.advance(now, &roster);
    rollout.said(&slave(0, "a"), exited(3));
    rollout.advance(now, &roster);
    rollout.said(&slave(1, "a"), exited(0));
    assert!(rollout.is_over() && rollout.counts().stopped);
    let [exited, cancelled] = [Outcome::Exited, Outcome::Cancelled].map(Some);
    assert_eq!(outcomes(&rollout), [exited, exited, cancelled, cancelled]);
    let why = &rollout.ended(3).unwrap().error;
    assert_eq!(why, "the rollout stopped after 1 failures");
}

#[test]
fn what_is_not_there_is_told_and_not_ignored() {
    let (now, roster) = (Instant::now(), roster(0..1));
    let unknown = Target {
        pod: Err("no live pod has this key".into()),
        ..target(7, "")
    };
    let mut rollout = Rollout::new(vec![target(5, "a"), unknown, target(0, "a")], limits());
    rollout.advance(now, &roster);
    let slave = slave(0, "a");
    rollout.missed(&slave, false, now);
    rollout.tick(now + Duration::from_secs(2), &roster);
    assert!(!rollout.is_over(), "it may attach yet");
    rollout.missed(&slave, false, now + Duration::from_secs(2));
    rollout.tick(now + Duration::from_secs(3), &roster);
    assert!(rollout.is_over());
    assert_eq!(outcomes(&rollout), [Some(Outcome::Unreachable); 3]);
    assert_eq!(rollout.counts().unreachable, 3);
}

#[test]
fn a_pod_that_restarted_gets_the_order_only_if_the_one_before_surely_did_not() {
    let now = Instant::now();
    let later = now + Duration::from_secs(2);
    let restarted = Roster::from([(0, "b".to_owned())]);
    for got in [false, true] {
        let mut rollout = rollout(0..1, limits());
        rollout.advance(now, &roster(0..1));
        if got {
            rollout.detached(&slave(0, "a"), now);
        } else {
            rollout.missed(&slave(0, "a"), false, now);
        }
        effects(&mut rollout);
        rollout.tick(now, &restarted);
        rollout.tick(later, &restarted);
        if got {
            assert_eq!(outcomes(&rollout), [Some(Outcome::Lost)]);
        } else {
            let run = Effect::Order(Order::Run, vec![slave(0, "b")]);
            assert_eq!(effects(&mut rollout), [run]);
        }
    }
}

#[test]
fn cancel_ends_at_once_who_never_got_it_and_tells_the_others() {
    let (now, roster) = (Instant::now(), roster(0..3));
    let mut rollout = rollout(
        0..3,
        Limits {
            concurrency: 2,
            ..limits()
        },
    );
    rollout.advance(now, &roster);
    rollout.missed(&slave(1, "a"), false, now);
    effects(&mut rollout);
    rollout.cancel(now);
    rollout.advance(now, &roster);
    let cancelled = Some(Outcome::Cancelled);
    assert_eq!(outcomes(&rollout), [None, cancelled, cancelled]);
    let told = Effect::Order(Order::Cancel, vec![slave(0, "a")]);
    assert!(effects(&mut rollout).contains(&told));
    rollout.said(&slave(0, "a"), Said::Unknown);
    assert_eq!(outcomes(&rollout), [cancelled; 3]);
}

#[test]
fn an_adopted_action_is_followed_or_cancelled_and_never_begun() {
    let now = Instant::now();
    let ended = Ended::untold(Outcome::Refused, "policy");
    let targets = || {
        vec![
            adopted(target(0, "a"), None),
            adopted(target(1, "a"), Some(ended.clone())),
        ]
    };
    let counts = Counts {
        targets: 2,
        refused: 1,
        ..Counts::default()
    };
    let resume = Effect::Order(
        Order::Resume {
            stdout: 0,
            stderr: 0,
        },
        vec![slave(0, "a")],
    );
    let cancel = Effect::Order(Order::Cancel, vec![slave(0, "a")]);
    for detached in [false, true] {
        let mut rollout = Rollout::adopt(targets(), counts, detached, limits(), now);
        rollout.advance(now, &roster(0..2));
        rollout.attached(&slave(0, "a"), now);
        let done = effects(&mut rollout);
        assert_eq!(done[0], resume);
        assert_eq!(done.contains(&cancel), !detached);
        rollout.said(&slave(0, "a"), Said::Unknown);
        // The master before may be alive, and order it yet.
        assert_eq!(effects(&mut rollout), std::slice::from_ref(&cancel));
        assert!(!rollout.is_over());
        rollout.said(&slave(0, "a"), Said::Unknown);
        assert!(rollout.is_over());
        assert_eq!(
            (rollout.counts().refused, rollout.counts().cancelled),
            (1, 1)
        );
    }
}

fn adopted(target: Target, ended: Option<Ended>) -> Adopted {
    let tails = ["out".to_owned(), String::new()];
    Adopted {
        target,
        ended,
        tails,
    }
}

#[test]
fn of_an_adopted_action_everything_that_its_record_had_is_kept_and_everything_ends() {
    let now = Instant::now();
    let ended = Ended::untold(Outcome::Refused, "policy");
    let ghost = Target {
        key: String::new(),
        pod: Err(String::new()),
        nonce: String::new(),
        ..target(7, "")
    };
    let targets = vec![
        adopted(target(0, "a"), None),
        adopted(target(1, "a"), Some(ended)),
        adopted(ghost, None),
        adopted(target(3, ""), None),
    ];
    // One more succeeded, and of one the record has nothing.
    let counts = Counts {
        targets: 6,
        succeeded: 1,
        refused: 1,
        stopped: true,
        ..Counts::default()
    };
    let mut rollout = Rollout::adopt(targets, counts, true, limits(), now);
    assert!(!rollout.is_over());
    rollout.said(&slave(0, "a"), exited(0));
    assert!(rollout.is_over());
    let expected = Counts {
        succeeded: 2,
        unreachable: 2,
        lost: 1,
        ..counts
    };
    assert_eq!(rollout.counts(), expected);
    let tails = rollout.records().into_iter();
    assert_eq!(
        tails.map(|one| one.stdout_tail).collect::<Vec<_>>(),
        ["out"; 4]
    );
}

#[test]
fn large_commands_start_in_batches() {
    let (now, roster) = (Instant::now(), roster(0..5));
    let limits = Limits {
        batch: 2,
        ..limits()
    };
    let mut rollout = rollout(0..5, limits);
    let mut started = |at| {
        rollout.advance(at, &roster);
        let orders = effects(&mut rollout).into_iter();
        orders
            .map(|effect| match effect {
                Effect::Order(Order::Run, slaves) => slaves.len(),
                other @ (Effect::Order(..) | Effect::Tell(_)) => panic!("{other:?}"),
            })
            .sum::<usize>()
    };
    assert_eq!((started(now), started(now)), (2, 0));
    assert_eq!((started(now + PACE), started(now + PACE)), (2, 0));
    assert_eq!(started(now + 3 * PACE), 1);
}

#[test]
fn a_late_word_of_an_order_that_missed_is_no_certainty_about_the_next_one() {
    let (now, roster) = (Instant::now(), roster(0..1));
    let mut rollout = rollout(0..1, limits());
    rollout.advance(now, &roster);
    // It attached elsewhere, never got the first order, and gets another.
    rollout.attached(&slave(0, "a"), now);
    rollout.said(&slave(0, "a"), Said::Unknown);
    effects(&mut rollout);
    rollout.missed(&slave(0, "a"), false, now);
    rollout.tick(now + RETRY, &roster);
    let resume = Order::Resume {
        stdout: 0,
        stderr: 0,
    };
    assert_eq!(
        effects(&mut rollout),
        [Effect::Order(resume, vec![slave(0, "a")])]
    );
}

#[test]
fn more_than_a_slave_has_credit_for_is_not_taken_and_offsets_without_end_break_nothing() {
    let (now, roster) = (Instant::now(), roster(0..1));
    let mut rollout = rollout(0..1, limits());
    rollout.advance(now, &roster);
    let output = |offset| Said::Output {
        stream: Stream::Stdout,
        offset,
        data: vec![0; 32 * 1024].into(),
        truncated: false,
    };
    for piece in 0..100 {
        rollout.said(&slave(0, "a"), output(piece * 32 * 1024));
    }
    let taken = effects(&mut rollout).into_iter();
    let taken = taken.filter(|effect| matches!(effect, Effect::Tell(Event::Output { .. })));
    assert_eq!(taken.count() as u64, MOST_ON_ITS_WAY / (32 * 1024) + 1);
    for _ in 0..100 {
        rollout.taken(0, Stream::Stdout, 32 * 1024);
    }
    rollout.said(&slave(0, "a"), output(u64::MAX - 5));
    rollout.taken(0, Stream::Stdout, 32 * 1024);
    rollout.said(&slave(0, "a"), exited(0));
    assert!(rollout.ended(0).unwrap().truncated);
}

#[test]
fn an_end_that_comes_without_the_last_of_the_output_says_so() {
    let (now, roster) = (Instant::now(), roster(0..2));
    let mut rollout = rollout(0..2, limits());
    rollout.advance(now, &roster);
    for (host, bytes) in [(0, 5), (1, 6)] {
        let output = Said::Output {
            stream: Stream::Stdout,
            offset: 0,
            data: "hello".into(),
            truncated: false,
        };
        rollout.said(&slave(host, "a"), output);
        let ended = Ended {
            stdout_bytes: bytes,
            ..Ended::untold(Outcome::Exited, "")
        };
        // The master that it was thought to be taken over by took the rest.
        rollout.said(&slave(host, "a"), Said::Finished(ended));
    }
    let truncated = |index| rollout.ended(index).unwrap().truncated;
    assert_eq!((truncated(0), truncated(1)), (false, true));
}

#[test]
fn an_order_that_a_slave_lost_is_asked_for_again_and_runs_once() {
    let (mut now, roster) = (Instant::now(), roster(0..1));
    let mut rollout = rollout(0..1, limits());
    rollout.advance(now, &roster);
    let run = Effect::Order(Order::Run, vec![slave(0, "a")]);
    assert_eq!(effects(&mut rollout), std::slice::from_ref(&run));
    let mut until_asked = |rollout: &mut Rollout, asked: Order| {
        let start = now;
        let asked = Effect::Order(asked, vec![slave(0, "a")]);
        loop {
            now += Duration::from_millis(250);
            rollout.tick(now, &roster);
            match effects(rollout).as_slice() {
                [] => assert!(now - start < 2 * LONGEST_SILENCE, "never asked"),
                [done, ..] => {
                    assert_eq!(*done, asked);
                    break now - start;
                }
            }
        }
    };
    let resume = |stdout| Order::Resume { stdout, stderr: 0 };
    // Asked, and not ordered: it may have it, and wait for its turn. The less it says, the less it is asked.
    let first = until_asked(&mut rollout, resume(0));
    let second = until_asked(&mut rollout, resume(0));
    assert!(second > first, "{first:?} {second:?}");
    rollout.said(&slave(0, "a"), Said::Unknown);
    assert_eq!(effects(&mut rollout), [run]);
    assert_eq!(until_asked(&mut rollout, resume(0)), first);
    // One that runs and writes nothing is asked now and then, one that does not end when it should, soon.
    rollout.said(&slave(0, "a"), Said::Started);
    effects(&mut rollout);
    assert!(until_asked(&mut rollout, resume(0)) >= LONGEST_SILENCE);
    rollout.said(&slave(0, "a"), Said::Started);
    rollout.cancel(now);
    effects(&mut rollout);
    let mut at = now;
    let cancel = Effect::Order(Order::Cancel, vec![slave(0, "a")]);
    let done = loop {
        at += Duration::from_millis(250);
        rollout.tick(at, &self::roster(0..1));
        let done = effects(&mut rollout);
        if !done.is_empty() {
            break done;
        }
    };
    assert!(
        done.contains(&cancel) && at - now <= 2 * SILENCE,
        "{done:?}"
    );
}

#[test]
fn a_master_that_is_not_sure_tries_again_and_gives_nobody_up() {
    let (now, nobody) = (Instant::now(), Roster::new());
    let mut rollout = rollout(0..2, limits());
    rollout.advance(now, &roster(0..2));
    rollout.missed(&slave(0, "a"), true, now);
    rollout.detached(&slave(1, "a"), now);
    effects(&mut rollout);
    let later = now + 2 * PATIENCE;
    rollout.tick_unsure(later);
    assert_eq!(outcomes(&rollout), [None, None]);
    let resume = Order::Resume {
        stdout: 0,
        stderr: 0,
    };
    let tried = [
        Effect::Order(Order::Run, vec![slave(0, "a")]),
        Effect::Order(resume, vec![slave(1, "a")]),
    ];
    assert_eq!(effects(&mut rollout), tried);
    // Sure again, it asks everybody, who then have their time.
    rollout.missed_some(later);
    for host in 0..2 {
        rollout.missed(&slave(host, "a"), false, later);
    }
    rollout.tick(later, &roster(0..2));
    assert_eq!(outcomes(&rollout), [None, None]);
    rollout.tick(later, &nobody);
    rollout.tick(later + LINGER, &nobody);
    assert!(rollout.is_over());
}

#[test]
fn a_slave_that_has_too_many_orders_is_asked_again() {
    let (now, roster) = (Instant::now(), roster(0..1));
    let mut rollout = rollout(0..1, limits());
    rollout.advance(now, &roster);
    effects(&mut rollout);
    let mut at = now;
    for _ in 0..100 {
        rollout.missed(&slave(0, "a"), true, at);
        at += BUSY_RETRY;
        rollout.tick(at, &roster);
        let run = Effect::Order(Order::Run, vec![slave(0, "a")]);
        assert_eq!(effects(&mut rollout), [run]);
    }
    rollout.missed(&slave(0, "a"), true, at);
    rollout.tick(now + PATIENCE, &roster);
    assert_eq!(outcomes(&rollout), [Some(Outcome::Unreachable)]);
}
