//! One fault after another, in an order that a seed decides: whatever happens, whoever reports stays, and the history
//! of the callback keeps every promise. `KONTROL_SEED` repeats an order.

use crate::scene::{PODS, Scene};
use kontrol_tests::{SOON, etcd::Etcd, heavy};
use std::{env, process, time::Duration};

/// A small generator, so that an order can be repeated.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order_of_faults_costs_a_pod_its_place_or_makes_callbacks_overlap() {
    let _permit = heavy().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let seed = env::var("KONTROL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(process::id()));
    eprintln!("KONTROL_SEED={seed}");
    let mut dice = Dice(seed);
    let mut scene = Scene::on(&etcd).await;
    for round in 0..8_u32 {
        let index = dice.roll(3) as usize;
        let time = Duration::from_millis(500 + dice.roll(5000));
        let fault = dice.roll(5);
        eprintln!("round {round}: fault {fault} for {time:?} on master {index}");
        scene
            .fleet
            .change((round % PODS) as usize, |pod| pod.payload(round.into()));
        match fault {
            0 => {
                scene.cluster.masters[index].kill();
                tokio::time::sleep(time).await;
                scene.cluster.masters[index].launch();
            }
            1 => {
                scene.cluster.masters[index].pause();
                tokio::time::sleep(time).await;
                scene.cluster.masters[index].resume();
            }
            2 => {
                assert!(scene.cluster.masters[index].stop().await.success());
                scene.cluster.masters[index].launch();
            }
            3 => {
                etcd.kill();
                tokio::time::sleep(time).await;
                etcd.restart().await;
            }
            _ => {
                etcd.pause();
                tokio::time::sleep(time).await;
                etcd.resume();
            }
        }
        scene.cluster.ready().await;
        scene.fleet.heard_again().await;
        scene.fleet.nobody_was_lost();
    }
    let leader = scene.cluster.leader_among(&[0, 1, 2], SOON).await;
    scene.cluster.handled(leader, PODS).await;
    scene.still_works().await;
}
