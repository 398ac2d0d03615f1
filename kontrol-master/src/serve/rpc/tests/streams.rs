//! Streams that have nothing to say.

use super::{super::stream::SIGN_OF_LIFE, *};
use kontrol_proto::v1::{
    Command, DispatchRequest, Selector, WatchRequest, action_service_client::ActionServiceClient,
    ensemble_service_client::EnsembleServiceClient,
};
use tokio::time::timeout;
use tonic::Streaming;

/// Reads until a message without an event, and sees to it that none is long in coming.
async fn shows_life<T>(mut stream: Streaming<T>, says_nothing: impl Fn(&T) -> bool) {
    let mut said = 0;
    loop {
        let next = timeout(SIGN_OF_LIFE + Duration::from_secs(1), stream.message()).await;
        let message = next.expect("nothing came for long").unwrap().unwrap();
        if says_nothing(&message) {
            break;
        }
        said += 1;
    }
    assert!(said > 0, "it begins with what it is about");
}

#[tokio::test(start_paused = true)]
async fn a_watch_and_a_dispatch_show_life_while_nothing_happens() {
    let leader = Leader::start().await;
    let context = || leader.context.clone();
    leader.join(&Pod::join(report(1), 0, 0)).await;

    let watch = EnsembleServiceServer::new(ensemble::Service::new(context()));
    let mut client = EnsembleServiceClient::new(watch);
    let watch = client.watch(WatchRequest::default()).await.unwrap();
    let watch = watch.into_inner();
    shows_life(watch, |message| message.event.is_none()).await;

    // The pod has no slave, and one is waited for.
    let request = DispatchRequest {
        selector: Some(Selector {
            all: true,
            ..Selector::default()
        }),
        command: Some(Command {
            argv: vec!["true".into()],
            ..Command::default()
        }),
        ..DispatchRequest::default()
    };
    let dispatch = ActionServiceServer::new(action::Service::new(context()));
    let mut client = ActionServiceClient::new(dispatch);
    let dispatch = client.dispatch(request).await.unwrap().into_inner();
    shows_life(dispatch, |message| message.event.is_none()).await;
}
