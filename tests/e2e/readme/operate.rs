//! What an operator orders by hand, as it stands.

use super::{OPERATE, Scene, lines};
use kontrol_tests::small;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_is_operated_as_shown() {
    let _permit = small().await;
    let Some(scene) = Scene::start(Some("#!/bin/sh\n")).await else {
        return;
    };
    for line in lines(OPERATE) {
        if line.contains(" run ") {
            // Nothing runs while the callback is held.
            scene.house.succeeds("kontrol-master resume").await;
        }
        let output = scene.house.succeeds(&line).await;
        if line.contains(" preview ") {
            assert_eq!(output, "", "nobody left");
            continue;
        }
        let said: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        let right = match line.split(' ').nth(1).unwrap() {
            "hold" => said["hold"]["reason"] == "the database moves",
            "run" => said["exitCode"] == 0,
            "evict" => said["pod"]["id"] == "web-1",
            "release" => said["revision"].is_number(),
            other => panic!("what should {other} tell?"),
        };
        assert!(right, "{line}: {output}");
    }
}
