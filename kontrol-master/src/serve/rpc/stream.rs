//! What every stream of a master does: it shows that it lives, and says why it ends.
//!
//! Proxies and balancers end a stream on which nothing came for a while, often a minute, and some sooner; with a stream of
//! Dispatch they end the action. A master that stops ends its streams with UNAVAILABLE, so that nobody takes it for the
//! good end of what was to go on.

use crate::cluster::error::Error;
use futures::{FutureExt, Stream, StreamExt, stream};
use std::{future::ready, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long a stream that has begun stays without a message.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Ends a stream with the token, and says so.
pub(super) fn until_stop<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send,
    token: CancellationToken,
) -> impl Stream<Item = Result<T, Status>> + Send {
    messages
        .take_until(token.clone().cancelled_owned())
        .chain(why_it_ended(token))
}

/// An error where it was the token that ended the stream before.
pub(super) fn why_it_ended<T: Send>(
    token: CancellationToken,
) -> impl Stream<Item = Result<T, Status>> + Send {
    // Looked at when the stream before has ended, not now.
    let look = ready(()).map(move |()| token.is_cancelled().then(|| Err(stopping())));
    stream::once(look).filter_map(ready)
}

fn stopping() -> Status {
    Error::Unavailable("this master stops; go on at another one".to_owned()).into()
}

/// Puts a sign of life where a stream says nothing for a while, but nothing before its first message. `sign` makes it of
/// the message before.
pub(super) fn alive<T: Clone + Send + Sync>(
    messages: impl Stream<Item = Result<T, Status>> + Send,
    sign: impl Fn(&T) -> T + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let state = (Box::pin(messages), None, sign);
    stream::unfold(state, async |(mut messages, last, sign)| {
        let next = match &last {
            None => messages.next().await,
            // Cancel safe: a message is taken whole or not at all.
            Some(last) => match timeout(SIGN_OF_LIFE, messages.next()).await {
                Ok(next) => next,
                Err(_) => Some(Ok(T::clone(last))),
            },
        }?;
        let last = next.as_ref().ok().map(&sign).or(last);
        Some((next, (messages, last, sign)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{sync::mpsc, time::Instant};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    /// The clock jumps from one event to the next.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_begun_shows_life_within_five_seconds() {
        let (sender, receiver) = mpsc::channel(1);
        let sender = tokio::spawn(async move {
            for (pause, message) in [(60, 1), (4, 2), (11, 3)] {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                sender.send(Ok(message)).await.unwrap();
            }
        });
        let stream = alive(ReceiverStream::new(receiver), |last: &i32| -last.abs());
        let began = Instant::now();
        let told: Vec<(u64, i32)> = stream
            .map(|message| (began.elapsed().as_secs(), message.unwrap()))
            .collect()
            .await;
        sender.await.unwrap();
        assert_eq!(told, [(60, 1), (64, 2), (69, -2), (74, -2), (75, 3)]);
    }

    #[tokio::test]
    async fn a_stop_is_told_and_a_good_end_stays_one() {
        let token = CancellationToken::new();
        let finite = until_stop(stream::iter([Ok(1)]), token.clone());
        assert_eq!(finite.count().await, 1);
        let mut endless = Box::pin(until_stop(
            stream::iter([Ok(1)]).chain(stream::pending()),
            token.clone(),
        ));
        assert_eq!(endless.next().await.unwrap().unwrap(), 1);
        token.cancel();
        let status = endless.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(endless.next().await.is_none());
    }
}
