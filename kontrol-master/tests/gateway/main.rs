//! The HTTP gateway and the listener over real sockets: every annotated route, wrong input, streams, gRPC beside HTTP,
//! shutdown. The services behind are scripted; the rules of transcoding have their own tests beside the code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod port;
mod script;
mod streams;

use client::{get, send};
use kontrol_proto::v1::PingRequest;
use script::*;
use serde_json::json;

pub(crate) const CLASSIC: &str = r#"{"app":"web","id":"web-1","ip":"127.0.0.1","key":"2kce4N","nonce":"00000000000000aa","payload":"","role":"front","down":false}"#;

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
            let seen = server.script.last_ping();
            assert_eq!(seen.ping, expected);
            assert!(seen.peer.unwrap().ip().is_loopback());
            assert_eq!(seen.authorization.unwrap(), "Bearer t");
        }
    }
    server.stop().await;
}

/// A web page can send what looks like it over HTTP/1.1, past what keeps pages out.
#[tokio::test]
async fn grpc_over_http1_is_refused() {
    let server = Server::start().await;
    for method in ["POST", "GET"] {
        let reply = send(
            server.address,
            method,
            "/kontrol.v1.EnsembleService/GetState",
            &[("content-type", "application/grpc")],
            &[0; 5],
        )
        .await;
        assert_eq!(reply.status, 400, "{method}");
        assert!(reply.text().await.contains("gRPC is POST over HTTP/2"));
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
        json!({
            "configured": false, "pendingSince": "1970-01-01T00:00:00Z", "failures": 0, "runningDigest": "", "error": "",
        })
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
    for state in [
        r#"{"state":null"#,
        r#"{"state":{"n":12345678901234567890123}"#,
    ] {
        let put = format!("{state}}}");
        let put = send(server.address, "PUT", "/v1/state", &[], put.as_bytes()).await;
        assert_eq!(put.status, 200);
        let got = get(server.address, "/state").await.text().await;
        assert_eq!(got, format!("{state},\"digest\":\"\",\"epoch\":0}}"));
    }
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
    let huge = format!("{{\"payload\":\"{}\"}}", "x".repeat(9 * 1024 * 1024));
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
        ("/ping", json, &deep, "nests too deeply"),
        ("/ping", json, &just_too_deep, "nests too deeply"),
        (
            "/ping",
            json,
            &huge,
            "the body is larger than 8388608 bytes",
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
async fn headers_of_the_http_message_are_not_taken_for_those_of_the_call() {
    let server = Server::start().await;
    let headers = [
        ("grpc-encoding", "gzip"),
        ("te", "gzip"),
        ("expect", "100-continue"),
    ];
    let reply = send(
        server.address,
        "PUT",
        "/ping",
        &headers[..2],
        CLASSIC.as_bytes(),
    )
    .await;
    assert_eq!(reply.status, 200);
    let too_large = [headers[2], ("content-length", "9000000")];
    let reply = send(server.address, "PUT", "/ping", &too_large, b"").await;
    assert_eq!(reply.status, 400);
    server.stop().await;
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let server = Server::start().await;
    for (headers, status) in [
        (&[("origin", "http://evil.example")][..], 403),
        (&[("origin", "null")], 403),
        (&[("origin", "http://test")], 200),
        (&[("sec-fetch-site", "cross-site")], 403),
        (
            &[("sec-fetch-site", "same-site"), ("origin", "http://test")],
            403,
        ),
        (
            &[("sec-fetch-site", "same-origin"), ("origin", "http://test")],
            200,
        ),
        (&[("sec-fetch-site", "none")], 200),
    ] {
        let put = send(server.address, "PUT", "/ping", headers, CLASSIC.as_bytes()).await;
        assert_eq!(put.status, status, "{headers:?}");
        let read = send(server.address, "GET", "/v1/pods", headers, b"").await;
        assert_eq!(read.status, 200, "reading is the browser's to allow");
    }
    assert_eq!(server.script.pings(), 3);
    server.stop().await;
}

#[tokio::test]
async fn an_empty_body_is_an_empty_request() {
    let server = Server::start().await;
    assert_eq!(
        send(server.address, "PUT", "/ping", &[], b"").await.status,
        200
    );
    assert_eq!(server.script.last_ping().ping, PingRequest::default());
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
        ("OPTIONS", "/v1/pods/a", "GET, DELETE, HEAD"),
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
