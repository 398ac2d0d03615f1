//! Behind a proxy: keepalives, channels, the command line and plain HTTP through nginx and haproxy, which pass requests or
//! connections, with the very settings that the guide of operators shows, and with time-outs that are shorter than any pause.

mod gateway;
mod proxy;
mod scene;

use kontrol_proto::v1::{
    AttachRequest, AttachResponse,
    attach_request::{Event, Hello},
    attach_response::Order,
};
use kontrol_tests::{SOON, cluster::Cluster, pod::PodSpec, small, wait::throughout};
use proxy::{Kind, unknown_blocks};
use scene::{Cuts, Plan, Scene, Tls};
use std::{fs, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

/// With time-outs of a second: shorter than the interval of the keepalives (1.2 s), any sign of life, and any ping.
const SHORT: Plan = Plan {
    kind: Kind::NginxRequests,
    tls: Tls::No,
    timeouts: Some("1s"),
    ttl: Duration::from_secs(6),
};
/// As shown. A pod that is not heard for a moment is gone.
const AS_SHOWN: Plan = Plan {
    timeouts: None,
    ttl: Duration::from_secs(2),
    ..SHORT
};

/// Slaves, a long quiet action, a master that dies, and the command line.
async fn nothing_is_lost(plan: Plan) {
    let _permit = small().await;
    let Some(mut scene) = Scene::start(plan).await else {
        return;
    };
    // Longer than the time-outs, and at once: while the slaves find out how things are here.
    let runs = scene.cluster.dir.path().join("runs");
    let quiet = format!(
        "echo $KONTROL_ID >> {}; sleep 6; echo whole; exit 7",
        runs.display()
    );
    let ran = scene.exec(&scene.master(0), &quiet).await;
    assert_eq!(ran.ends(), [("pod-0", 7), ("pod-1", 7)], "{ran:#?}");
    assert_eq!(ran.output("pod-0"), "whole\n");
    assert_eq!(ran.output("pod-1"), "whole\n");
    let mut once = fs::read_to_string(&runs).unwrap();
    once = once.replace('\n', " ");
    assert!(["pod-0 pod-1 ", "pod-1 pod-0 "].contains(&&*once), "{once}");
    scene.nobody_left().await;
    let cuts = scene.cuts();
    let is_cut = cuts.channels > 0 && cuts.keepalives > 0 && cuts.watches > 0;
    assert_eq!(is_cut, plan.timeouts.is_some(), "{cuts:?}");
    if !is_cut {
        assert_eq!(cuts, Cuts::default());
    }

    scene.proxy.reload();
    scene.cluster.masters[1].kill();
    throughout(plan.ttl * 3 / 2, "a roster of two", async || {
        scene.nobody_left().await;
        Ok(())
    })
    .await;
    // More than a body may be by the defaults of a proxy.
    let large = "head -c 1000000 /dev/zero | tr '\\0' x | tee /dev/stderr";
    let ran = scene.exec(&scene.master(0), large).await;
    assert_eq!(ran.ends(), [("pod-0", 0), ("pod-1", 0)]);
    assert_eq!(ran.output("pod-0").len(), 2_000_000);

    // What asks through the proxy is answered, and where it is cut it says so.
    scene.asks(&scene.front(), &["status"]).await;
    let ran = scene.exec(&scene.front(), "sleep 2; echo through").await;
    if plan.timeouts.is_none() {
        assert_eq!(ran.ends(), [("pod-0", 0), ("pod-1", 0)], "{ran:#?}");
    } else {
        assert_eq!(ran.status.code(), Some(255), "{ran:#?}");
        assert!(ran.said.contains("error: "), "{ran:#?}");
        scene.the_last_action_was_cancelled().await;
    }
    println!("{plan:?}: {:?}", scene.cuts());
    scene.nobody_left().await;
    for slave in &mut scene.slaves {
        assert!(slave.stop(SOON).await.success());
    }
    scene.both_said_goodbye().await;
}

#[test]
fn each_block_of_the_guide_is_run_by_one_of_these_tests() {
    assert_eq!(unknown_blocks(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_answers_signs_of_life_of_a_channel() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let (api, pod) = (cluster.api(0), PodSpec::number(0));
    let key = api.ping(&pod).await.unwrap().key;
    let hello = Hello {
        key,
        nonce: pod.nonce.clone(),
        attachment: 1,
        actions: Vec::new(),
    };
    let (sender, requests) = mpsc::channel(2);
    let say = async |event| sender.send(AttachRequest { event }).await.unwrap();
    say(Some(Event::Hello(hello))).await;
    let orders = api.actions().attach(ReceiverStream::new(requests)).await;
    let mut orders = orders.unwrap().into_inner();
    let mut hear = async || timeout(SOON, orders.message()).await.unwrap().unwrap();
    let welcome = hear().await.unwrap().order;
    assert!(matches!(welcome, Some(Order::Welcome(_))), "{welcome:?}");
    for _ in 0..3 {
        say(None).await;
        assert_eq!(hear().await, Some(AttachResponse { order: None }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_passes_requests() {
    nothing_is_lost(Plan {
        kind: Kind::NginxRequests,
        tls: Tls::AtTheProxy,
        ..AS_SHOWN
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_passes_connections() {
    nothing_is_lost(Plan {
        kind: Kind::NginxConnections,
        tls: Tls::AtTheMasters,
        ..AS_SHOWN
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_passes_requests() {
    nothing_is_lost(Plan {
        kind: Kind::HaproxyRequests,
        tls: Tls::AtTheProxy,
        ..AS_SHOWN
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_passes_connections() {
    nothing_is_lost(Plan {
        kind: Kind::HaproxyConnections,
        tls: Tls::AtTheMasters,
        ..AS_SHOWN
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_cuts_requests_that_are_quiet() {
    nothing_is_lost(Plan {
        kind: Kind::NginxRequests,
        tls: Tls::AtTheProxy,
        ..SHORT
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_cuts_connections_that_are_quiet() {
    nothing_is_lost(Plan {
        kind: Kind::NginxConnections,
        ..SHORT
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_cuts_requests_that_are_quiet() {
    nothing_is_lost(Plan {
        kind: Kind::HaproxyRequests,
        tls: Tls::AtTheProxy,
        ..SHORT
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_cuts_connections_that_are_quiet() {
    nothing_is_lost(Plan {
        kind: Kind::HaproxyConnections,
        ..SHORT
    })
    .await;
}
