//! Those who want the memory: bodies of a gigabyte, many bodies at once, answers that nobody reads.

use super::{
    frames::{DATA, END_STREAM, FRAME_BYTES, Frame, RST_STREAM, WINDOW_UPDATE, frame},
    from,
    stage::Done,
    wire::{HTTP_1, Target, Wire, attend},
};
use anyhow::ensure;
use futures::future::join_all;
use kontrol_tests::{pod::PodSpec, wait::eventually};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    time::{sleep, timeout},
};

/// What a body may take: 8 MiB, in a buffer that grows.
pub(super) const BODY_MIB: u64 = 16;
/// What one caller may have a master wait for the rest of, and the same again while it is read.
const SHARE_MIB: usize = 64;
pub(super) const UPLOADS_MIB: u64 = 2 * SHARE_MIB as u64;
/// Connections whose answers nobody reads, and what of them may wait on each, with the answer that made it too much.
pub(super) const UNREAD: usize = 2;
pub(super) const UNSENT_MIB: u64 = 36;
/// Connections whose refusals nobody reads, and how many these are in all.
pub(super) const REFUSED: usize = 20;
pub(super) const REFUSALS: usize = 10_000;
/// Watches that nobody reads.
pub(super) const WATCHES: usize = 50;
const GIB: usize = 1 << 30;
/// How long an answer may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most of a body that a master may take in before it refuses it: 8 MiB, and what it throws away so that its refusal is
/// read, 16 MiB more; the rest is on its way in the buffers of the two sockets.
const TAKEN_BYTES: usize = 40 << 20;

/// Writes a gigabyte until it is refused, and tells how much was taken and what was answered.
async fn pour(wire: Wire, head: String, piece: &[u8]) -> (usize, String) {
    let (mut reader, mut writer) = split(wire);
    writer.write_all(head.as_bytes()).await.unwrap();
    let writing = async {
        let mut taken = 0;
        while taken < GIB {
            // Whoever is refused finds the connection closed.
            if writer.write_all(piece).await.is_err() {
                break;
            }
            taken += piece.len();
        }
        taken
    };
    let reading = async {
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = reader.read(&mut piece).await {
            answer.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let both = async { tokio::join!(writing, reading) };
    timeout(PATIENCE, both).await.expect("a refusal")
}

/// A body of a gigabyte: announced, in chunks, over HTTP/2, and as one message of gRPC.
pub(super) async fn bodies(target: Target) -> Done {
    let mut notes = Vec::new();
    let piece = vec![b' '; FRAME_BYTES];
    let chunk = [b"4000\r\n", &piece[..], b"\r\n"].concat();
    for (kind, header, piece) in [
        (
            "announced",
            format!("content-length: {GIB}\r\n\r\n"),
            &piece,
        ),
        (
            "chunked",
            "transfer-encoding: chunked\r\n\r\n".to_owned(),
            &chunk,
        ),
    ] {
        let wire = target.connect(from(0), HTTP_1).await.unwrap();
        let head = target.lines("PUT", "/v1/state") + &header;
        let (taken, answer) = pour(wire, head, piece).await;
        assert!(taken < TAKEN_BYTES, "{kind}: {taken} bytes were taken");
        // A refusal can be lost where the connection is reset behind it.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{kind}: {answer}"
        );
        notes.push(format!("{kind} {} MiB", taken >> 20));
    }
    for (kind, path, prefix) in [
        ("HTTP/2", "/v1/state", &b""[..]),
        (
            "gRPC",
            "/kontrol.v1.EnsembleService/PutState",
            &[0, 0x40, 0, 0, 0],
        ),
    ] {
        let mut upload = Upload::begin(&target, 0, path, prefix).await;
        let ended = timeout(PATIENCE, upload.send(GIB))
            .await
            .expect("a refusal");
        assert!(ended, "{kind}: a gigabyte was taken");
        assert!(
            upload.sent < TAKEN_BYTES,
            "{kind}: {} bytes were taken",
            upload.sent
        );
        notes.push(format!("{kind} {} MiB", upload.sent >> 20));
    }
    Done::with(format!("taken of 1 GiB: {}", notes.join(", ")))
}

/// The body of a request over HTTP/2, which sends no more than the master allows.
struct Upload {
    wire: Wire,
    /// What the stream and the connection still take.
    windows: [usize; 2],
    sent: usize,
    ended: bool,
}

impl Upload {
    async fn begin(target: &Target, number: usize, path: &str, prefix: &[u8]) -> Self {
        let mut wire = target.http2(from(number), 1 << 20).await.unwrap();
        let method = if path.starts_with("/kontrol.") {
            "POST"
        } else {
            "PUT"
        };
        let mut begin = target.head(1, method, path, false);
        begin.extend(frame(DATA, 0, 1, prefix));
        wire.write_all(&begin).await.unwrap();
        wire.flush().await.unwrap();
        let taken = prefix.len();
        Self {
            wire,
            windows: [(64 << 10) - 1 - taken; 2],
            sent: taken,
            ended: false,
        }
    }

    /// Sends so many bytes in all, as far as they are taken; tells whether the master has ended it before.
    async fn send(&mut self, bytes: usize) -> bool {
        let piece = [b' '; FRAME_BYTES];
        while self.sent < bytes && !self.ended {
            let may = self.windows[0].min(self.windows[1]).min(FRAME_BYTES);
            if may == 0 {
                // TLS keeps what the socket did not take at once.
                self.ended |= self.wire.flush().await.is_err();
                self.listen().await;
                continue;
            }
            let wrote = self.wire.write_all(&frame(DATA, 0, 1, &piece[..may])).await;
            self.ended |= wrote.is_err();
            self.windows = self.windows.map(|window| window - may);
            self.sent += may;
        }
        if self.wire.flush().await.is_err() {
            self.ended = true;
        }
        self.ended
    }

    /// Waits for a frame that says that more is taken, or that nothing is.
    async fn listen(&mut self) {
        let (windows, ended) = (&mut self.windows, &mut self.ended);
        let seen = |seen: &Frame| {
            if seen.kind == WINDOW_UPDATE {
                let more = <[u8; 4]>::try_from(&seen.payload[..]).unwrap();
                windows[usize::from(seen.stream == 0)] += u32::from_be_bytes(more) as usize;
                return true;
            }
            *ended |= seen.ends_a_stream();
            *ended
        };
        if attend(&mut self.wire, seen).await.is_err() {
            self.ended = true;
        }
    }
}

/// Bodies of almost 8 MiB, all at the same time, none of which comes to its end.
pub(super) async fn uploads(target: Target) -> Done {
    const COUNT: usize = 24;
    let uploads = (0..COUNT).map(async |number| {
        let path = "/kontrol.v1.EnsembleService/PutState";
        let (bytes, announced) = (7 << 20, 8_u32 << 20);
        let prefix = [&[0][..], &announced.to_be_bytes()].concat();
        let mut upload = Upload::begin(&target, number, path, &prefix).await;
        let sent = timeout(PATIENCE, upload.send(bytes)).await;
        let refused = sent.expect("an upload that is taken or refused");
        (upload, refused)
    });
    let uploads = join_all(uploads).await;
    let refused = uploads.iter().filter(|(_, refused)| *refused).count();
    let taken = (COUNT - refused) * 7;
    assert!(
        (1..=SHARE_MIB).contains(&taken),
        "{taken} MiB are waited for"
    );
    // They are held while the window of the measurement lasts.
    sleep(Duration::from_secs(1)).await;
    Done::with(format!("{COUNT} of 7 MiB at a time, {refused} refused"))
}

/// Answers of some MiB that nobody reads: as many as a connection has streams, on a few connections.
pub(super) async fn unread(target: Target) -> Done {
    const STREAMS: u32 = 100;
    const STATE_BYTES: usize = 1_000_000;
    // An answer has it twice: as a value, and as text.
    let state = format!(r#"{{"state":"{}"}}"#, "x".repeat(STATE_BYTES));
    let operator = &target.operator;
    target.ask(operator, "PUT", "/v1/state", &state).await;
    eventually(PATIENCE, "the state", async || {
        let shown = target.ask(operator, "GET", "/v1/state", "").await;
        ensure!(shown.len() > STATE_BYTES);
        Ok(())
    })
    .await;
    let mut refused = 0;
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for number in 0..UNREAD {
        let mut wire = target.http2(from(number), 0).await.unwrap();
        for stream in 0..STREAMS {
            let path = "/kontrol.v1.EnsembleService/GetState";
            let mut ask = target.head(2 * stream + 1, "POST", path, false);
            ask.extend(frame(DATA, END_STREAM, 2 * stream + 1, &[0; 5]));
            wire.write_all(&ask).await.unwrap();
        }
        wire.flush().await.unwrap();
        // Each is answered with its head, or refused.
        let mut heads = 0;
        let seen = |seen: &Frame| {
            let end = seen.ends_a_stream();
            refused += usize::from(end && seen.kind != RST_STREAM);
            heads += u32::from(end || seen.kind == super::frames::HEADERS);
            heads == STREAMS
        };
        let answered = timeout(PATIENCE, attend(&mut wire, seen)).await;
        answered.expect("an answer to each").unwrap();
        held.push(super::lively(wire));
    }
    let asked = UNREAD * STREAMS as usize;
    Done {
        note: format!("{asked} large answers, window 0, {refused} refused"),
        held,
    }
}

/// Refusals that nobody reads, by whom nobody knows.
pub(super) async fn unread_refusals(target: Target) -> Done {
    const STREAMS: usize = REFUSALS / REFUSED;
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for number in 0..REFUSED {
        let mut wire = target.http2(from(number), 0).await.unwrap();
        for stream in 0..STREAMS as u32 {
            let ask = target.head_of("", 2 * stream + 1, "GET", "/v1/nothing", true);
            wire.write_all(&ask).await.unwrap();
        }
        wire.flush().await.unwrap();
        held.push(super::lively(wire));
    }
    Done {
        note: format!("{REFUSALS} refusals, window 0"),
        held,
    }
}

/// Watches that are never read, while the roster changes: over HTTP/2 without a window, over HTTP/1.1 without a reader.
pub(super) async fn watches(target: Target) -> Done {
    const CHANGES: u64 = 25;
    let mut watches = Vec::new();
    for number in 0..WATCHES {
        if number % 2 == 0 {
            let mut wire = target.connect(from(number), HTTP_1).await.unwrap();
            let ask = target.lines("GET", "/v1/watch") + "\r\n";
            wire.write_all(ask.as_bytes()).await.unwrap();
            wire.flush().await.unwrap();
            watches.push(Box::new(wire) as Box<dyn Send>);
        } else {
            let mut wire = target.http2(from(number), 0).await.unwrap();
            let path = "/kontrol.v1.EnsembleService/Watch";
            let mut ask = target.head(1, "POST", path, false);
            ask.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
            wire.write_all(&ask).await.unwrap();
            wire.flush().await.unwrap();
            watches.push(super::lively(wire));
        }
    }
    for change in 0..CHANGES {
        let payload = format!("{change} {}", "x".repeat(60_000));
        let pod = PodSpec::number(9999).beat(change).payload(payload.into());
        let body = pod.json().to_string();
        target.ask(&target.slave, "PUT", "/ping", &body).await;
    }
    let bye = PodSpec::number(9999)
        .beat(CHANGES)
        .down()
        .json()
        .to_string();
    target.ask(&target.slave, "PUT", "/ping", &bye).await;
    Done::with(format!("{WATCHES} watches, {CHANGES} changes"))
}
