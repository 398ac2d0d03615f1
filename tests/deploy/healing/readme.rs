//! Every command of the README of the example, run as it stands.

use super::set::{example, is_redis_here};
use anyhow::ensure;
use kontrol_tests::{house::House, small, wait::eventually};
use std::{fs, time::Duration};

/// How long the whole story may take.
const STORY: Duration = Duration::from_secs(180);

/// The blocks for a shell, in their order.
fn blocks() -> Vec<String> {
    let text = fs::read_to_string(example().join("README.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn healing_is_run_as_its_readme_says() {
    let _permit = small().await;
    if !is_redis_here() {
        return;
    }
    let Some(house) = House::start().await else {
        return;
    };
    let [run, by_hand, write] = &blocks()[..] else {
        panic!("{:?}", blocks());
    };
    let mut story = house.start_shell("run", run);
    let status = story.ended(STORY).await;
    assert!(status.success(), "{}", story.log());
    assert!(story.log().ends_with("Everything was seen.\n"));

    let _processes = house.start_shell("by-hand", by_hand);
    // Until the others replicate the primary it refuses the write.
    eventually(STORY / 3, "a write that two have", async || {
        let ran = house.shell(write).await;
        ensure!(ran.status.success() && ran.output == "OK\n1\n", "{ran:?}");
        Ok(())
    })
    .await;
}
