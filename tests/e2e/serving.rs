//! What a master serves beside its services: health, readiness, metrics, reflection.

use anyhow::ensure;
use kontrol_tests::{
    SOON, client::Api, cluster::Cluster, etcd::Etcd, pod::PodSpec, small, wait::eventually,
};
use prost::Message;
use prost_types::FileDescriptorProto;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_store_and_health_does_not() {
    let _permit = small().await;
    let Some(mut etcd) = Etcd::start().await else {
        return;
    };
    let cluster = Cluster::on(&etcd.store())
        .masters(2)
        .patient()
        .start()
        .await;
    let status = async |path: &str| cluster.api(0).http("GET", path, None).await.status;
    assert_eq!(
        (status("/healthz").await, status("/readyz").await),
        (200, 200)
    );
    etcd.stop().await;
    eventually(SOON, "master that is not ready", async || {
        ensure!(status("/readyz").await == 503);
        Ok(())
    })
    .await;
    assert_eq!(status("/healthz").await, 200);
    let metrics = cluster.api(0).http("GET", "/metrics", None).await;
    assert_eq!(
        metrics.status, 200,
        "an alarm must be possible while the store is down"
    );
    etcd.restart().await;
    eventually(SOON, "master that is ready again", async || {
        ensure!(status("/readyz").await == 200);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_keepalives_and_pods() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    for beat in 1..8 {
        api.ping(&PodSpec::number(0).beat(beat)).await.unwrap();
    }
    cluster
        .ensemble(0, "one pod", |view| view.pod_count == 1)
        .await;
    let answer = api.http("GET", "/metrics", None).await;
    assert!(
        answer.kind.contains("openmetrics") || answer.kind.starts_with("text/plain"),
        "{}",
        answer.kind
    );
    let value = |part: &str| -> Vec<f64> {
        let lines = answer
            .body
            .lines()
            .filter(|line| line.starts_with("kontrol_master_") && line.contains(part));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect()
    };
    assert!(value("keepalive").contains(&7.0), "{}", answer.body);
    assert!(value("pods").contains(&1.0), "{}", answer.body);
    assert!(!answer.body.contains("pod-0"), "no pod is a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grpc_health_service_says_serving() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let mut client = HealthClient::new(cluster.api(0).channel());
    for service in [
        "",
        "kontrol.v1.KeepaliveService",
        "kontrol.v1.EnsembleService",
    ] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let status = client.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
}

macro_rules! reflection {
    ($name:ident, $version:ident) => {
        /// Everything that the reflection service says: the services, and the file that holds a symbol.
        async fn $name(api: &Api, symbol: &str) -> (Vec<String>, Vec<FileDescriptorProto>) {
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let asks = [
                MessageRequest::ListServices(String::new()),
                MessageRequest::FileContainingSymbol(symbol.to_owned()),
            ];
            let asks = asks.map(|ask| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(ask),
            });
            let mut client = ServerReflectionClient::new(api.channel());
            let stream = client
                .server_reflection_info(tokio_stream::iter(asks))
                .await;
            let mut stream = stream.unwrap().into_inner();
            let (mut services, mut files) = (Vec::new(), Vec::new());
            while let Some(answer) = stream.message().await.unwrap() {
                match answer.message_response.unwrap() {
                    MessageResponse::ListServicesResponse(list) => {
                        services.extend(list.service.into_iter().map(|service| service.name));
                    }
                    MessageResponse::FileDescriptorResponse(found) => {
                        let found = found.file_descriptor_proto.iter();
                        files.extend(
                            found.map(|bytes| FileDescriptorProto::decode(&bytes[..]).unwrap()),
                        );
                    }
                    other => panic!("{other:?}"),
                }
            }
            (services, files)
        }
    };
}
reflection!(reflect_v1, v1);
reflection!(reflect_v1alpha, v1alpha);

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_with_their_comments() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let symbol = "kontrol.v1.PingRequest";
    for (services, files) in [
        reflect_v1(&api, symbol).await,
        reflect_v1alpha(&api, symbol).await,
    ] {
        for service in [
            "kontrol.v1.KeepaliveService",
            "kontrol.v1.EnsembleService",
            "grpc.health.v1.Health",
        ] {
            assert!(
                services.iter().any(|listed| listed == service),
                "{services:?}"
            );
        }
        let file = files
            .iter()
            .find(|file| file.name().ends_with("keepalive.proto"))
            .unwrap();
        let comments = file
            .source_code_info
            .as_ref()
            .expect("descriptors carry their comments");
        let said = |text: &str| {
            comments
                .location
                .iter()
                .any(|location| location.leading_comments().contains(text))
        };
        assert!(said("Takes the keepalives of pods"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_ensemble_over_http_tells_the_settings_and_the_leader() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).masters(2).start().await;
    let leader = cluster.leader().await;
    let view = cluster.api(1).http("GET", "/v1/ensemble", None).await.ok();
    assert_eq!(view["leader"]["id"], format!("master-{leader}"));
    assert_eq!(view["leader"]["address"], cluster.masters[leader].address());
    assert_eq!(view["settings"]["ttl"], "3s");
    assert_eq!(view["settings"]["damper"], "0.500s");
    assert_eq!(view["settings"]["damperMax"], "3s", "six times the damper");
    assert_eq!(
        view["digest"], "d751713988987e9331980363e24189ce",
        "of no pods"
    );
    assert_eq!(view["master"], "master-1");
}
