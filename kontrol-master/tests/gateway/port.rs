//! One port: gRPC and HTTP side by side, and the end of both.

use crate::{
    CLASSIC,
    client::{PATIENCE, get},
    script::*,
};
use kontrol_proto::v1::{
    PingRequest, PingStreamRequest, WatchRequest, ensemble_service_client::EnsembleServiceClient,
    keepalive_service_client::KeepaliveServiceClient, ping_stream_response,
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tower::ServiceExt;

#[tokio::test]
async fn grpc_shares_the_port_with_http() {
    let server = Server::start().await;
    let url = format!("http://{}", server.address);
    let mut keepalive = KeepaliveServiceClient::connect(url.clone()).await.unwrap();
    let ping = PingRequest {
        app: "web".into(),
        ..PingRequest::default()
    };
    let answer = keepalive.ping(ping.clone()).await.unwrap().into_inner();
    assert_eq!(
        (answer.key.as_str(), server.script.last_ping().ping),
        ("2kce4N", ping)
    );
    assert!(server.script.last_ping().peer.unwrap().ip().is_loopback());
    let status = keepalive
        .ping(PingRequest {
            app: "fail-14".into(),
            ..PingRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::Unavailable, "scripted: é")
    );

    let beats = (1..=3).map(|beat| {
        PingStreamRequest::from(PingRequest {
            beat,
            ..PingRequest::default()
        })
    });
    let mut answers = keepalive
        .ping_stream(futures::stream::iter(beats))
        .await
        .unwrap()
        .into_inner();
    for beat in 1..=3 {
        let answer = answers.message().await.unwrap().unwrap();
        let Some(ping_stream_response::Result::Response(answer)) = answer.result else {
            panic!("refused");
        };
        assert_eq!(answer.seq, beat);
    }
    assert_eq!(answers.message().await.unwrap(), None);

    let mut ensemble = EnsembleServiceClient::connect(url.clone()).await.unwrap();
    let mut watch = ensemble
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().revision, 11);
    assert_eq!(get(server.address, "/v1/ensemble").await.status, 200);

    let channel = tonic::transport::Endpoint::new(url)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut unknown = tonic::client::Grpc::new(channel);
    unknown.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/kontrol.v1.Nope/Nope");
    let codec = tonic_prost::ProstCodec::<PingRequest, PingRequest>::default();
    let status = unknown
        .unary(tonic::Request::new(PingRequest::default()), path, codec)
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    drop((keepalive, ensemble, watch, answers, unknown));
    server.stop().await;
}

#[tokio::test]
async fn one_http_1_connection_serves_many_requests() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!(
        "PUT /ping HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{CLASSIC}",
        CLASSIC.len()
    );
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 15];
        timeout(PATIENCE, stream.read_exact(&mut head))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        let mut rest = Vec::new();
        while !rest.ends_with(b"}") {
            rest.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
    }
    assert_eq!(server.script.pings(), 3);
    server.stop().await;
}

#[tokio::test]
async fn shutdown_lets_streams_end_and_idle_connections_go() {
    let server = Server::start_with_drain(PATIENCE * 10).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let url = format!("http://{}", server.address);
    let _channel = tonic::transport::Endpoint::new(url)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut reply = get(server.address, "/v1/watch").await;
    let mut text = reply.chunk().await.unwrap();
    server.cancel();
    while let Some(chunk) = reply.chunk().await {
        text.push_str(&chunk);
    }
    assert_eq!(text.lines().count(), 2);
    let served = timeout(PATIENCE, server.serving)
        .await
        .expect("the drain ends with the last stream");
    served.unwrap().unwrap();
    assert_eq!(
        timeout(PATIENCE, idle.read(&mut [0]))
            .await
            .unwrap()
            .unwrap_or(0),
        0
    );
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn shutdown_drops_what_does_not_end_in_time() {
    let server = Server::start_with_drain(Duration::from_millis(100)).await;
    let mut reply = get(server.address, &format!("/v1/watch?revision={STUBBORN}")).await;
    let mut grpc = EnsembleServiceClient::connect(format!("http://{}", server.address))
        .await
        .unwrap();
    let mut watch = grpc
        .watch(WatchRequest {
            revision: STUBBORN,
            history: None,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().revision, 11);
    server.cancel();
    let served = timeout(PATIENCE, server.serving)
        .await
        .expect("the drain has a deadline");
    served.unwrap().unwrap();
    let cut = async { while reply.next_chunk().await.is_ok() {} };
    timeout(PATIENCE, cut).await.expect("the connection is cut");
    assert_eq!(server.script.open_watches(), 0);
}

#[tokio::test]
async fn http_2_takes_json_as_well() {
    let server = Server::start().await;
    let url = format!("http://{}", server.address);
    let channel = tonic::transport::Endpoint::new(url)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let request = http::Request::put("/ping").body(tonic::body::Body::new(CLASSIC.to_owned()));
    let response = channel.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(
        (response.status(), response.version()),
        (http::StatusCode::OK, http::Version::HTTP_2)
    );
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(
        body,
        r#"{"key":"2kce4N","seq":0,"ttl":"25s","interval":"8.333s"}"#
    );
    assert_eq!(server.script.last_ping().ping.id, "web-1");
    server.stop().await;
}
