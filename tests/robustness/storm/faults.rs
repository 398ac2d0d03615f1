//! What breaks, and how it is mended.

use super::{
    Shared,
    world::{self, MASTERS, MEMBERS, PODS, SLAVES, World, pause},
};
use crate::chaos::Dice;
use kontrol_tests::{script::now, storm::record::Fault};
use rustix::process::Signal;
use std::time::Duration;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A master is killed, mostly the leader.
    Kill,
    /// A master is paused, mostly the leader.
    Pause,
    /// A master and the other masters can't reach each other.
    Apart,
    /// Nobody of the masters reaches the leader's port, which reaches all.
    Deaf,
    /// A master can't reach etcd.
    Blind,
    /// A master can't be reached by slaves and pods, some of which restart meanwhile.
    Unheard,
    /// A master can reach nobody.
    Island,
    /// A member of etcd is killed.
    MemberKilled,
    /// A member of etcd is paused.
    MemberPaused,
    /// A member of etcd can reach nobody.
    MemberCut,
    /// Two members of etcd are killed or paused.
    Quorum,
    /// Each master is stopped and started in turn.
    Rolling,
    /// Slaves are killed or stopped, and start again at once or later.
    SlavesRestart,
    /// Slaves are paused.
    SlavesPaused,
    /// A master is cut off from etcd, the others are killed and come back, which it can't see.
    Alone,
}

/// Every kind.
pub(super) const KINDS: [Kind; 15] = [
    Kind::Kill,
    Kind::Pause,
    Kind::Apart,
    Kind::Deaf,
    Kind::Blind,
    Kind::Unheard,
    Kind::Island,
    Kind::MemberKilled,
    Kind::MemberPaused,
    Kind::MemberCut,
    Kind::Quorum,
    Kind::Rolling,
    Kind::SlavesRestart,
    Kind::SlavesPaused,
    Kind::Alone,
];

fn addresses(of: impl Fn(usize) -> std::net::Ipv4Addr, count: usize) -> Vec<String> {
    (0..count).map(|index| of(index).to_string()).collect()
}

pub(super) struct Faults<'a> {
    pub(super) world: &'a mut World,
    pub(super) dice: Dice,
    pub(super) shared: Shared,
    /// Slaves that are paused, and since when.
    paused: Vec<(usize, f64)>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(world: &'a mut World, seed: u64, shared: Shared) -> Self {
        Self {
            world,
            dice: Dice(seed),
            shared,
            paused: Vec::new(),
        }
    }

    /// Lets these faults happen together, holds them for a while, mends everything, and waits until all is well.
    pub(super) async fn strike(&mut self, kinds: &[Kind]) {
        let leader = self.world.ready().await;
        let from = now();
        let name: Vec<String> = kinds.iter().map(|kind| format!("{kind:?}")).collect();
        let hold = Duration::from_millis(500 + self.dice.roll(6000));
        eprintln!(
            "{from:.3}: {} for {hold:?}, m{leader} leads",
            name.join(" and ")
        );
        // Known from its beginning, so that no rule takes what it does for something else.
        let place = {
            let mut history = self.shared.lock();
            let fault = Fault {
                kind: name.join("+"),
                from,
                mended: f64::INFINITY,
                ready: f64::INFINITY,
            };
            history.faults.push(fault);
            history.faults.len() - 1
        };
        for kind in kinds {
            self.begin(*kind, leader).await;
        }
        pause(hold).await;
        self.world.mend();
        let mended = now();
        for (index, since) in std::mem::take(&mut self.paused) {
            self.world.resume_slave(index);
            self.world.disturbed(index, since, now());
        }
        for index in 0..self.world.slaves() {
            if !self.world.runs(index) {
                self.world.start_slave(index);
            }
        }
        self.world.ready().await;
        let mut history = self.shared.lock();
        history.faults[place].mended = mended;
        history.faults[place].ready = now();
    }

    /// The leader, or any master.
    fn victim(&mut self, leader: usize) -> usize {
        match self.dice.roll(3) {
            0 => self.dice.roll(MASTERS as u64) as usize,
            _ => leader,
        }
    }

    async fn begin(&mut self, kind: Kind, leader: usize) {
        let victim = self.victim(leader);
        let member = self.dice.roll(MEMBERS as u64) as usize;
        let host = format!("m{victim}");
        let masters: Vec<String> = addresses(world::master, MASTERS)
            .into_iter()
            .filter(|address| *address != world::master(victim).to_string())
            .collect();
        let etcd = addresses(world::member, MEMBERS);
        let reporters = [SLAVES.to_owned(), PODS.to_owned()];
        match kind {
            Kind::Kill => self.world.kill_master(victim),
            Kind::Pause => self.world.signal_master(victim, Signal::STOP),
            Kind::Apart => self.world.network.cut(&host, &masters),
            Kind::Deaf => {
                let leads = world::master(leader).to_string();
                let others: Vec<String> = addresses(world::master, MASTERS)
                    .into_iter()
                    .filter(|of| *of != leads)
                    .collect();
                self.world
                    .network
                    .close(&format!("m{leader}"), 8000, &others);
            }
            Kind::Blind => self.world.network.cut(&host, &etcd),
            Kind::Unheard => {
                self.world.network.cut(&host, &reporters);
                for index in 0..self.world.slaves() {
                    if self.dice.roll(2) == 0 {
                        self.world.kill_slave(index).await;
                        self.world.start_slave(index);
                    }
                }
            }
            Kind::Island => {
                self.world.network.cut(&host, &masters);
                self.world.network.cut(&host, &etcd);
                self.world.network.cut(&host, &reporters);
            }
            Kind::MemberKilled => self.world.kill_member(member),
            Kind::MemberPaused => self.world.pause_member(member),
            Kind::MemberCut => {
                let host = format!("e{member}");
                let own = world::member(member).to_string();
                let others: Vec<String> =
                    etcd.into_iter().filter(|address| *address != own).collect();
                self.world.network.cut(&host, &others);
                self.world
                    .network
                    .cut(&host, &addresses(world::master, MASTERS));
            }
            Kind::Quorum => {
                let kills = self.dice.roll(2) == 0;
                for index in (0..MEMBERS).filter(|index| *index != member) {
                    if kills {
                        self.world.kill_member(index);
                    } else {
                        self.world.pause_member(index);
                    }
                }
            }
            Kind::Rolling => {
                for index in 0..MASTERS {
                    self.world.stop_master(index).await;
                    self.world.launch_master(index);
                    pause(Duration::from_millis(700)).await;
                }
            }
            Kind::SlavesRestart => {
                for index in 0..self.world.slaves() {
                    match self.dice.roll(5) {
                        0 => self.world.stop_slave(index).await,
                        1 => {
                            self.world.stop_slave(index).await;
                            self.world.start_slave(index);
                        }
                        // It comes back when all is mended, in time or not.
                        2 => self.world.kill_slave(index).await,
                        3 => {
                            self.world.kill_slave(index).await;
                            self.world.start_slave(index);
                        }
                        _ => {}
                    }
                }
            }
            Kind::SlavesPaused => {
                for index in 0..self.world.slaves() {
                    if self.dice.roll(3) == 0 && self.world.runs(index) {
                        self.world.pause_slave(index);
                        self.paused.push((index, now()));
                    }
                }
            }
            Kind::Alone => {
                self.world.network.cut(&host, &etcd);
                let others: Vec<usize> = (0..MASTERS).filter(|index| *index != victim).collect();
                for index in &others {
                    self.world.kill_master(*index);
                }
                for index in &others {
                    self.world.launch_master(*index);
                }
                // Long enough for whoever is heard by nobody else to be silent for a TTL.
                pause(world::TTL + Duration::from_secs(4)).await;
            }
        }
    }

    /// One or two faults, by the dice.
    pub(super) async fn any(&mut self) {
        let mut kinds = vec![self.kind()];
        if self.dice.roll(4) == 0 {
            kinds.push(self.kind());
        }
        kinds.dedup();
        self.strike(&kinds).await;
    }

    fn kind(&mut self) -> Kind {
        KINDS[self.dice.roll(KINDS.len() as u64) as usize]
    }
}
