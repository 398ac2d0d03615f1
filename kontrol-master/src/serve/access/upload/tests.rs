//! How much may wait, and for how long.

use super::*;
use futures::stream;
use http_body_util::BodyExt;
use std::convert::Infallible;
use tonic::Code;

fn held(uploads: &Uploads, last: u8) -> Held {
    Held {
        uploads: uploads.clone(),
        who: Who::Address([127, 0, 0, last].into()),
        bytes: 0,
        counted: 0,
    }
}

#[test]
fn one_caller_has_its_share_and_all_have_the_whole() {
    const MIB: usize = 1024 * 1024;
    let uploads = Uploads::new(Arc::default());
    let mut all = Vec::new();
    for caller in 0..4 {
        let each = |_| {
            let mut held = held(&uploads, caller);
            held.grow(8 * MIB).map(|()| held)
        };
        let mine: Vec<_> = (0..9).map(each).collect();
        // The bytes that count for nothing leave a little room behind the eighth.
        assert_eq!(mine.iter().filter(|held| held.is_ok()).count(), 8);
        all.extend(mine.into_iter().flatten());
    }
    let mut late = held(&uploads, 9);
    late.grow(FREE_BYTES).unwrap();
    let refused = late.grow(MIB).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("all callers"), "{refused}");
    all.truncate(31);
    late.grow(MIB).unwrap();
    drop((all, late));
    let waiting = uploads.waiting();
    assert_eq!((waiting.all, waiting.each.len()), (0, 0));
}

/// A body in these pieces, each after so many seconds; then nothing comes any more.
fn body(pieces: &[(u64, &[u8])]) -> Body {
    let pieces: Vec<(u64, Bytes)> = pieces
        .iter()
        .map(|(after, piece)| (*after, Bytes::copy_from_slice(piece)))
        .collect();
    let pieces = stream::unfold(pieces.into_iter(), async |mut pieces| {
        let Some((after, piece)) = pieces.next() else {
            return std::future::pending().await;
        };
        sleep(Duration::from_secs(after)).await;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    Body::from_stream(pieces)
}

fn message(bytes: u8) -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, bytes];
    message.extend(vec![7; bytes.into()]);
    message
}

#[tokio::test(start_paused = true)]
async fn a_trickle_is_waited_for_only_so_long() {
    let trickle: Vec<(u64, &[u8])> = vec![(1, b"a"); 100];
    let (upload, _held) = Upload::new(
        body(&trickle),
        held(&Uploads::new(Arc::default()), 1),
        false,
    );
    let began = Instant::now();
    let status = upload.collect().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed(), PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_be_quiet_between_messages_but_not_within_one() {
    let whole = message(9);
    let pieces: [(u64, &[u8]); 6] = [
        (500, &whole),
        (500, &whole[..3]),
        (20, &whole[3..]),
        (500, &whole[..6]),
        (20, &whole[6..]),
        (500, &whole[..13]),
    ];
    let (mut upload, _held) =
        Upload::new(body(&pieces), held(&Uploads::new(Arc::default()), 1), true);
    for _ in pieces {
        upload.frame().await.unwrap().unwrap();
    }
    let began = Instant::now();
    let status = upload.frame().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(began.elapsed(), PATIENCE);
}

#[tokio::test]
async fn a_stream_holds_what_is_not_whole_and_a_call_holds_everything() {
    let uploads = Uploads::new(Arc::default());
    let mut large = vec![0];
    large.extend(20_000_u32.to_be_bytes());
    large.extend(vec![7; 20_000]);
    let (first, rest) = large.split_at(15_000);
    let pieces: [(u64, &[u8]); 4] = [(0, &large), (0, first), (0, rest), (0, first)];
    for (streams, counted) in [
        (true, [20_005, 15_000, 20_005, 15_000]),
        (false, [20_005, 35_005, 40_010, 55_010]),
    ] {
        let (mut upload, kept) = Upload::new(body(&pieces), held(&uploads, 1), streams);
        for bytes in counted {
            upload.frame().await.unwrap().unwrap();
            assert_eq!(uploads.waiting().all, bytes - FREE_BYTES, "{streams}");
        }
        drop(upload);
        assert!(uploads.waiting().all > 0, "what it led to goes on");
        drop(kept);
        assert_eq!(uploads.waiting().all, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn time_in_which_nobody_reads_is_not_held_against_the_sender() {
    let whole = message(9);
    let pieces: [(u64, &[u8]); 3] = [(0, &whole[..6]), (1, &whole[6..8]), (1, &whole[8..])];
    // The pieces come by themselves, as those of a connection do.
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let pieces: Vec<(u64, Bytes)> = pieces
        .iter()
        .map(|(after, piece)| (*after, Bytes::copy_from_slice(piece)))
        .collect();
    tokio::spawn(async move {
        for (after, piece) in pieces {
            sleep(Duration::from_secs(after)).await;
            sender.send(Ok::<_, Infallible>(piece)).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let (mut upload, _held) = Upload::new(body, held(&Uploads::new(Arc::default()), 1), true);
    for _ in 0..3 {
        // Asked for, and then left alone for minutes.
        let asked = tokio::time::timeout(Duration::from_millis(10), upload.frame());
        if asked.await.is_err() {
            sleep(Duration::from_secs(300)).await;
            upload.frame().await.unwrap().unwrap();
        }
    }
}
