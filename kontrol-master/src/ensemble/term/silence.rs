//! Who may leave for silence: everybody, unless the safeguard holds it back.

use super::Term;
use kontrol_core::{
    liveness::{TICK, Tracked},
    safeguard::{Frozen, Thaw, Verdict},
    view::{View, operate::Freeze},
};
use kontrol_runtime::{clock::now_ms, duration::show};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often silence is judged while removals are frozen, and how often what is frozen is written anew.
const LOOK: Duration = Duration::from_secs(1);

impl Term {
    /// A leader before this one froze removals: so they stay.
    pub(super) fn adopt_freeze(&mut self, view: &View, now: Instant) {
        let (record, _) = view.operate();
        let Some(freeze) = &record.safeguard else {
            return;
        };
        let whole = freeze.until_ms.saturating_sub(freeze.since_ms);
        let left = freeze.until_ms.saturating_sub(now_ms()).min(whole);
        tracing::warn!(
            silent = freeze.silent,
            pods = freeze.pods,
            "removals for silence are frozen since before this master led, and stay so: {}",
            WAYS_OUT
        );
        let left = Duration::from_millis(left);
        self.safeguard.adopt(now, left, freeze.silent, freeze.pods);
        self.frozen_ms = (freeze.since_ms, freeze.until_ms);
    }

    /// What is frozen, as the store is to have it.
    pub(super) fn freeze(&self) -> Option<Freeze> {
        let frozen = self.safeguard.frozen()?;
        let (since_ms, until_ms) = self.frozen_ms;
        Some(Freeze {
            since_ms,
            until_ms,
            silent: frozen.silent,
            pods: frozen.pods,
            released: None,
        })
    }

    /// Parts those who leave from those who stay although they are due.
    pub(super) fn part(
        &mut self,
        view: &View,
        due: Vec<Tracked>,
        now: Instant,
    ) -> (Vec<Tracked>, Vec<Tracked>) {
        if due.is_empty() || self.judge(view, now) {
            return (due, Vec::new());
        }
        due.into_iter()
            .partition(|pod| self.safeguard.is_exempt(*pod))
    }

    /// Looks whether removals go on, while they are frozen.
    pub(super) fn look_at_silence(&mut self, now: Instant) {
        if self.safeguard.frozen().is_some() {
            let view = Arc::clone(&self.seen);
            self.judge(&view, now);
        }
    }

    /// Whether whoever is due leaves. Counting takes a look at every pod, so that it is done once a moment.
    fn judge(&mut self, view: &View, now: Instant) -> bool {
        let every = if self.safeguard.frozen().is_some() {
            LOOK
        } else {
            TICK
        };
        if let Some((at, leave)) = self.judged
            && at + every > now
        {
            return leave;
        }
        if self.context.settings.safeguard.percent == 0 && self.safeguard.frozen().is_none() {
            return true;
        }
        let silent = self.silent(view, now);
        let mut verdict = self.safeguard.judge(now, view.len(), &silent);
        if let Verdict::Thaw(thaw, frozen) = verdict {
            self.thawed(thaw, &frozen);
            if thaw == Thaw::Recovered {
                // The last to come back may be under way: they are not held to account for the time of the freeze. Who is
                // due now is so no more.
                self.deadlines.restart(now);
                self.judged = None;
                return false;
            }
            verdict = self.safeguard.judge(now, view.len(), &silent);
        }
        let leave = match verdict {
            Verdict::Remove | Verdict::Thaw(..) => true,
            Verdict::Freeze(frozen) => {
                self.froze(&frozen);
                false
            }
            Verdict::Hold(_) => false,
        };
        self.judged = Some((now, leave));
        leave
    }

    /// Those that are due, and those whose time is half over.
    fn silent(&self, view: &View, now: Instant) -> HashSet<Tracked> {
        let members = view.pods().filter_map(|pod| view.member(pod.key()));
        let silent = members.filter(|member| self.deadlines.is_silent(member.heard.at(), now));
        let mut silent: HashSet<Tracked> = silent
            .map(|member| (member.pod.key(), member.pod.seq()))
            .collect();
        let heard = |(key, seq): Tracked| {
            let member = view.member(key).filter(|member| member.pod.seq() == seq)?;
            Some(Arc::clone(&member.heard))
        };
        silent.extend(self.deadlines.detached(now, heard));
        silent
    }

    fn froze(&mut self, frozen: &Frozen) {
        let policy = self.context.settings.safeguard;
        tracing::warn!(
            silent = frozen.silent,
            pods = frozen.pods,
            "{} of {} pods fell silent at once, and {} % may leave within {}: nobody is removed for silence any more. {}",
            frozen.silent,
            frozen.pods,
            policy.percent,
            show(self.context.settings.ttl),
            WAYS_OUT
        );
        let since_ms = now_ms();
        let max = u64::try_from(policy.max.as_millis()).unwrap_or(u64::MAX / 2);
        self.frozen_ms = (since_ms, since_ms.saturating_add(max));
    }

    fn thawed(&self, thaw: Thaw, frozen: &Frozen) {
        let (silent, pods) = (frozen.silent, frozen.pods);
        match thaw {
            Thaw::Recovered => {
                tracing::info!(
                    silent,
                    pods,
                    "pods came back: removals for silence go on, and whoever is silent has one more TTL"
                )
            }
            Thaw::Released => {
                tracing::warn!(silent, pods, "the safeguard is released: silent pods leave")
            }
            Thaw::Limit => tracing::warn!(
                silent,
                pods,
                "removals for silence were frozen for {}, the longest they may be: silent pods leave",
                show(self.context.settings.safeguard.max)
            ),
        }
    }
}

/// What an operator reads in the log.
const WAYS_OUT: &str = "It ends by itself once fewer than half as many are silent; by an operator, who lets the silent pods leave: \
     `kontrol-master release`; or after --safeguard-max";
