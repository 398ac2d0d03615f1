//! What the store says of this master while it takes part: its record under `masters/<id>`, the same in its candidacy, and
//! what other masters' records say about this one's settings. What to write and to say is PURE.
//!
//! Two masters with one id stay apart: the one that comes later, or finds its place taken, goes by `<id>~<instance>`,
//! says so, and is not ready; it takes the id once that is free. An earlier start of the same master, which shows by its
//! address, is no other. Who shares an address with an older master is not ready either: whoever dials it may reach that.

#[cfg(test)]
mod tests;

use crate::cluster::{
    advertise::Advertised,
    store::{SharedStore, StoreError},
};
use kontrol_core::{
    kv::{Compare, LeaseId, Op, Revision, Txn},
    view::{LEADER, MASTERS, PeerMaster, View},
};
use kontrol_runtime::host::{self, Reach, reach};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// How often a trouble that stays is said again.
const REMIND: Duration = Duration::from_secs(60);

/// Why this master must not be relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// For readiness; none where this master does its work all the same.
    unready: Option<&'static str>,
    /// For the log.
    said: String,
}

/// What this master says of itself, and to whom.
#[derive(Debug)]
pub(super) struct Presence {
    /// With the id that was given.
    me: PeerMaster,
    advertised: watch::Receiver<Advertised>,
    /// Up to this revision nothing new is to be seen of what was written last.
    told: Revision,
    trouble: watch::Sender<Option<&'static str>>,
    /// The trouble of now, since when, and when it was said.
    standing: Option<(Trouble, Instant, Option<Instant>)>,
}

impl Presence {
    pub(super) fn new(
        me: PeerMaster,
        advertised: watch::Receiver<Advertised>,
    ) -> (Self, watch::Receiver<Option<&'static str>>) {
        let (trouble, receiver) = watch::channel(None);
        let presence = Self {
            me,
            advertised,
            told: 0,
            trouble,
            standing: None,
        };
        (presence, receiver)
    }

    /// Waits until this master has an address that others can be told. Cancel safe.
    pub(super) async fn located(&mut self) {
        if self.address().is_none() {
            let why = "this master has no address that others could dial (--advertise)";
            self.trouble.send_replace(Some(why));
        }
        let located = self.advertised.wait_for(|now| now.address.is_some());
        if located.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Wakes when the address changed. Cancel safe.
    pub(super) async fn moved(&mut self) {
        if self.advertised.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn address(&self) -> Option<String> {
        self.advertised.borrow().address.clone()
    }

    /// The id that nobody else can have.
    fn apart(&self) -> String {
        format!("{}~{}", self.me.id, self.me.instance)
    }

    /// This master under that id.
    fn record(&self, id: String) -> PeerMaster {
        let address = self.address();
        PeerMaster {
            id,
            address: address.unwrap_or_else(|| self.me.address.clone()),
            instance: self.me.instance.clone(),
            tls: self.me.tls,
        }
    }

    /// Which id is free for this master, and what must hold for it to take that.
    pub(super) async fn claim(
        &self,
        store: &SharedStore,
    ) -> Result<(PeerMaster, Vec<Compare>), StoreError> {
        let key = format!("{MASTERS}{}", self.me.id);
        let snapshot = store.read(std::slice::from_ref(&key)).await?;
        let Some(entry) = snapshot.entries.first() else {
            return Ok((self.record(self.me.id.clone()), vec![Compare::Absent(key)]));
        };
        let record = self.record(self.me.id.clone());
        let ours = serde_json::from_slice::<PeerMaster>(&entry.value).map_or(true, |holder| {
            // The address is ours now, so that an earlier start of this master had it.
            holder.instance == record.instance || holder.address == record.address
        });
        if ours {
            return Ok((record, vec![Compare::ModRevision(key, entry.mod_revision)]));
        }
        Ok((self.record(self.apart()), Vec::new()))
    }

    /// The writes that correct what the store says of this master; none if it is correct.
    pub(super) fn mend(
        &self,
        view: &View,
        candidacy: (&str, Revision),
        lease: LeaseId,
    ) -> Option<Txn> {
        let (key, epoch) = candidacy;
        if view.revision() < epoch.max(self.told) {
            return None;
        }
        let taken = view
            .master(&self.me.id)
            .is_some_and(|holder| holder.instance != self.me.instance);
        let apart = self.apart();
        let record = self.record(if taken {
            apart.clone()
        } else {
            self.me.id.clone()
        });
        let mut txn = Txn {
            compares: vec![Compare::CreateRevision(key.to_owned(), epoch)],
            ..Txn::default()
        };
        let presence = format!("{MASTERS}{}", record.id);
        let shown = view.master(&record.id);
        if shown.is_none() {
            txn.compares.push(Compare::Absent(presence.clone()));
        }
        if shown != Some(&record) {
            txn.ops.push(put(presence, &record, lease));
        }
        if !taken && view.master(&apart).is_some() {
            txn.ops.push(Op::Delete(format!("{MASTERS}{apart}")));
        }
        if view
            .candidate(key)
            .is_some_and(|shown| shown.master != record)
        {
            txn.ops.push(put(key.to_owned(), &record, lease));
        }
        (!txn.ops.is_empty()).then_some(txn)
    }

    /// The writes were committed at this revision.
    pub(super) fn told(&mut self, revision: Revision) {
        self.told = revision;
    }

    /// Looks at what the others say, and tells what is wrong: at once to whoever asks whether this master is ready, and in
    /// the log once it stands for longer than an earlier start of a master can be remembered.
    pub(super) fn judge(&mut self, view: &View, epoch: Revision, ttl: Duration, now: Instant) {
        let trouble = self.trouble(view, epoch);
        let unready = trouble.as_ref().and_then(|trouble| trouble.unready);
        self.trouble
            .send_if_modified(|before| std::mem::replace(before, unready) != unready);
        self.standing = trouble.map(|trouble| match self.standing.take() {
            Some((before, since, said)) if before == trouble => (before, since, said),
            _ => (trouble, now, None),
        });
        if let Some((trouble, since, said)) = &mut self.standing
            && now - *since > ttl
            && said.is_none_or(|said| now - said >= REMIND)
        {
            tracing::error!("{}", trouble.said);
            *said = Some(now);
        }
    }

    fn trouble(&self, view: &View, epoch: Revision) -> Option<Trouble> {
        let address = self.record(String::new()).address;
        let others: Vec<&PeerMaster> = view
            .masters()
            .filter(|one| one.instance != self.me.instance)
            .collect();
        if let Some(holder) = view.master(&self.me.id)
            && holder.instance != self.me.instance
        {
            let said = format!(
                "another master, at {}, has the id {:?} as well; this one, at {address}, goes by {:?} and is not ready: give each an id of its own (--id)",
                holder.address,
                self.me.id,
                self.apart()
            );
            let unready = Some("another master has this one's id (--id)");
            return Some(Trouble { unready, said });
        }
        if let Some(other) = others.iter().find(|other| other.address == address) {
            let older = view
                .candidates()
                .any(|one| one.master.instance == other.instance && one.epoch < epoch);
            let said = format!(
                "the master {:?} advertises the address {address} as well: whoever dials it reaches one of the two{}; give each an address of its own (--advertise)",
                other.id,
                if older {
                    ", so this one is not ready"
                } else {
                    ""
                }
            );
            let unready =
                older.then_some("another master advertises this one's address (--advertise)");
            return Some(Trouble { unready, said });
        }
        let local = |at: &str| host::address(at).map(reach) == Some(Reach::Host);
        if local(&address)
            && let Some(other) = others.iter().find(|other| !local(&other.address))
        {
            let said = format!(
                "the master {:?} is at {}, and can't reach this one at the loopback address {address}, so this one is not ready: give it another (--bind, --advertise)",
                other.id, other.address
            );
            let unready = Some(
                "other masters can't reach this one at a loopback address (--bind, --advertise)",
            );
            return Some(Trouble { unready, said });
        }
        None
    }
}

/// A key that tells who this master is, for as long as the lease lives.
pub(super) fn put(key: String, record: &PeerMaster, lease: LeaseId) -> Op {
    Op::Put {
        key,
        value: record.encode().into(),
        lease: Some(lease),
    }
}

/// The key of a candidacy.
pub(super) fn candidacy(lease: LeaseId) -> String {
    format!("{LEADER}{lease}")
}
