//! The HTTP gateway and the listener over real sockets: every annotated route, wrong input, streams, gRPC beside HTTP,
//! shutdown. The services behind are scripted; the rules of transcoding have their own tests beside the code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod script;

use client::{PATIENCE, get, send, until};
use kontrol_proto::v1::{
    PingRequest, PingStreamRequest, WatchRequest, ensemble_service_client::EnsembleServiceClient,
    keepalive_service_client::KeepaliveServiceClient, ping_stream_response,
};
use script::*;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const CLASSIC: &str = r#"{"app":"web","id":"web-1","ip":"127.0.0.1","key":"2kce4N","nonce":"00000000000000aa","payload":"","role":"front","down":false}"#;

#[tokio::test]
async fn the_classic_keepalive_is_taken_on_both_routes_whatever_curl_calls_it() {
    let server = Server::start().await;
    for target in ["/ping", "/v1/keepalive"] {
        for headers in [
            &[
                ("content-type", "application/json; charset=utf-8"),
                ("authorization", "Bearer t"),
            ][..],
            &[
                ("content-type", "application/x-www-form-urlencoded"),
                ("accept", "*/*"),
                ("authorization", "Bearer t"),
            ],
            &[("authorization", "Bearer t")],
        ] {
            let reply = send(server.address, "PUT", target, headers, CLASSIC.as_bytes()).await;
            assert_eq!(
                (reply.status, reply.header("content-type")),
                (200, "application/json")
            );
            assert_eq!(
                reply.text().await,
                r#"{"key":"2kce4N","seq":0,"ttl":"25s","interval":"8.333s"}"#
            );
            let expected = PingRequest {
                app: "web".into(),
                id: "web-1".into(),
                ip: "127.0.0.1".into(),
                key: "2kce4N".into(),
                nonce: "00000000000000aa".into(),
                role: "front".into(),
                payload: Some(text("")),
                ..PingRequest::default()
            };
            assert_eq!(server.script.last_ping(), expected);
            let (peer, authorization) = server.script.last_caller();
            assert!(peer.unwrap().ip().is_loopback());
            assert_eq!(authorization.unwrap(), "Bearer t");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn every_route_of_the_ensemble_answers() {
    let server = Server::start().await;
    let ensemble = get(server.address, "/v1/ensemble").await.json().await;
    assert_eq!(ensemble["epoch"], json!(1_u64 << 60));
    assert_eq!(
        (&ensemble["masters"], &ensemble["podCount"]),
        (&json!([]), &json!(0))
    );
    assert_eq!(ensemble.get("leader"), None);
    assert_eq!(
        ensemble["callback"],
        json!({"configured": false, "pendingSince": "1970-01-01T00:00:00Z", "failures": 0})
    );

    let pods = get(
        server.address,
        "/v1/pods?role=front&selector=tier+in+(a%2Cb)",
    )
    .await;
    let pods = pods.text().await;
    assert!(pods.contains(r#""seq":9007199254740993"#), "{pods}");
    assert!(
        pods.contains(r#""payload":3,"labels":{},"annotations":{},"node":"""#),
        "{pods}"
    );
    let listed = server.script.listed();
    assert_eq!(
        (listed.role.as_str(), listed.selector.as_str()),
        ("front", "tier in (a,b)")
    );

    assert_eq!(
        get(server.address, "/v1/pods/39mysN").await.json().await["pod"]["key"],
        "39mysN"
    );
    let explained = get(server.address, "/v1/pods/39mysN:explain")
        .await
        .json()
        .await;
    assert_eq!(
        explained,
        json!({"key": "39mysN", "live": false, "views": [], "summary": ""})
    );

    let state = get(server.address, "/state").await.json().await;
    assert_eq!(state, json!({"digest": "", "epoch": 0}));
    let body = br#"{"state":{"n":[1,1.5]}}"#;
    let put = send(server.address, "PUT", "/v1/state", &[], body).await;
    assert_eq!(put.json().await, json!({"revision": 5}));
    for target in ["/v1/state", "/state"] {
        let state = get(server.address, target).await.json().await;
        assert_eq!(state["state"], json!({"n": [1, 1.5]}));
    }
    let put = send(
        server.address,
        "PUT",
        "/v1/state",
        &[],
        br#"{"state":null}"#,
    )
    .await;
    assert_eq!(put.status, 200);
    assert_eq!(
        get(server.address, "/state").await.json().await["state"],
        Value::Null
    );
    server.stop().await;
}

#[tokio::test]
async fn every_status_of_a_service_has_its_http_status() {
    let server = Server::start().await;
    let statuses = [
        499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401,
    ];
    for (code, expected) in (1..=16).zip(statuses) {
        let body = format!(r#"{{"app":"fail-{code}"}}"#);
        let reply = send(server.address, "PUT", "/ping", &[], body.as_bytes()).await;
        assert_eq!(reply.status, expected, "code {code}");
        let error = json!({"code": code, "message": "scripted: é", "details": []});
        assert_eq!(reply.json().await, error);
    }
    let reply = get(server.address, "/v1/pods/missing").await;
    assert_eq!(reply.status, 404);
    assert_eq!(
        reply.json().await["message"],
        "no live pod has the key missing"
    );
    server.stop().await;
}

#[tokio::test]
async fn wrong_input_is_a_400_that_says_what_is_wrong_and_reaches_no_service() {
    let server = Server::start().await;
    let deep = format!(
        "{{\"payload\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let just_too_deep = format!("{{\"payload\":{}{}}}", "[".repeat(50), "]".repeat(50));
    let huge = format!("{{\"payload\":\"{}\"}}", "x".repeat(4 * 1024 * 1024));
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    let multipart: &[(&str, &str)] = &[("content-type", "multipart/form-data; boundary=x")];
    let gzip: &[(&str, &str)] = &[("content-encoding", "gzip")];
    for (target, headers, body, reason) in [
        (
            "/ping",
            json,
            "garbage",
            "the body is not JSON: expected value at line 1 column 1",
        ),
        ("/ping", json, "{\"app\":\"a\"", "the body is not JSON: EOF"),
        ("/ping", json, "\u{0}\u{1}", "the body is not JSON"),
        (
            "/ping",
            json,
            r#"{"ip":5}"#,
            "ip: invalid type: integer `5`",
        ),
        (
            "/ping",
            json,
            r#"{"labels":{"a":["b"]}}"#,
            "labels.a: invalid type: sequence",
        ),
        ("/ping", json, r#"{"beat":-1}"#, "beat: "),
        (
            "/ping",
            json,
            r#"{"apps":"a"}"#,
            "unrecognized field name 'apps'",
        ),
        ("/ping", json, &deep, "payload nests too deeply"),
        ("/ping", json, &just_too_deep, "payload nests too deeply"),
        (
            "/ping",
            json,
            &huge,
            "the body is larger than 2097152 bytes",
        ),
        (
            "/ping",
            multipart,
            "--x--",
            "content-type multipart/form-data is not taken: send application/json",
        ),
        ("/ping", gzip, CLASSIC, "the body is compressed"),
        (
            "/ping?app=x",
            json,
            CLASSIC,
            "unknown query parameter \"app\"",
        ),
        (
            "/v1/state",
            json,
            r#"{"state":1,"stat":2}"#,
            "unrecognized field name 'stat'",
        ),
    ] {
        let reply = send(server.address, "PUT", target, headers, body.as_bytes()).await;
        assert_eq!(reply.status, 400, "{target} {body:.60}");
        let error = reply.json().await;
        assert_eq!(error["code"], 3);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(reason), "{body:.60}: {message}");
    }
    for (target, reason) in [
        ("/v1/pods?rol=x", "unknown query parameter \"rol\""),
        (
            "/v1/pods?role=a&role=b",
            "query parameter role is given twice",
        ),
        (
            "/v1/watch?revision=x",
            "query parameter revision: invalid digit found in string",
        ),
        ("/v1/pods/%FF", "the path is not UTF-8"),
    ] {
        let reply = get(server.address, target).await;
        assert_eq!(reply.status, 400, "{target}");
        let error = reply.json().await;
        assert!(
            error["message"].as_str().unwrap().contains(reason),
            "{error}"
        );
    }
    assert_eq!((server.script.pings(), server.script.stored()), (0, None));
    server.stop().await;
}

#[tokio::test]
async fn an_empty_body_is_an_empty_request() {
    let server = Server::start().await;
    assert_eq!(
        send(server.address, "PUT", "/ping", &[], b"").await.status,
        200
    );
    assert_eq!(server.script.last_ping(), PingRequest::default());
    server.stop().await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_in_json() {
    let server = Server::start().await;
    let reply = get(server.address, "/nope").await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (404, "application/json")
    );
    assert_eq!(
        reply.json().await,
        json!({"code": 5, "message": "nothing is at /nope", "details": []})
    );
    for (method, target, allow) in [
        ("GET", "/ping", "PUT"),
        ("DELETE", "/v1/state", "GET, PUT, HEAD"),
        ("POST", "/v1/pods/a:explain", "GET, HEAD"),
        ("OPTIONS", "/v1/pods/a", "GET, HEAD"),
    ] {
        let reply = send(server.address, method, target, &[], b"").await;
        assert_eq!(
            (reply.status, reply.header("allow")),
            (405, allow),
            "{method} {target}"
        );
        assert_eq!(
            reply.json().await["message"],
            format!("{target} takes {allow}, not {method}")
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Server::start().await;
    let reply = send(server.address, "HEAD", "/v1/pods/a", &[], b"").await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/json")
    );
    assert_ne!(reply.header("content-length"), "0");
    assert_eq!(reply.text().await, "");
    let reply = send(server.address, "HEAD", "/v1/watch", &[], b"").await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/x-ndjson")
    );
    until("the watch of the HEAD ends", || {
        server.script.open_watches() == 0
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_watch_is_ndjson_each_line_as_soon_as_it_happens() {
    let server = Server::start().await;
    let mut reply = get(server.address, "/v1/watch?revision=10").await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/x-ndjson")
    );
    assert_eq!(server.script.last_watched_from(), 10);
    let mut lines = String::new();
    while lines.lines().count() < 2 {
        lines.push_str(&reply.chunk().await.unwrap());
    }
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["revision"], &first["podLeft"]["reason"]),
        (&json!(11), &json!("LEAVE_REASON_LOST"))
    );
    assert!(lines.ends_with('\n'));
    assert_eq!(server.script.open_watches(), 1);
    drop(reply);
    until("the watch of a client that went away ends", || {
        server.script.open_watches() == 0
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_watch_can_be_server_sent_events_that_resume() {
    let server = Server::start().await;
    let events = ("accept", "text/html;q=0.5, Text/Event-Stream");
    let again = ("last-event-id", "10");
    let mut reply = send(server.address, "GET", "/v1/watch", &[events, again], b"").await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "text/event-stream")
    );
    assert_eq!(server.script.last_watched_from(), 10);
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        text.push_str(&reply.chunk().await.unwrap());
    }
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("id: 11"));
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with(r#"data: {"revision":11,"podLeft":{"pod":"#)
    );
    assert_eq!((lines.next(), lines.next()), (Some(""), Some("id: 12")));

    send(
        server.address,
        "GET",
        "/v1/watch?revision=9",
        &[events, again],
        b"",
    )
    .await;
    assert_eq!(server.script.last_watched_from(), 9);
    let wrong = ("last-event-id", "x");
    let reply = send(server.address, "GET", "/v1/watch", &[events, wrong], b"").await;
    assert_eq!(reply.status, 400);
    assert_eq!(
        reply.json().await["message"],
        "Last-Event-ID: invalid digit found in string"
    );
    server.stop().await;
}

#[tokio::test]
async fn an_error_before_the_first_message_is_a_status_a_later_one_the_last_line() {
    let server = Server::start().await;
    let at = |revision: i64| format!("/v1/watch?revision={revision}");
    let reply = get(server.address, &at(FAIL_AT_ONCE)).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json().await["message"], "no roster yet");
    assert_eq!(
        get(server.address, &at(FAIL_AS_FIRST_MESSAGE)).await.status,
        429
    );

    let cut_off = json!({"error": {"code": 8, "message": "reads too slowly", "details": []}});
    let reply = get(server.address, &at(FAIL_AFTER_ONE)).await;
    assert_eq!(reply.status, 200);
    let text = reply.text().await;
    assert_eq!(text.lines().count(), 2);
    assert_eq!(
        serde_json::from_str::<Value>(text.lines().last().unwrap()).unwrap(),
        cut_off
    );

    let events = [("accept", "text/event-stream")];
    let reply = send(server.address, "GET", &at(FAIL_AFTER_ONE), &events, b"").await;
    let text = reply.text().await;
    assert!(
        text.ends_with(&format!("\n\nevent: error\ndata: {cut_off}\n\n")),
        "{text}"
    );

    let text = get(server.address, &at(END_AFTER_ONE)).await.text().await;
    assert_eq!(text.lines().count(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_with_nothing_to_say_yet_opens_all_the_same() {
    let server = Server::start().await;
    let reply = get(server.address, &format!("/v1/watch?revision={SILENT}")).await;
    assert_eq!(reply.status, 200);
    server.cancel();
    assert_eq!(reply.text().await, "");
    server.stop().await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_service_and_nothing_piles_up() {
    let server = Server::start().await;
    let mut reply = get(server.address, &format!("/v1/watch?revision={FLOOD}")).await;
    let mut seen = 0;
    let mut calm = 0;
    until("the flood stops", || {
        let flooded = server.script.flooded();
        calm = if flooded == seen { calm + 1 } else { 0 };
        seen = flooded;
        calm > 100
    })
    .await;
    let held = server.script.flooded() as usize * FLOOD_BYTES;
    assert!(
        held < 32 * 1024 * 1024,
        "{held} bytes are on their way to a reader who doesn't read"
    );
    until_flooded_past(&server, &mut reply, seen).await;
    drop(reply);
    until("the flood is dropped", || server.script.open_watches() == 0).await;
    server.stop().await;
}

/// Reads until the service made more than `mark` messages.
async fn until_flooded_past(server: &Server, reply: &mut client::Reply, mark: u64) {
    let reading = async {
        while server.script.flooded() <= mark {
            reply.next_chunk().await.unwrap();
        }
    };
    timeout(PATIENCE, reading)
        .await
        .expect("the flood goes on once it is read");
}

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
        (answer.key.as_str(), server.script.last_ping()),
        ("2kce4N", ping)
    );
    assert!(server.script.last_caller().0.unwrap().ip().is_loopback());
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

    let beats = (1..=3).map(|beat| PingStreamRequest {
        ping: Some(PingRequest {
            beat,
            ..PingRequest::default()
        }),
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
        .watch(WatchRequest { revision: STUBBORN })
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
