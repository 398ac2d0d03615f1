//! The task that writes what keepalives change: many pods in one transaction, one transaction at a time.
//!
//! A transaction compares, for each pod, the record that the decision rests on, and for joins the counter of seqs. When
//! something else was quicker, the store answers with the records as they are, and the decision is made again from
//! those. After an unclear answer the records are read back and the same happens: a change that was committed after
//! all then asks for nothing more.
//!
//! A report whose caller is gone is not decided again. Its sender reports again, or is dead, and then a newer
//! incarnation may have its place. A goodbye is written all the same, because its sender does not come back.

use super::transaction::{Answer, Committed, Decision, MAX_PLACES, Records, Transaction};
use crate::{
    cluster::{
        error::Error,
        roster::Roster,
        store::{SharedStore, StoreError},
    },
    metrics::{Metrics, Queue},
};
use kontrol_core::{
    contest::{Contests, Refusal, Warning},
    kv::{MAX_TXN_BYTES, Outcome, Revision},
    limits::Limits,
    liveness::Writing,
    model::{Incarnation, Report},
};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// How many keepalives may wait to be written; more are refused.
const QUEUE: usize = 8192;
/// How long a keepalive waits to be written. It may be written all the same; sent again it then changes nothing.
const COMMIT_LIMIT: Duration = Duration::from_secs(5);
/// How often a batch is decided anew before its callers are told to try again.
const MAX_ATTEMPTS: usize = 64;

/// Handle on the committer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Committer {
    queue: mpsc::Sender<Request>,
    limits: Arc<Limits>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Request {
    report: Report,
    /// It is to be written even if it says nothing new.
    anew: bool,
    reply: oneshot::Sender<Result<Committed, Error>>,
}

impl Request {
    /// Whether the report is to be dropped. A sender that stopped waiting reports again, maybe elsewhere, or is dead. A
    /// goodbye is never dropped, because its sender does not come back.
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed() && !self.report.down
    }
}

/// The task behind [`Committer`].
#[derive(Debug)]
pub struct CommitterTask {
    store: SharedStore,
    roster: Roster,
    master: Arc<str>,
    limits: Arc<Limits>,
    queue: mpsc::Receiver<Request>,
    /// Taken from the queue, to be written by one of the next transactions.
    waiting: VecDeque<Request>,
    contests: Contests,
    /// How many pods joined by the transactions that the roster does not show yet.
    joined: VecDeque<(Revision, usize)>,
}

impl Committer {
    /// A committer and its task. `master` is the id of this master, `limits` what it takes.
    pub fn new(
        store: SharedStore,
        roster: Roster,
        master: Arc<str>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> (Self, CommitterTask) {
        let limits = Arc::new(limits);
        let (sender, queue) = mpsc::channel(QUEUE);
        let task = CommitterTask {
            store,
            roster,
            master,
            limits: Arc::clone(&limits),
            queue,
            waiting: VecDeque::new(),
            contests: Contests::default(),
            joined: VecDeque::new(),
        };
        let handle = Self {
            queue: sender,
            limits,
            metrics,
        };
        (handle, task)
    }

    /// What this master takes.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Writes what the report changes; `anew`: and even if it changes nothing.
    pub async fn commit(&self, report: Report, anew: bool) -> Result<Committed, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            report,
            anew,
            reply,
        };
        self.queue.try_send(request).map_err(|_| {
            self.metrics.turned_away(Queue::Changes);
            Error::Unavailable("too many changes at once; try again".to_owned())
        })?;
        match timeout(COMMIT_LIMIT, answer).await {
            Ok(Ok(answer)) => {
                if let Err(Error::Exhausted(_)) = &answer {
                    self.metrics.turned_away(Queue::Pods);
                }
                answer
            }
            Ok(Err(_)) => Err(Error::Unavailable(
                "this master is shutting down".to_owned(),
            )),
            Err(_) => Err(Error::Unavailable(
                "the store did not take the change in time; try again".to_owned(),
            )),
        }
    }
}

impl CommitterTask {
    /// Runs until the token is cancelled; what was taken from the queue by then is still written.
    pub async fn run(mut self, token: CancellationToken) {
        let mut taken = Vec::with_capacity(MAX_PLACES);
        loop {
            if self.waiting.is_empty() {
                // Cancel safe: `recv_many` takes nothing unless it completes.
                match token
                    .run_until_cancelled(self.queue.recv_many(&mut taken, MAX_PLACES))
                    .await
                {
                    Some(0) | None => return,
                    Some(_) => {}
                }
            } else if let Some(room) = MAX_PLACES
                .checked_sub(self.waiting.len())
                .filter(|room| *room > 0)
            {
                while taken.len() < room
                    && let Ok(request) = self.queue.try_recv()
                {
                    taken.push(request);
                }
            }
            self.waiting.extend(taken.drain(..));
            let batch = self.take_batch();
            if !batch.is_empty() {
                self.write(batch).await;
            }
        }
    }

    /// The next requests in order, one for each pod: a second one of a pod waits until the first is decided.
    fn take_batch(&mut self) -> Vec<Request> {
        let (mut batch, mut later) = (Vec::new(), VecDeque::new());
        let (mut keys, mut bytes) = (HashSet::new(), 0);
        for request in self.waiting.drain(..) {
            if request.is_abandoned() {
                continue;
            }
            let size = size_of_report(&request.report);
            let fits = batch.is_empty() || bytes + size <= MAX_TXN_BYTES / 2;
            if fits && batch.len() < MAX_PLACES && keys.insert(request.report.key()) {
                bytes += size;
                batch.push(request);
            } else {
                keys.insert(request.report.key());
                later.push_back(request);
            }
        }
        self.waiting = later;
        batch
    }

    async fn write(&mut self, mut batch: Vec<Request>) {
        let mut records = Records::default();
        for _ in 0..MAX_ATTEMPTS {
            let view = self.roster.view();
            let seen = |(revision, _): &(Revision, usize)| *revision <= view.revision();
            while self.joined.front().is_some_and(seen) {
                self.joined.pop_front();
            }
            let unseen = self.joined.iter().map(|(_, joined)| joined).sum();
            let mut transaction = Transaction::new(
                &view,
                &records,
                &self.contests,
                &self.master,
                &self.limits,
                unseen,
            );
            let (mut pending, mut done) = (Vec::with_capacity(batch.len()), Vec::new());
            batch.retain(|request| !request.is_abandoned());
            // From now on no other keepalive of these pods is compared with the present record.
            let _writing: Vec<_> = batch
                .iter()
                .filter_map(|request| view.member(request.report.key()))
                .map(|member| Writing::begin(&member.heard))
                .collect();
            for request in batch {
                match transaction.add(&request.report, request.anew) {
                    Decision::Pending(answer) => pending.push((request, answer)),
                    Decision::Done(answer) => done.push((request, answer)),
                }
            }
            let joined = transaction.joined();
            let (keys, txn) = (transaction.keys(), transaction.into_txn());
            for (request, answer) in done {
                self.reply(request, answer, 0);
            }
            if pending.is_empty() {
                return;
            }
            let outcome = match self.store.commit(txn).await {
                Err(StoreError::Indeterminate(cause)) => {
                    tracing::warn!(
                        cause,
                        pods = pending.len(),
                        "a write got no clear answer; reading back"
                    );
                    self.store.read(&keys).await.map(Outcome::Conflict)
                }
                outcome => outcome,
            };
            match outcome {
                Ok(Outcome::Committed(revision)) => {
                    // A store that was put back to an older state counts anew.
                    if self.joined.back().is_some_and(|(last, _)| *last > revision) {
                        self.joined.clear();
                    }
                    if joined > 0 {
                        self.joined.push_back((revision, joined));
                    }
                    for (request, answer) in pending {
                        self.reply(request, answer, revision);
                    }
                    return;
                }
                Ok(Outcome::Conflict(snapshot)) => {
                    records = Records::read(&keys, &snapshot);
                    batch = pending.into_iter().map(|(request, _)| request).collect();
                }
                Err(error) => {
                    for (request, _) in pending {
                        let _ = request.reply.send(Err(Error::from_store(&error)));
                    }
                    return;
                }
            }
        }
        tracing::warn!(
            pods = batch.len(),
            "gave up a write that other masters kept overtaking"
        );
        for request in batch {
            let error =
                Error::Unavailable("other masters kept writing first; try again".to_owned());
            let _ = request.reply.send(Err(error));
        }
    }

    /// Answers a request whose transaction made this revision.
    fn reply(&mut self, request: Request, answer: Answer, revision: Revision) {
        let answer = match answer {
            Answer::Written { seq, seated } => {
                if let Some((key, who)) = seated {
                    self.contests.seat(key, who, Instant::now());
                }
                Ok(Committed {
                    seq,
                    revision,
                    unchanged: false,
                })
            }
            Answer::Unchanged(committed) => Ok(committed),
            Answer::Refused(refusal, error) => {
                if let Some(warning) = self.contests.note(&refusal, Instant::now()) {
                    warn(&request.report, &refusal, &warning);
                }
                Err(error)
            }
            Answer::Failed(error) => Err(error),
        };
        // The caller may have gone away; nobody else wants the answer.
        let _ = request.reply.send(answer);
    }
}

fn warn(report: &Report, refusal: &Refusal, warning: &Warning) {
    let name = |who: &Incarnation| format!("{} (nonce {:?})", who.id, who.nonce);
    let refused: Vec<_> = warning.refused.iter().map(name).collect();
    tracing::warn!(
        ip = %report.ip,
        key = %refusal.key,
        in_roster = refusal.owner.as_ref().map(name).unwrap_or_default(),
        refused = refused.join(", "),
        other_places = warning.unsaid,
        "several pods report from one address, or one pod was started more than once: only the one that came last is in the \
         roster, the keepalives of the others are refused; give each an address of its own, or stop all but one"
    );
}

/// A bound on what the record of a report takes.
fn size_of_report(report: &Report) -> usize {
    let maps = report.labels.iter().chain(&report.annotations);
    let maps: usize = maps
        .map(|(name, value)| escaped(name) + escaped(value) + 8)
        .sum();
    let payload = kontrol_core::json::canonical(&report.payload).len();
    let texts = [&report.app, &report.id, &report.role, &report.node];
    let texts: usize = texts.map(|text| escaped(text)).iter().sum();
    1024 + texts + maps + payload
}

/// A bound on what a text takes as JSON.
fn escaped(text: &str) -> usize {
    let extra = text.bytes().map(|byte| match byte {
        0..0x20 => 5,
        b'"' | b'\\' => 1,
        _ => 0,
    });
    text.len() + extra.sum::<usize>()
}
