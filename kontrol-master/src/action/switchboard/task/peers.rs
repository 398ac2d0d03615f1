//! The peers: the streams of this master to them, and theirs to this master.

use super::{Caller, Failed, MAX_SLAVES, Owner, Place, SwitchboardTask};
use crate::{
    action::{
        attachment::Attachment,
        outlet::{Outlet, Unsent},
        switchboard::Notice,
        wire,
    },
    metrics::Queue,
};
use kontrol_core::{liveness::Instance, rollout::Slave};
use kontrol_proto::{
    internal::v1::{
        ExchangeResponse,
        exchange_response::{Message, Missed, Presence},
    },
    v1::AttachResponse,
};
use tokio::time::Instant;

impl SwitchboardTask {
    pub(super) fn peer_said(&mut self, master: Instance, said: Message) {
        match said {
            Message::Presence(presence) => {
                let attached = presence.attached.into_iter().filter_map(wire::attachment);
                for attachment in attached {
                    self.arrived(attachment, Place::Peer(master));
                }
                let detached = presence.detached.into_iter().filter_map(wire::attachment);
                for attachment in detached {
                    self.left(&attachment, Place::Peer(master));
                }
            }
            Message::Missed(missed) => {
                let slave = missed.slave.and_then(wire::slave);
                if let (Some(slave), Ok(action)) = (slave, missed.action_id.parse()) {
                    self.missed(&action, slave, missed.busy);
                }
            }
            Message::Report(report) => {
                let slave = report.slave.and_then(wire::slave);
                let event = report.report.and_then(|report| report.event);
                if let (Some(slave), Some(event)) = (slave, event)
                    && let Some(action) = wire::action_of(&event)
                {
                    self.deliver(&action, slave, event);
                }
            }
        }
    }

    pub(super) fn peer_down(&mut self, master: Instance) {
        self.peers.remove(&master);
        for slave in self.directory.clear(Place::Peer(master)) {
            self.notify(&slave, Notice::Detached);
        }
    }

    // --- peers whose dispatches go to slaves here

    pub(super) fn caller_up(
        &mut self,
        master: Instance,
        stream: u64,
        replies: Outlet<ExchangeResponse>,
    ) {
        self.callers.insert(master, Caller { stream, replies });
        let all: Vec<_> = self.directory.at(Place::Here).cloned().collect();
        let mut chunks: Vec<&[Attachment]> = all.chunks(MAX_SLAVES).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for chunk in chunks {
            self.reply(master, presence(chunk, &[]));
        }
    }

    pub(super) fn caller_down(&mut self, master: Instance, stream: u64) {
        if self
            .callers
            .get(&master)
            .is_some_and(|caller| caller.stream == stream)
        {
            self.drop_caller(master);
        }
    }

    /// The peer is gone, or does not read. What its dispatches ran here waits for it, or for who adopts it.
    fn drop_caller(&mut self, master: Instance) {
        self.callers.remove(&master);
        let now = Instant::now();
        for session in self.sessions.values_mut() {
            let orphans = &mut session.orphans;
            session.owners.retain(|action, owner| {
                let is_its = *owner == Owner::Peer(master);
                if is_its {
                    orphans.add(action.clone(), now);
                }
                !is_its
            });
        }
    }

    pub(super) fn caller_orders(
        &mut self,
        master: Instance,
        order: &AttachResponse,
        to: Vec<Slave>,
    ) {
        let Some(action) = wire::action_of_order(order) else {
            return;
        };
        for slave in to {
            let Err(failed) = self.give(&slave, order, Owner::Peer(master)) else {
                continue;
            };
            let missed = Message::Missed(Missed {
                slave: Some(wire::incarnation(&slave)),
                action_id: action.to_string(),
                busy: matches!(failed, Failed::Busy),
            });
            self.reply(master, missed);
        }
    }

    pub(super) fn tell_callers(&mut self, attached: &[Attachment], detached: &[Attachment]) {
        let callers: Vec<Instance> = self.callers.keys().copied().collect();
        for master in callers {
            self.reply(master, presence(attached, detached));
        }
    }

    pub(super) fn reply(&mut self, master: Instance, message: Message) {
        let Some(caller) = self.callers.get(&master) else {
            return;
        };
        let response = ExchangeResponse {
            message: Some(message),
        };
        if let Err(unsent) = caller.replies.send(response) {
            if unsent == Unsent::Full {
                self.metrics.turned_away(Queue::Links);
            }
            // Cut off, it opens its stream again, and asks what it missed.
            self.drop_caller(master);
        }
    }
}

fn presence(attached: &[Attachment], detached: &[Attachment]) -> Message {
    Message::Presence(Presence {
        attached: attached.iter().map(wire::attached).collect(),
        detached: detached.iter().map(wire::attached).collect(),
    })
}
