//! What an action is told, between the executor and its task.
//!
//! Nothing that is told is lost, and it takes little room, however much is told while the action is busy: later words of a
//! kind stand for the earlier ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// What an action is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Tell everything behind these offsets, on this channel.
    Resume { stdout: u64, stderr: u64 },
    /// Tell everything that was not taken, on this channel.
    Again,
    /// Everything up to these offsets was taken.
    Credit { stdout: u64, stderr: u64 },
    /// End it.
    Cancel,
    /// The end was taken, or will not be.
    Forget,
}

/// How much was taken of standard output and standard error.
type Taken = Option<(u64, u64)>;

/// What was told and not heard yet.
#[derive(Debug, Default)]
struct Waiting {
    /// Taken before the last question, and behind it.
    before: Taken,
    question: Option<Told>,
    behind: Taken,
    cancel: bool,
    forget: bool,
}

impl Waiting {
    fn add(&mut self, told: Told) {
        match told {
            Told::Resume { .. } | Told::Again => {
                if let Some((stdout, stderr)) = self.behind.take() {
                    raise(&mut self.before, stdout, stderr);
                }
                self.question = Some(told);
            }
            Told::Credit { stdout, stderr } => raise(&mut self.behind, stdout, stderr),
            Told::Cancel => self.cancel = true,
            Told::Forget => self.forget = true,
        }
    }

    fn next(&mut self) -> Option<Told> {
        let credit = |(stdout, stderr)| Told::Credit { stdout, stderr };
        let next = self.before.take().map(credit);
        let next = next.or_else(|| self.question.take());
        let next = next.or_else(|| self.behind.take().map(credit));
        let next = next.or_else(|| std::mem::take(&mut self.cancel).then_some(Told::Cancel));
        next.or_else(|| std::mem::take(&mut self.forget).then_some(Told::Forget))
    }
}

fn raise(taken: &mut Taken, stdout: u64, stderr: u64) {
    let (before_stdout, before_stderr) = taken.unwrap_or_default();
    *taken = Some((before_stdout.max(stdout), before_stderr.max(stderr)));
}

/// Tells an action something. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    waiting: Arc<Mutex<Waiting>>,
    bell: mpsc::Sender<()>,
}

/// Hears what an action is told.
#[derive(Debug)]
pub(super) struct Hearer {
    waiting: Arc<Mutex<Waiting>>,
    bell: mpsc::Receiver<()>,
}

/// The way from who tells to who hears.
pub(super) fn channel() -> (Teller, Hearer) {
    let waiting = Arc::<Mutex<Waiting>>::default();
    let (ring, bell) = mpsc::channel(1);
    let teller = Teller {
        waiting: Arc::clone(&waiting),
        bell: ring,
    };
    (teller, Hearer { waiting, bell })
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // Each change is whole.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Teller {
    /// Tells it.
    pub(super) fn tell(&self, told: Told) {
        lock(&self.waiting).add(told);
        // A bell that rang already will be heard; an action that is over hears nothing more.
        let _ = self.bell.try_send(());
    }
}

impl Hearer {
    /// Waits for what is told next; nothing when nobody can tell anything more. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Told> {
        loop {
            let told = lock(&self.waiting).next();
            if told.is_some() {
                return told;
            }
            if self.bell.recv().await.is_none() {
                return lock(&self.waiting).next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resume(stdout: u64) -> Told {
        Told::Resume { stdout, stderr: 0 }
    }

    fn credit(stdout: u64, stderr: u64) -> Told {
        Told::Credit { stdout, stderr }
    }

    #[tokio::test]
    async fn nothing_is_lost_however_much_is_told_to_one_that_is_busy() {
        let (teller, mut hearer) = channel();
        for taken in 0..100_000 {
            teller.tell(credit(taken, 7));
        }
        teller.tell(resume(5));
        teller.tell(Told::Cancel);
        for taken in 0..100_000 {
            teller.tell(credit(3, taken));
        }
        teller.tell(Told::Forget);
        drop(teller);
        let mut heard = Vec::new();
        while let Some(told) = hearer.next().await {
            heard.push(told);
        }
        let expected = [
            credit(99_999, 7),
            resume(5),
            credit(3, 99_999),
            Told::Cancel,
            Told::Forget,
        ];
        assert_eq!(heard, expected);
    }

    #[tokio::test]
    async fn the_last_question_counts_and_each_word_wakes() {
        let (teller, mut hearer) = channel();
        teller.tell(resume(5));
        teller.tell(credit(9, 0));
        teller.tell(Told::Again);
        assert_eq!(hearer.next().await, Some(credit(9, 0)));
        assert_eq!(hearer.next().await, Some(Told::Again));
        let heard = tokio::spawn(async move { (hearer.next().await, hearer.next().await) });
        tokio::task::yield_now().await;
        teller.tell(Told::Cancel);
        tokio::task::yield_now().await;
        drop(teller);
        assert_eq!(heard.await.unwrap(), (Some(Told::Cancel), None));
    }
}
