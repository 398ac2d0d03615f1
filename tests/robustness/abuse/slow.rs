//! Those who take their time: they connect and say nothing, or too little, for as long as they are let.

use super::{
    frames::{self, DATA, END_HEADERS, HEADERS, PREFACE, frame},
    from,
    stage::Done,
    trickle,
    wire::{HTTP_1, HTTP_2, Target, Wire, attend},
};
use futures::{StreamExt, stream};
use std::{any::Any, future::Future, io};
use tokio::io::AsyncWriteExt;

/// How many connect at a time.
const AT_A_TIME: usize = 64;

pub(super) type Held = Vec<Box<dyn Send>>;

/// So many connections of a kind, from several addresses. All of them come about, or the master has refused some.
async fn many<S: Any + Send, F: Future<Output = io::Result<S>>>(
    count: usize,
    open: impl Fn(usize) -> F,
) -> Held {
    let opened = stream::iter(0..count).map(open).buffer_unordered(AT_A_TIME);
    let opened: Vec<io::Result<S>> = opened.collect().await;
    opened
        .into_iter()
        .map(|opened| Box::new(opened.unwrap()) as Box<dyn Send>)
        .collect()
}

pub(super) const SILENT: usize = 5000;

/// Connections that never say a word.
pub(super) async fn silent(target: Target) -> Done {
    let held = many(SILENT, |number| target.tcp(from(number))).await;
    Done {
        note: format!("{SILENT} connections, not a byte"),
        held,
    }
}

pub(super) const HALF: usize = 2000;

/// Handshakes of TLS that stop half way: half of them in their first message, half of them behind it.
pub(super) async fn half_tls(target: Target) -> Done {
    let hello = &target.hello();
    let held = many(HALF, async |number| {
        let mut tcp = target.tcp(from(number)).await?;
        let said = if number % 2 == 0 {
            hello.len() / 2
        } else {
            hello.len()
        };
        tcp.write_all(&hello[..said]).await?;
        Ok(tcp)
    })
    .await;
    Done {
        note: format!("{HALF} ClientHellos, half of them cut"),
        held,
    }
}

pub(super) const IN_TLS: usize = 300;

/// Clients that agree on TLS, and say nothing then, or half of what they should.
pub(super) async fn silent_in_tls(target: Target) -> Done {
    let held = many(IN_TLS, async |number| {
        let protocol = if number % 3 == 0 { HTTP_1 } else { HTTP_2 };
        let mut wire = target.connect(from(number), protocol).await?;
        if number % 3 > 0 {
            let said = if number % 2 == 0 { 10 } else { PREFACE.len() };
            wire.write_all(&PREFACE[..said]).await?;
            wire.flush().await?;
        }
        Ok(wire)
    })
    .await;
    Done {
        note: format!("{IN_TLS} handshakes, some with a preface or half of it"),
        held,
    }
}

pub(super) const HEADS: usize = 300;

/// Heads of requests that never end: of HTTP/1.1 a byte a second, of HTTP/2 half a frame, and a frame without its end.
pub(super) async fn heads(target: Target) -> Done {
    let held = many(HEADS, async |number| {
        if number % 3 == 0 {
            let wire = target.connect(from(number), HTTP_1).await?;
            let head = target.lines("GET", "/v1/ensemble") + "x-slow: ";
            return Ok(trickle(wire, head.into_bytes(), b"a".to_vec()));
        }
        let mut wire = target.http2(from(number), 0).await?;
        let block = frames::block(&[(":method", "GET"), (":path", "/v1/ensemble")]);
        if number % 3 == 1 {
            let head = frame(HEADERS, END_HEADERS, 1, &block);
            return Ok(trickle(wire, head[..20].to_vec(), Vec::new()));
        }
        wire.write_all(&frame(HEADERS, 0, 1, &block)).await?;
        wire.flush().await?;
        Ok(trickle(wire, Vec::new(), Vec::new()))
    })
    .await;
    Done {
        note: format!("{HEADS} heads that never end"),
        held,
    }
}

pub(super) const BODIES: usize = 200;

/// Bodies that never end: a state over HTTP/1.1, and 8 MiB of it over gRPC, a byte a second.
pub(super) async fn bodies(target: Target) -> Done {
    let held = many(BODIES, async |number| {
        if number % 2 == 0 {
            let wire = target.connect(from(number), HTTP_1).await?;
            let head = target.lines("PUT", "/v1/state") + "content-length: 8000000\r\n\r\n\"";
            return Ok(trickle(wire, head.into_bytes(), b"a".to_vec()));
        }
        let wire = target.http2(from(number), 1 << 20).await?;
        let path = "/kontrol.v1.EnsembleService/PutState";
        let mut begin = target.head(1, "POST", path, false);
        let announced: u32 = 8_000_000;
        let prefix = [&[0][..], &announced.to_be_bytes()].concat();
        begin.extend(frame(DATA, 0, 1, &prefix));
        Ok(trickle(wire, begin, frame(DATA, 0, 1, b"a")))
    })
    .await;
    Done {
        note: format!("{BODIES} bodies, a byte a second"),
        held,
    }
}

pub(super) const IDLE: usize = 5000;

/// Connections of HTTP/2 that are well and ask for nothing. They are let be for minutes, so that this one ends them.
pub(super) async fn idle(target: Target) -> Done {
    let open = async |number| {
        let mut wire = target.http2(from(number), 0).await?;
        // The master has said what it takes: it is all there.
        attend(&mut wire, |_| true).await?;
        Ok(wire)
    };
    let held: Held = many::<Wire, _>(IDLE, open).await;
    // They are there while the window of the measurement lasts.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    drop(held);
    Done::with(format!("{IDLE} connections without a request"))
}
