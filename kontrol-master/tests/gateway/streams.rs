//! Server streams over HTTP/1.1: NDJSON, Server-Sent Events, slow readers, readers that leave.

use crate::{
    client::{self, PATIENCE, get, send},
    script::*,
};
use kontrol_runtime::testing::until;
use serde_json::{Value, json};
use tokio::time::timeout;

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
    assert_eq!(
        server.script.last_watched_from(),
        10,
        "an EventSource keeps its URL: the header is newer"
    );
    for none in [("last-event-id", ""), ("accept", "*/*")] {
        let headers = [events, none];
        send(server.address, "GET", "/v1/watch?revision=9", &headers, b"").await;
        assert_eq!(server.script.last_watched_from(), 9);
    }
    let place = ("last-event-id", "10-00000000000000aa");
    let target = "/v1/watch?revision=9&history=00000000000000bb";
    send(server.address, "GET", target, &[events, place], b"").await;
    let watched = server.script.last_watch();
    assert_eq!(watched.revision, 10);
    assert_eq!(watched.history.as_deref(), Some("00000000000000aa"));
    send(server.address, "GET", target, &[events], b"").await;
    let watched = server.script.last_watch();
    assert_eq!(watched.history.as_deref(), Some("00000000000000bb"));
    send(server.address, "GET", "/v1/watch", &[events], b"").await;
    let watched = server.script.last_watch();
    assert_eq!(
        watched.history.as_deref(),
        Some(""),
        "each event is to name it"
    );
    get(server.address, "/v1/watch").await;
    assert_eq!(server.script.last_watch().history, None);
    let target = format!("/v1/watch?revision={WITH_HISTORY}&history=00000000000000bb");
    let reply = send(server.address, "GET", &target, &[events], b"").await;
    let text = reply.text().await;
    assert!(
        text.starts_with("id: 11-00000000000000bb\ndata: {"),
        "{text}"
    );

    // Of no stream of ours: a browser would not try again after an error.
    for wrong in ["x", "-3", "18446744073709551616-00000000000000aa"] {
        let wrong = ("last-event-id", wrong);
        let reply = send(
            server.address,
            "GET",
            "/v1/watch?revision=9",
            &[events, wrong],
            b"",
        )
        .await;
        assert_eq!(reply.status, 200);
        let watched = server.script.last_watch();
        assert_eq!(
            (watched.revision, watched.history.as_deref()),
            (0, Some(""))
        );
    }
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

    let cut_off = r#"{"error":{"code":8,"message":"reads too slowly","details":[]}}"#;
    let reply = get(server.address, &at(FAIL_AFTER_ONE)).await;
    assert_eq!(reply.status, 200);
    let text = reply.text().await;
    assert_eq!(text.lines().count(), 2);
    assert_eq!(text.lines().last(), Some(cut_off));

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
