//! What a rollout promises, against slaves and a network that misbehave at random.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

/// What each command writes.
const TEXT: &[u8] = b"0123456789abcdefghij";

/// A slave as the contract describes it, without processes.
#[derive(Debug, Default)]
struct Model {
    attached: bool,
    /// Orders and reports on their way; a channel that breaks loses them.
    orders: VecDeque<Order>,
    reports: VecDeque<Said>,
    runs: u32,
    cancelled: bool,
    started: bool,
    written: usize,
    sent: usize,
    credit: usize,
    ended: Option<Outcome>,
    told_end: bool,
    synced: bool,
}

impl Model {
    fn obey(&mut self, order: Order, again: bool) {
        match order {
            Order::Run if self.runs == 0 && self.cancelled => {
                self.runs = 1;
                self.ended = Some(Outcome::Cancelled);
                self.synced = true;
            }
            Order::Run if self.runs == 0 => {
                self.runs = 1;
                self.synced = true;
            }
            // An honest slave knows what it was told before.
            Order::Run => self.resume(self.credit),
            Order::Resume { stdout, .. } if self.runs > 0 => {
                self.resume(usize::try_from(stdout).unwrap());
            }
            Order::Resume { .. } => self.reports.push_back(Said::Unknown),
            Order::Credit { stdout, .. } => {
                self.credit = self.credit.max(usize::try_from(stdout).unwrap());
            }
            Order::Cancel if self.runs == 0 => {
                self.cancelled = true;
                self.reports.push_back(Said::Unknown);
            }
            Order::Cancel => {
                self.ended = self.ended.or(Some(Outcome::Cancelled));
            }
            Order::Forget => {
                assert!(self.ended.is_some() || again, "told to forget what runs");
            }
        }
    }

    fn resume(&mut self, offset: usize) {
        self.credit = self.credit.max(offset);
        self.sent = offset;
        self.synced = true;
        self.told_end = false;
        if self.started {
            self.reports.push_back(Said::Started);
        }
    }

    fn work(&mut self) {
        if self.runs == 0 {
            return;
        }
        if !self.started && self.ended.is_none() {
            self.started = true;
            if self.attached && self.synced {
                self.reports.push_back(Said::Started);
            }
        } else if self.ended.is_none() && self.written < TEXT.len() {
            let room = (self.credit + 8).saturating_sub(self.written);
            self.written += room.min(3).min(TEXT.len() - self.written);
        } else if self.ended.is_none() {
            self.ended = Some(Outcome::Exited);
        }
        if !(self.attached && self.synced) {
            return;
        }
        if self.sent < self.written {
            let data = &TEXT[self.sent..self.written];
            self.reports.push_back(Said::Output {
                stream: Stream::Stdout,
                offset: self.sent as u64,
                data: Bytes::from_static(data),
                truncated: false,
            });
            self.sent = self.written;
        } else if let Some(outcome) = self.ended
            && !std::mem::replace(&mut self.told_end, true)
        {
            let exit_code = if outcome == Outcome::Exited { 0 } else { -1 };
            self.reports.push_back(Said::Finished(Ended {
                exit_code,
                ..Ended::untold(outcome, "")
            }));
        }
    }
}

/// The rollout, its slaves, and what the dispatcher saw.
struct World {
    now: Instant,
    roster: Roster,
    slaves: BTreeMap<(u128, String), Model>,
    rollout: Rollout,
    finished: Vec<u32>,
    output: Vec<Vec<u8>>,
    waiting: VecDeque<(usize, usize)>,
}

impl World {
    fn new(hosts: u128, limits: Limits) -> Self {
        let model = || Model {
            attached: true,
            ..Model::default()
        };
        Self {
            now: Instant::now(),
            roster: roster(0..hosts),
            slaves: (0..hosts)
                .map(|host| ((host, "a".to_owned()), model()))
                .collect(),
            rollout: rollout(0..hosts, limits),
            finished: vec![0; usize::try_from(hosts).unwrap()],
            output: vec![Vec::new(); usize::try_from(hosts).unwrap()],
            waiting: VecDeque::new(),
        }
    }

    fn settle(&mut self) {
        self.rollout.advance(self.now, &self.roster);
        while let Some(effect) = self.rollout.effect() {
            match effect {
                Effect::Order(order, to) => {
                    for slave in to {
                        let name = (slave.key.as_u128(), slave.nonce.to_string());
                        match self.slaves.get_mut(&name).filter(|model| model.attached) {
                            Some(model) => model.orders.push_back(order),
                            None => self.rollout.missed(&slave, false, self.now),
                        }
                    }
                }
                Effect::Tell(Event::Started(_)) => {}
                Effect::Tell(Event::Output { target, data, .. }) => {
                    assert_eq!(self.finished[target], 0, "output behind the end");
                    self.output[target].extend_from_slice(&data);
                    self.waiting.push_back((target, data.len()));
                }
                Effect::Tell(Event::Finished(target)) => self.finished[target] += 1,
            }
        }
    }

    fn step(&mut self, what: u8, host: u128) {
        let name = self
            .slaves
            .keys()
            .filter(|(key, _)| *key == host)
            .max()
            .cloned();
        let Some(name) = name else { return };
        let slave = slave(host, &name.1);
        let Some(model) = self.slaves.get_mut(&name) else {
            return;
        };
        match what {
            0..=5 => model.work(),
            6..=9 => {
                if let Some(order) = model.orders.pop_front() {
                    let again = self.finished[usize::try_from(host).unwrap()] > 0;
                    model.obey(order, again);
                }
            }
            10..=13 => {
                if let Some(said) = model.reports.pop_front() {
                    self.rollout.said(&slave, said);
                }
            }
            14 if model.attached => {
                model.attached = false;
                model.synced = false;
                model.orders.clear();
                model.reports.clear();
                self.rollout.detached(&slave, self.now);
            }
            14 | 15 if !model.attached => {
                model.attached = true;
                self.rollout.attached(&slave, self.now);
            }
            16 => {
                if let Some((target, bytes)) = self.waiting.pop_front() {
                    self.rollout.taken(target, Stream::Stdout, bytes);
                }
            }
            17 => {
                // It restarts: its incarnation ends with all that it ran, and is never seen again.
                let next = format!("{}a", name.1);
                *model = Model {
                    runs: model.runs,
                    ..Model::default()
                };
                let fresh = Model {
                    attached: true,
                    ..Model::default()
                };
                self.slaves.insert((host, next.clone()), fresh);
                self.roster.insert(host, next);
                self.rollout.detached(&slave, self.now);
            }
            _ => {
                self.now += Duration::from_millis(400);
                self.rollout.tick(self.now, &self.roster);
            }
        }
        self.settle();
    }
}

proptest! {
    /// Whatever breaks when: every target ends once, nothing runs twice, what did not run is not called lost by mistake,
    /// and output that is told is whole and in order.
    #[test]
    fn each_target_ends_once_and_runs_at_most_once(
        steps in prop::collection::vec((0_u8..20, 0_u128..3), 0..400),
        concurrency in 1_usize..4,
        cancel_at in 0_usize..800,
    ) {
        let mut world = World::new(3, Limits { concurrency, ..limits() });
        world.settle();
        for (index, (what, host)) in steps.into_iter().enumerate() {
            if index == cancel_at {
                world.rollout.cancel(world.now);
                world.settle();
            }
            world.step(what, host);
        }
        // Calm: everything that waits gets through.
        for round in 0..4000 {
            if world.rollout.is_over() {
                break;
            }
            for host in 0..3 {
                for what in [0, 6, 10, 16, if round % 50 == 0 { 15 } else { 0 }] {
                    world.step(what, host);
                }
            }
            world.step(if round % 10 == 0 { 19 } else { 0 }, 0);
        }
        prop_assert!(world.rollout.is_over(), "{:?}", world.rollout);
        prop_assert!(world.finished.iter().all(|times| *times == 1), "{:?}", world.finished);
        for host in 0..3_u128 {
            let index = usize::try_from(host).unwrap();
            let of_host = world.slaves.iter().filter(|((key, _), _)| *key == host);
            let runs: u32 = of_host.map(|(_, model)| model.runs).sum();
            prop_assert!(runs <= 1, "{host} ran {runs} times");
            let ended = world.rollout.ended(index).unwrap();
            prop_assert!(TEXT.starts_with(&world.output[index]));
            match ended.outcome {
                Outcome::Exited => {
                    prop_assert_eq!(&world.output[index][..], TEXT);
                    prop_assert!(!ended.truncated);
                }
                Outcome::Unreachable => prop_assert_eq!(runs, 0),
                Outcome::Cancelled | Outcome::Lost => {}
                Outcome::TimedOut | Outcome::Refused => prop_assert!(false, "{:?}", ended),
            }
        }
    }
}
