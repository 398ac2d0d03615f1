//! Answers: messages in pieces, ends, and signs of life.

use super::*;

/// A gRPC service that answers with these bytes of body, some at a time, and then ends with this status.
fn answering(frames: &[&'static [u8]], status: &'static str) -> Router {
    let rpcs = json!([
        rpc("Unary", json!({"get": "/unary"})),
        streaming(json!({"get": "/stream"}))
    ]);
    let frames = frames.to_vec();
    let answer = move || async move {
        let data = frames
            .into_iter()
            .map(|data| Ok::<_, Status>(Frame::data(Bytes::from_static(data))));
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(status));
        let body = data
            .chain([Ok(Frame::trailers(trailers))])
            .collect::<Vec<_>>();
        Response::new(Body::new(StreamBody::new(stream::iter(body))))
    };
    router_of(
        &descriptors(rpcs),
        Routes::from(Router::new().fallback(answer)),
    )
    .unwrap()
}

fn streaming(rule: Value) -> Value {
    let mut rpc = rpc("Stream", rule);
    rpc["serverStreaming"] = json!(true);
    rpc
}

async fn read(router: Router, target: &str) -> (StatusCode, String) {
    let request = http::Request::get(target).body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn messages_are_put_together_however_they_are_cut() {
    for frames in [
        &[&b"\0\0\0\0\x03\x0a\x01a\0\0\0\0\x03\x0a\x01b"[..]][..],
        &[
            b"\0\0",
            b"",
            b"\0\0\x03\x0a",
            b"\x01a\0\0\0\0\x03\x0a\x01",
            b"b",
        ],
    ] {
        let (status, text) = read(answering(frames, "0"), "/stream").await;
        assert_eq!(status, StatusCode::OK);
        let names: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].take())
            .collect();
        assert_eq!(names, ["a", "b"]);
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_an_internal_error() {
    for frames in [&[&b"\0\0\0\0\x01\xff"[..]][..], &[b"\x01\0\0\0\0"], &[]] {
        let (status, text) = read(answering(frames, "0"), "/unary").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["code"], 13);
    }
    let (status, text) = read(
        answering(&[b"\0\0\0\0\x03\x0a\x01a\0\0\0\0\x01\xff"], "0"),
        "/stream",
    )
    .await;
    assert_eq!((status, text.lines().count()), (StatusCode::OK, 2));
    assert!(text.ends_with("{\"error\":{\"code\":13,\"message\":\"the answer can't be written as JSON\",\"details\":[]}}\n"));
}

#[tokio::test]
async fn the_status_behind_a_message_counts() {
    let message = b"\0\0\0\0\x03\x0a\x01a";
    let (status, text) = read(answering(&[message], "5"), "/unary").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{text}");
}

/// The clock jumps from time-out to time-out: there is nothing else to wait for.
#[tokio::test(start_paused = true)]
async fn a_quiet_stream_shows_a_sign_of_life_in_either_format() {
    // The service's own signs of life, messages without a event, say nothing more.
    let silent = || async {
        let signs = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Some((Ok::<_, Status>(Bytes::from_static(b"\0\0\0\0\0")), ()))
        });
        Response::new(Body::from_stream(signs))
    };
    for (accept, content_type, sign) in [
        ("text/event-stream", "text/event-stream", ":\n\n"),
        ("*/*", "application/x-ndjson", "\n"),
    ] {
        let rpcs = json!([streaming(json!({"get": "/stream"}))]);
        let grpc = Routes::from(Router::new().fallback(silent));
        let router = router_of(&descriptors(rpcs), grpc).unwrap();
        let request = http::Request::get("/stream").header("accept", accept);
        let started = tokio::time::Instant::now();
        let response = router
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], content_type);
        assert!(started.elapsed() < Duration::from_secs(2));
        let mut body = response.into_body();
        for _ in 0..3 {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), sign);
        }
        let elapsed = started.elapsed();
        assert!(elapsed > Duration::from_secs(15) && elapsed < Duration::from_secs(18));
    }
}
