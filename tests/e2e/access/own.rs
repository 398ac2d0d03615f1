//! A slave speaks, and attaches, for its own pod, and takes nobody's place.

use super::{SECONDS, Secured, text, token};
use anyhow::ensure;
use kontrol_proto::v1::{
    AttachRequest, DispatchRequest, ListPodsRequest, PingRequest, PingResponse, WatchRequest,
    action_service_client::ActionServiceClient,
    attach_request::{Event, Hello},
    ensemble_service_client::EnsembleServiceClient,
    keepalive_service_client::KeepaliveServiceClient,
    watch_response,
};
use kontrol_tests::{SOON, node::Slave, small, wait::eventually};
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Code, Status};

const NONCE: &str = "00000000000000aa";

async fn ping(secured: &Secured, token: &str, id: &str, ip: &str) -> Result<PingResponse, Status> {
    let channel = secured.dial(&secured.with_token(token)).await.unwrap();
    let ping = PingRequest {
        app: "web".into(),
        id: id.into(),
        ip: ip.into(),
        role: "front".into(),
        nonce: NONCE.into(),
        ..PingRequest::default()
    };
    let answer = KeepaliveServiceClient::new(channel).ping(ping).await;
    answer.map(tonic::Response::into_inner)
}

async fn attach(secured: &Secured, token: &str, key: &str) -> Result<(), Status> {
    let channel = secured.dial(&secured.with_token(token)).await.unwrap();
    let hello = Hello {
        key: key.into(),
        nonce: NONCE.into(),
        attachment: 1,
        ..Hello::default()
    };
    let hello = AttachRequest {
        event: Some(Event::Hello(hello)),
    };
    let answer = ActionServiceClient::new(channel)
        .attach(tokio_stream::once(hello))
        .await;
    answer.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slave_takes_neither_the_name_nor_the_place_nor_the_channel_of_another() {
    let _permit = small().await;
    let (web, line_web) = token("slave", "web-1");
    let (evil, line_evil) = token("slave", "evil");
    let (reader, line_reader) = token("reader", "r");
    let secured = Secured::start(&[("ttl", "60s")], &[&line_web, &line_evil, &line_reader]).await;
    let key = ping(&secured, &web, "web-1", "127.0.0.7")
        .await
        .unwrap()
        .key;

    let name = ping(&secured, &evil, "web-1", "127.0.0.7")
        .await
        .unwrap_err();
    assert_eq!(name.code(), Code::PermissionDenied, "{name:?}");
    let place = ping(&secured, &evil, "evil", "127.0.0.7")
        .await
        .unwrap_err();
    assert_eq!(place.code(), Code::FailedPrecondition, "{place:?}");
    assert!(
        place.message().contains("may not take its place"),
        "{place:?}"
    );
    let channel = attach(&secured, &evil, &key).await.unwrap_err();
    assert_eq!(channel.code(), Code::PermissionDenied, "{channel:?}");
    attach(&secured, &web, &key).await.unwrap();

    let client = secured.dial(&secured.with_token(&reader)).await.unwrap();
    let pods = EnsembleServiceClient::new(client)
        .list_pods(ListPodsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .pods;
    let ids: Vec<&str> = pods.iter().map(|pod| pod.id.as_str()).collect();
    assert_eq!(ids, ["web-1"]);
    ping(&secured, &evil, "evil", "127.0.0.8").await.unwrap();
}

/// What a slave that lives is known by does not count any more: that is no death of its process. And the action of an operator
/// who is not known any more ends, whether its stream is read or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_goes_is_no_death_and_ends_what_its_operator_runs() {
    let _permit = small().await;
    let (web, line_web) = token("slave", "web-1");
    let (ann, line_ann) = token("operator", "ann");
    let (reader, line_reader) = token("reader", "r");
    let lines = [line_web.as_str(), &line_ann, &line_reader];
    let secured = Secured::start(&[("ttl", "9s")], &lines).await;
    let own = secured.dir.path().join("web-1.token");
    std::fs::write(&own, &web).unwrap();
    let url = format!("https://localhost:{}", secured.master.port());
    let ca = secured.ca.clone();
    let mut slave = Slave::start(
        "web-1",
        &[
            ("master", &url),
            ("ca", &text(&ca)),
            ("token-file", &text(&own)),
            ("id", "web-1"),
            ("ip", "127.0.0.7"),
            ("labels", r#"{"app":"web","role":"web"}"#),
        ],
        secured.dir.path(),
    );
    let by_reader = secured.dial(&secured.with_token(&reader)).await.unwrap();
    let mut ensembles = EnsembleServiceClient::new(by_reader.clone());
    let mut watch = ensembles
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    let by_ann = secured.dial(&secured.with_token(&ann)).await.unwrap();
    let mut actions = ActionServiceClient::new(by_ann);
    // Held, and never read.
    let _unread = eventually(SOON, "an action that is accepted", async || {
        let request = DispatchRequest {
            selector: Some(kontrol_proto::v1::Selector {
                all: true,
                ..Default::default()
            }),
            command: Some(kontrol_proto::v1::Command {
                shell: "sleep 600".into(),
                ..Default::default()
            }),
            ..DispatchRequest::default()
        };
        let mut told = actions.dispatch(request).await?.into_inner();
        let first = told.message().await?;
        ensure!(format!("{first:?}").contains("web-1"), "{first:?}");
        Ok(told)
    })
    .await;

    secured.set_tokens(&[&line_reader, &line_web]);
    let mut by_reader = ActionServiceClient::new(by_reader);
    eventually(SOON, "the end of the action", async || {
        let listed = by_reader
            .list_actions(kontrol_proto::v1::ListActionsRequest::default())
            .await?;
        let actions = listed.into_inner().actions;
        ensure!(
            actions.iter().any(|action| action.finished.is_some()),
            "{actions:?}"
        );
        Ok(())
    })
    .await;

    secured.set_tokens(&[&line_reader]);
    let left = timeout(SECONDS + SOON, async {
        loop {
            let message = watch.message().await.unwrap().expect("it goes on");
            if let Some(watch_response::Event::PodLeft(left)) = message.event {
                return left;
            }
        }
    });
    let left = left.await.expect("a pod that is not known any more leaves");
    assert_eq!(
        left.reason(),
        kontrol_proto::v1::LeaveReason::Expired,
        "{left:?}"
    );
    slave.stop(Duration::from_secs(10)).await;
}
