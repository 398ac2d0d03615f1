//! What operators ask for: to hold the callback, to have it run, to release the safeguard, to evict a pod. Any master writes
//! it to the store, where the leader finds it, and the next one as well.

use super::term::Handled;
use crate::cluster::{
    error::Error,
    status::CallbackStatus,
    store::{SharedStore, commit_or_read},
};
use kontrol_core::{
    kv::{Compare, Fence, Op, Outcome, Revision, Snapshot, Txn},
    model::{Digest, Invalid, Pod, PodKey, Reason, Retired},
    view::{
        OPERATE, OperateRecord, RemovalRecord, View,
        operate::{Demand, Freeze, Hold, Released},
        pod_key, tombstone_key,
    },
};
use kontrol_runtime::clock::now_ms;
use std::{sync::Arc, time::Duration};

/// How long a hold lasts unless it is said, and at the most.
const HOLD: Duration = Duration::from_secs(3600);
const MAX_HOLD: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1000;
/// How often a write is tried when other writes keep coming in between.
const MAX_ATTEMPTS: usize = 16;

/// Who asks, and why.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The caller's address, and what its client calls itself.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl Asked {
    /// What somebody asks, checked.
    pub fn new(by: String, reason: String) -> Result<Self, Error> {
        if reason.len() > MAX_REASON_BYTES {
            let reason = format!(
                "has {} bytes, and {MAX_REASON_BYTES} are the limit",
                reason.len()
            );
            return Err(Invalid::new("reason", reason).into());
        }
        Ok(Self { by, reason })
    }
}

/// Holds the callback for so long, an hour unless it is said.
pub async fn hold(
    store: &SharedStore,
    view: &View,
    asked: Asked,
    duration: Option<Duration>,
) -> Result<(Hold, Revision), Error> {
    if asked.reason.trim().is_empty() {
        let reason = "is required: whoever finds the callback held wants to know why";
        return Err(Invalid::new("reason", reason).into());
    }
    let duration = duration.unwrap_or(HOLD);
    if duration < Duration::from_secs(1) || duration > MAX_HOLD {
        return Err(Invalid::new("duration", "must be from 1 s to 7 days").into());
    }
    let since_ms = now_ms();
    let hold = Hold {
        reason: asked.reason,
        by: asked.by,
        since_ms,
        until_ms: since_ms + u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2),
    };
    let ((), revision) = update(store, view, None, |record| {
        record.hold = Some(hold.clone());
        Ok(())
    })
    .await?;
    tracing::warn!(
        by = hold.by,
        reason = hold.reason,
        ?duration,
        "an operator holds the callback"
    );
    Ok((hold, revision))
}

/// Ends the hold. Tells what was ended.
pub async fn resume(
    store: &SharedStore,
    view: &View,
    asked: &Asked,
) -> Result<(Option<Hold>, Revision), Error> {
    let (ended, revision) = update(store, view, None, |record| Ok(record.hold.take())).await?;
    let ended = ended.filter(|hold| hold.left_ms(now_ms()) > 0);
    if let Some(hold) = &ended {
        tracing::warn!(
            by = asked.by,
            reason = asked.reason,
            held_by = hold.by,
            "an operator ends the hold of the callback"
        );
    }
    Ok((ended, revision))
}

/// What is said to whoever asks for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asking {
    /// The digest of the roster now.
    pub digest: Digest,
    /// Nothing runs: it was handled.
    pub handled: bool,
    /// From which revision on it is asked for.
    pub revision: Revision,
}

/// Asks for a run now; `again`: even for a digest that was handled.
pub async fn run(
    store: &SharedStore,
    view: &View,
    status: &CallbackStatus,
    asked: Asked,
    again: bool,
) -> Result<Asking, Error> {
    if !status.configured {
        let reason =
            "the leader has no callback (or told this master of none yet): there is nothing to run";
        return Err(Error::Superseded(reason.to_owned()));
    }
    let digest = view.digest();
    view.state()
        .map_err(|unreadable| Error::Superseded(unreadable.to_string()))?;
    // A run of another digest that goes on may leave another one as handled. This master may hear late of the end of one for
    // this very digest.
    let runs_other = status
        .running
        .is_some_and(|running| running.digest != digest);
    if !again && !runs_other && Handled::recorded(view).covers(view) {
        return Ok(Asking {
            digest,
            handled: true,
            revision: view.revision(),
        });
    }
    let demand = Demand {
        id: format!("{:016x}", rand::random::<u64>()),
        again,
        reason: asked.reason,
        by: asked.by,
    };
    let ((), revision) = update(store, view, None, |record| {
        if let Some(hold) = held(record) {
            return Err(Error::Superseded(format!(
                "the callback is held by {} ({}): end that first (kontrol-master resume)",
                hold.by, hold.reason
            )));
        }
        record.run = Some(demand.clone());
        Ok(())
    })
    .await?;
    tracing::warn!(by = demand.by, reason = demand.reason, again, %digest, "an operator asks for a run of the callback");
    Ok(Asking {
        digest,
        handled: false,
        revision,
    })
}

/// Releases the safeguard. Tells what was released.
pub async fn release(
    store: &SharedStore,
    view: &View,
    asked: Asked,
) -> Result<(Option<Freeze>, Revision), Error> {
    let (released, revision) = update(store, view, None, |record| {
        let Some(freeze) = &mut record.safeguard else {
            return Ok(None);
        };
        freeze.released = Some(Released {
            by: asked.by.clone(),
            reason: asked.reason.clone(),
        });
        Ok(Some(freeze.clone()))
    })
    .await?;
    if let Some(freeze) = &released {
        tracing::warn!(
            by = asked.by,
            reason = asked.reason,
            silent = freeze.silent,
            "an operator releases the safeguard: silent pods leave"
        );
    }
    Ok((released, revision))
}

/// Removes a pod. `master` is the id of this one.
pub async fn evict(
    store: &SharedStore,
    view: &View,
    key: PodKey,
    asked: &Asked,
    master: &str,
) -> Result<(Arc<Pod>, Revision), Error> {
    let gone = || {
        Error::NotFound(format!(
            "no live pod has the key {key}; explain it to see why"
        ))
    };
    let member = view.member(key).ok_or_else(gone)?;
    let (mut pod, mut revision) = (Arc::clone(&member.pod), member.mod_revision);
    let silence = member.heard.at().map(|at| at.elapsed()).unwrap_or_default();
    for _ in 0..MAX_ATTEMPTS {
        let record = RemovalRecord::of(&pod, Reason::Evicted, silence, now_ms(), master);
        let removal = RemovalRecord {
            // What is still under way of it came too late.
            beat: record.beat.max(member.heard.beat()),
            by: match asked.reason.as_str() {
                "" => asked.by.clone(),
                reason => format!("{}: {reason}", asked.by),
            },
            ..record
        };
        let name = pod_key(key);
        let mut ops = vec![Op::Delete(name.clone())];
        ops.extend(RemovalRecord::writes(&[removal]));
        let txn = Txn {
            compares: vec![Compare::ModRevision(name.clone(), revision)],
            ops,
            otherwise: vec![name.clone(), tombstone_key(key)],
        };
        let outcome = commit_or_read(store, txn).await;
        match outcome.map_err(|error| Error::from_store(&error))? {
            Outcome::Committed(revision) => {
                tracing::warn!(%key, id = pod.id(), seq = pod.seq(), by = asked.by, reason = asked.reason, "an operator evicted a pod");
                return Ok((pod, revision));
            }
            Outcome::Conflict(found) => {
                if let Some(entry) = found.get(&name)
                    && let Ok(now) = Pod::decode(&entry.value)
                    && now.seq() == pod.seq()
                {
                    (pod, revision) = (Arc::new(now), entry.mod_revision);
                    continue;
                }
                // It left for another reason; or this very removal was committed after all, or that of another operator.
                let revision = evicted(&found, &pod).ok_or_else(|| {
                    Error::NotFound(format!(
                        "the pod {:?} with the key {key} and the seq {} left before it could be evicted; explain it to see why",
                        pod.id(),
                        pod.seq()
                    ))
                })?;
                return Ok((pod, revision));
            }
        }
    }
    Err(Error::Unavailable(
        "the pod kept changing; try again".to_owned(),
    ))
}

/// The revision that shows that a pod that is gone was evicted.
fn evicted(found: &Snapshot, pod: &Pod) -> Option<Revision> {
    // Where somebody joined since, the tombstone is gone, and what it said is in the record of that one.
    let (before, entry) = match found.get(&pod_key(pod.key())) {
        Some(entry) => (Pod::decode(&entry.value).ok()?.retired().to_vec(), entry),
        None => {
            let entry = found.get(&tombstone_key(pod.key()))?;
            let record: RemovalRecord = serde_json::from_slice(&entry.value).ok()?;
            (record.predecessors(), entry)
        }
    };
    let evicted = |one: &Retired| one.seq == pod.seq() && one.reason == Some(Reason::Evicted);
    before.iter().any(evicted).then_some(entry.mod_revision)
}

/// The hold of a record, if it goes on.
pub fn held(record: &OperateRecord) -> Option<&Hold> {
    let hold = record.hold.as_ref();
    hold.filter(|hold| hold.left_ms(now_ms()) > 0)
}

/// Changes the record of what operators asked for; with a fence, only as long as that leader leads. Tells what `change` told,
/// and the revision from which on it stands.
pub async fn update<T>(
    store: &SharedStore,
    view: &View,
    fence: Option<&Fence>,
    mut change: impl FnMut(&mut OperateRecord) -> Result<T, Error>,
) -> Result<(T, Revision), Error> {
    let (record, revision) = view.operate();
    let mut current = (OperateRecord::clone(record), revision);
    // The view may be late. A write compares the record and so finds that out, and what a leader misses it sees to later;
    // but to tell somebody that there is nothing to do, or that it can't be done, takes a look at the store.
    let mut late = fence.is_none();
    for _ in 0..MAX_ATTEMPTS {
        let mut record = current.0.clone();
        let told = change(&mut record);
        if late && (told.is_err() || record == current.0) {
            let found = store.read(&[OPERATE.to_owned()]).await;
            let found = found.map_err(|error| Error::from_store(&error))?;
            (current, late) = (OperateRecord::find(&found), false);
            continue;
        }
        let told = told?;
        if record == current.0 {
            return Ok((told, current.1));
        }
        let mut txn = Txn {
            compares: vec![Compare::unchanged(OPERATE, current.1)],
            ops: vec![Op::put(OPERATE, record.encode())],
            otherwise: vec![OPERATE.to_owned()],
        };
        if let Some(fence) = fence {
            txn.otherwise.push(fence.key().to_owned());
            txn = fence.guard(txn);
        }
        let outcome = commit_or_read(store, txn).await;
        match outcome.map_err(|error| Error::from_store(&error))? {
            Outcome::Committed(revision) => return Ok((told, revision)),
            Outcome::Conflict(found) => {
                if fence.is_some_and(|fence| fence.is_lost(&found)) {
                    return Err(Error::Superseded("another master leads".to_owned()));
                }
                (current, late) = (OperateRecord::find(&found), false);
                if current.0 == record {
                    // It was committed, though the answer was not clear.
                    return Ok((told, current.1));
                }
            }
        }
    }
    Err(Error::Unavailable(
        "others kept changing what operators asked for; try again".to_owned(),
    ))
}

#[cfg(test)]
mod tests;
