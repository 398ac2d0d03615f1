//! Those who do much of what costs them little: resets, continuations, settings, pings, wrong tokens.

use super::{
    frames::{
        ACK, CONTINUATION, FRAME_BYTES, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, block, frame,
        read,
    },
    from,
    stage::Done,
    wire::{Target, Wire, attend},
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncWriteExt, split},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

/// How long a flood lasts.
const WHILE: Duration = Duration::from_secs(3);
/// When a write counts as one that the master does not take.
const STUCK: Duration = Duration::from_secs(1);

/// Requests that are taken back at once, on as many connections as it takes.
pub(super) async fn resets(target: Target) -> Done {
    const REQUESTS: u32 = 100_000;
    const AT_A_TIME: u32 = 100;
    let end = Instant::now() + 2 * WHILE;
    let (mut sent, mut connections) = (0, 0);
    while sent < REQUESTS && Instant::now() < end {
        connections += 1;
        let wire = target.http2(from(connections), 1 << 20).await.unwrap();
        let (mut reader, mut writer) = split(wire);
        let flood = async {
            let mut stream = 1;
            loop {
                let mut bytes = Vec::new();
                for _ in 0..AT_A_TIME {
                    bytes.extend(target.head(stream, "GET", "/v1/ensemble", true));
                    bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    stream += 2;
                }
                if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                    return;
                }
                sent += AT_A_TIME;
                if sent >= REQUESTS {
                    return;
                }
            }
        };
        let gone = async {
            while read(&mut reader)
                .await
                .is_ok_and(|seen| seen.kind != GOAWAY)
            {}
        };
        tokio::select! {
            () = flood => {}
            () = gone => {}
            () = tokio::time::sleep_until(end) => {}
        }
    }
    Done::with(format!("{sent} requests, {connections} connections"))
}

/// A head that goes on without end.
pub(super) async fn continuations(target: Target) -> Done {
    let end = Instant::now() + WHILE;
    let (mut connections, mut most, mut all) = (0, 0, 0);
    let field = block(&[("x-field", &"x".repeat(100))]);
    let piece = field.repeat(FRAME_BYTES / field.len());
    while Instant::now() < end {
        connections += 1;
        let wire = target.http2(from(connections), 0).await.unwrap();
        let (mut reader, mut writer) = split(wire);
        let mut taken = 0;
        let flood = async {
            let begin = frame(HEADERS, 0, 1, &block(&[(":method", "GET")]));
            let mut wrote = writer.write_all(&begin).await;
            while wrote.is_ok() {
                wrote = writer.write_all(&frame(CONTINUATION, 0, 1, &piece)).await;
                taken += piece.len();
            }
        };
        let gone = async {
            while read(&mut reader)
                .await
                .is_ok_and(|seen| seen.kind != GOAWAY)
            {}
        };
        let refused = async {
            tokio::select! {
                () = flood => {}
                () = gone => {}
            }
        };
        timeout(WHILE, refused)
            .await
            .expect("an end of the endless head");
        most = most.max(taken);
        all += taken;
    }
    // A head has 64 KiB; what is on its way in buffers comes on top.
    assert!(most < 8 << 20, "{most} bytes of a head were taken");
    Done::with(format!(
        "{connections} heads, {} MiB, {} KiB each at the most",
        all >> 20,
        most >> 10
    ))
}

/// SETTINGS without end, whose acknowledgements nobody reads.
pub(super) async fn settings(target: Target) -> Done {
    let piece = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
    unread(target, "SETTINGS", piece).await
}

/// PING without end, whose answers nobody reads.
pub(super) async fn pings(target: Target) -> Done {
    unread(target, "PING", frame(PING, 0, 0, &[7; 8])).await
}

async fn unread(target: Target, kind: &str, piece: Vec<u8>) -> Done {
    const COUNT: usize = 4;
    let bytes = piece.repeat(1000);
    let mut floods = JoinSet::new();
    for number in 0..COUNT {
        let (target, bytes) = (target.clone(), bytes.clone());
        floods.spawn(async move {
            let mut wire = target.http2(from(number), 0).await.unwrap();
            let (mut sent, end) = (0, Instant::now() + WHILE);
            // It ends when the master takes no more, or has closed it.
            while Instant::now() < end
                && let Ok(Ok(())) = timeout(STUCK, wire.write_all(&bytes)).await
            {
                sent += 1000;
            }
            (sent, wire)
        });
    }
    let (mut sent, mut held) = (0, Vec::new());
    for (count, wire) in floods.join_all().await {
        sent += count;
        held.push(Box::new(wire) as Box<dyn Send>);
    }
    Done {
        note: format!("{sent} {kind} on {COUNT} connections"),
        held,
    }
}

/// Pings that are read, as fast as they go.
pub(super) async fn answered_pings(target: Target) -> Done {
    const AT_A_TIME: usize = 100;
    let mut wire = target.http2(from(0), 0).await.unwrap();
    let bytes = frame(PING, 0, 0, &[7; 8]).repeat(AT_A_TIME);
    let (mut answers, end) = (0, Instant::now() + WHILE);
    let flood = async {
        loop {
            wire.write_all(&bytes).await?;
            wire.flush().await?;
            let mut waits = AT_A_TIME;
            let seen = |seen: &super::frames::Frame| {
                waits -= usize::from(seen.kind == PING && seen.flags & ACK != 0);
                waits == 0
            };
            attend(&mut wire, seen).await?;
            answers += AT_A_TIME;
        }
    };
    let _: Result<io::Result<()>, _> = timeout_at(end, flood).await;
    Done::with(format!(
        "{} pings a second",
        answers as u64 / WHILE.as_secs()
    ))
}

/// Wrong tokens, as fast as they go.
pub(super) async fn wrong_tokens(target: Target) -> Done {
    const CONNECTIONS: usize = 8;
    let end = Instant::now() + WHILE;
    let mut callers = JoinSet::new();
    for number in 0..CONNECTIONS {
        let target = target.clone();
        callers.spawn(async move {
            let mut wire = target.http2(from(number), 1 << 20).await.unwrap();
            guess(&target, &mut wire, end).await
        });
    }
    let refused: u64 = callers.join_all().await.into_iter().sum();
    assert!(refused > 0, "nobody was refused");
    Done::with(format!(
        "{} a second, all refused",
        refused / WHILE.as_secs()
    ))
}

/// Tries tokens until the end; how many were refused.
async fn guess(target: &Target, wire: &mut Wire, end: Instant) -> u64 {
    const AT_A_TIME: u64 = 50;
    let (mut stream, mut refused) = (1, 0);
    while Instant::now() < end {
        let mut bytes = Vec::new();
        for _ in 0..AT_A_TIME {
            let token = format!("Bearer kontrol_{stream:032}");
            bytes.extend(target.head_of(&token, stream, "GET", "/v1/ensemble", true));
            stream += 2;
        }
        wire.write_all(&bytes).await.unwrap();
        wire.flush().await.unwrap();
        let mut waits = AT_A_TIME;
        let seen = |seen: &super::frames::Frame| {
            waits -= u64::from(seen.ends_a_stream());
            waits == 0
        };
        attend(wire, seen).await.unwrap();
        refused += AT_A_TIME;
    }
    refused
}
