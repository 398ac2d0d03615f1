//! Whatever one address goes through, and in whatever order what was sent arrives at two masters whose views are behind:
//! who lives is in the roster with what it said last, a seq is given once, and who is dead changes nothing.

use super::*;
use kontrol_core::model::incarnation::MAX_RETIRED;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The process ends without a word, and another one starts.
    Restart,
    /// The living process reports to this master, with news or without.
    Beat { master: usize, news: bool },
    /// The same, and the message is on its way for long.
    Delay,
    /// The living process says goodbye; the next one starts.
    Down { master: usize },
    /// The same, and the message is on its way for long.
    DelayDown,
    /// A message that was on its way arrives, once or twice.
    Arrive {
        which: usize,
        master: usize,
        stays: bool,
    },
    /// The leader removes the pod.
    Expire,
    /// A master no longer hears of changes, or does again.
    Behind { master: usize, behind: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    let master = 0..2_usize;
    prop_oneof![
        2 => Just(Step::Restart),
        6 => (master.clone(), any::<bool>()).prop_map(|(master, news)| Step::Beat { master, news }),
        3 => Just(Step::Delay),
        2 => master.clone().prop_map(|master| Step::Down { master }),
        1 => Just(Step::DelayDown),
        6 => (0..20_usize, master.clone(), any::<bool>())
            .prop_map(|(which, master, stays)| Step::Arrive { which, master, stays }),
        1 => Just(Step::Expire),
        3 => (master, any::<bool>()).prop_map(|(master, behind)| Step::Behind { master, behind }),
    ]
}

/// The living process.
struct Process {
    number: usize,
    beat: u64,
    payload: u64,
}

impl Process {
    fn new(number: usize) -> Self {
        Self {
            number,
            beat: 0,
            payload: 0,
        }
    }

    fn say(&mut self, news: bool) -> Report {
        self.beat += 1;
        if news {
            self.payload = self.beat;
        }
        Report {
            payload: self.payload.into(),
            ..start(&format!("n{}", self.number), self.beat)
        }
    }
}

struct World {
    store: SharedStore,
    masters: [Master; 2],
    process: Process,
    /// On the way, of processes that were accepted at some time.
    late: Vec<(usize, Report)>,
    /// The newest process of which a keepalive was accepted.
    heard: Option<usize>,
    /// The processes whose goodbye was taken.
    gone: BTreeSet<usize>,
    seqs: BTreeSet<u64>,
    last: Option<Pod>,
}

impl World {
    fn restart(&mut self) {
        if self.heard != Some(self.process.number) {
            // Who was never heard of can't be told from a restart.
            self.late
                .retain(|(number, _)| *number != self.process.number);
        }
        self.process = Process::new(self.process.number + 1);
    }

    /// Looks at the record after each step.
    async fn look(&mut self) -> Result<(), TestCaseError> {
        let now = stored(&self.store).await;
        if let Some(pod) = &now
            && self
                .last
                .as_ref()
                .is_none_or(|last| last.seq() != pod.seq())
        {
            prop_assert!(
                self.seqs.last().is_none_or(|last| *last < pod.seq()),
                "seqs grow"
            );
            self.seqs.insert(pod.seq());
        }
        self.last = now;
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Restart => self.restart(),
            Step::Beat { master, news } => {
                let said = self.process.say(news);
                let answer = self.masters[master].take(said.clone()).await;
                let Ok(committed) = answer else {
                    return Err(TestCaseError::fail(format!("{said:?}: {answer:?}")));
                };
                self.heard = Some(self.process.number);
                let pod = stored(&self.store).await;
                let Some(pod) = pod else {
                    return Err(TestCaseError::fail("accepted, and not in the roster"));
                };
                prop_assert_eq!(pod.nonce(), &said.nonce);
                prop_assert_eq!(pod.payload(), &said.payload);
                prop_assert_eq!(pod.seq(), committed.seq);
            }
            Step::Delay => {
                let said = self.process.say(true);
                self.late.push((self.process.number, said));
            }
            Step::Down { master } => {
                let said = down(self.process.say(false));
                self.gone.insert(self.process.number);
                prop_assert!(self.masters[master].take(said.clone()).await.is_ok());
                let pod = stored(&self.store).await;
                prop_assert!(pod.is_none_or(|pod| pod.nonce() != said.nonce));
                self.restart();
            }
            Step::DelayDown => {
                let said = down(self.process.say(false));
                self.late.push((self.process.number, said));
                self.restart();
            }
            Step::Arrive {
                which,
                master,
                stays,
            } => {
                if self.late.is_empty() {
                    return Ok(());
                }
                let which = which % self.late.len();
                let (number, said) = self.late[which].clone();
                if !stays {
                    self.late.remove(which);
                }
                let before = stored(&self.store).await;
                let _ = self.masters[master].take(said.clone()).await;
                let after = stored(&self.store).await;
                if said.down && self.heard == Some(number) {
                    self.gone.insert(number);
                }
                match (&before, &after) {
                    // It may say something of its own incarnation, or be the first of it.
                    (Some(pod), _) if pod.nonce() == said.nonce => {}
                    _ if number == self.process.number => {}
                    (None, Some(_)) => prop_assert!(
                        self.heard == Some(number) && !self.gone.contains(&number),
                        "{said:?} came back"
                    ),
                    _ => prop_assert_eq!(&before, &after, "{:?} changed the record", said),
                }
                if number == self.process.number && after.is_some() {
                    self.heard = Some(number);
                }
            }
            Step::Expire => {
                if stored(&self.store).await.is_some() {
                    expire(&self.store).await;
                }
            }
            Step::Behind { master, behind } => {
                self.masters[master].client.behind.send_replace(behind);
            }
        }
        self.look().await
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn who_lives_is_in_and_who_is_dead_changes_nothing(steps in prop::collection::vec(any_step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let store = memory();
            let mut world = World {
                masters: [Master::on(&store).await, Master::on(&store).await],
                store,
                process: Process::new(0),
                late: Vec::new(),
                heard: None,
                gone: BTreeSet::new(),
                seqs: BTreeSet::new(),
                last: None,
            };
            for step in steps {
                // A record remembers so many.
                if world.process.number < MAX_RETIRED {
                    world.step(step).await?;
                    tokio::task::yield_now().await;
                }
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
