//! Streams of somebody who is not known any more end; those of everybody else go on.

use super::{SECONDS, Secured, token};
use kontrol_proto::v1::{
    PingRequest, PingStreamRequest, PingStreamResponse, WatchRequest, WatchResponse,
    ensemble_service_client::EnsembleServiceClient,
    keepalive_service_client::KeepaliveServiceClient,
};
use kontrol_runtime::{
    dial::{Channel, Credentials},
    testing::{Authority, rcgen::date_time_ymd, write},
};
use kontrol_tests::{SOON, small, wait::eventually};
use std::{
    fs,
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A watch that has begun.
async fn watch(secured: &Secured, credentials: &Credentials) -> Streaming<WatchResponse> {
    let channel = secured.dial(credentials).await.unwrap();
    let watch = EnsembleServiceClient::new(channel)
        .watch(WatchRequest::default())
        .await;
    let mut watch = watch.unwrap().into_inner();
    watch.message().await.unwrap().expect("a snapshot");
    watch
}

/// Waits for the end of a stream, and tells how it ended.
async fn end<T>(stream: &mut Streaming<T>) -> Status {
    let ended = timeout(SECONDS, async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("a good end"),
                Err(status) => return status,
            }
        }
    });
    ended.await.expect("the stream ends within seconds")
}

/// Waits until a watch tells of a pod: it goes on.
async fn tells_of(watch: &mut Streaming<WatchResponse>, id: &str) {
    let told = timeout(SECONDS, async {
        loop {
            let message = watch.message().await.unwrap().expect("it goes on");
            if format!("{message:?}").contains(id) {
                return;
            }
        }
    });
    told.await.expect("it tells what happens");
}

/// A stream of keepalives that goes on.
struct Keepalives {
    pings: mpsc::Sender<PingStreamRequest>,
    answers: Streaming<PingStreamResponse>,
}

impl Keepalives {
    async fn open(channel: Channel, id: &str) -> Self {
        let (pings, requests) = mpsc::channel(4);
        let ping = PingRequest {
            app: "web".into(),
            id: id.into(),
            ip: "127.0.0.9".into(),
            role: "front".into(),
            nonce: "00000000000000aa".into(),
            ..PingRequest::default()
        };
        pings.send(ping.into()).await.unwrap();
        let mut client = KeepaliveServiceClient::new(channel);
        let answers = client.ping_stream(ReceiverStream::new(requests)).await;
        let mut answers = answers.unwrap().into_inner();
        answers.message().await.unwrap().expect("an answer");
        Self { pings, answers }
    }

    /// Sends one more, and reads its answer.
    async fn beat(&mut self) {
        let ping = PingRequest {
            app: "web".into(),
            id: "web-2".into(),
            ip: "127.0.0.10".into(),
            role: "front".into(),
            ..PingRequest::default()
        };
        self.pings.send(ping.into()).await.unwrap();
        self.answers.message().await.unwrap().expect("an answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_taken_out_ends_its_streams_and_no_others() {
    let _permit = small().await;
    let (gone, line_gone) = token("reader", "gone");
    let (stays, line_stays) = token("reader", "stays");
    let (slave, line_slave) = token("slave", "web-*");
    let secured = Secured::start(&[], &[&line_gone, &line_stays, &line_slave]).await;
    let mut theirs = watch(&secured, &secured.with_token(&gone)).await;
    let mut others = watch(&secured, &secured.with_token(&stays)).await;
    let channel = secured.dial(&secured.with_token(&slave)).await.unwrap();
    let mut keepalives = Keepalives::open(channel, "web-1").await;

    secured.set_tokens(&[&line_stays, &line_slave]);
    let status = end(&mut theirs).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("taken out"), "{status:?}");
    keepalives.beat().await;
    tells_of(&mut others, "web-2").await;

    // Nothing is lost by a file that can't be read, and it is told.
    secured.set_tokens(&["nonsense"]);
    eventually(SOON, "a line about the file", async || {
        let log = secured.master.log();
        anyhow::ensure!(
            log.contains("line 1") && log.contains("goes on counting"),
            "{log}"
        );
        Ok(())
    })
    .await;
    keepalives.beat().await;

    secured.set_tokens(&[&line_stays]);
    let status = end(&mut keepalives.answers).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    others.message().await.unwrap().expect("it still goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_or_whose_authority_goes_ends_its_streams() {
    let _permit = small().await;
    let (stays, line) = token("reader", "stays");
    let secured = Secured::start(&[], &[&line]).await;
    let second = Authority::new("second");
    fs::write(&secured.ca, secured.ours.pem() + &second.pem()).unwrap();
    let soon = SystemTime::now() + Duration::from_secs(6);
    let short = write(
        secured.dir.path(),
        "short",
        &secured.ours.sign_as(&[], |params| {
            use kontrol_runtime::testing::rcgen::{DistinguishedName, DnType};
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, "short");
            params
                .distinguished_name
                .push(DnType::OrganizationName, "kontrol:reader");
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = soon.into();
        }),
    );
    let foreign = secured.client(&second, "second", "second", "kontrol:reader");
    // The authority counts once the master has read the file again.
    eventually(
        SOON,
        "a certificate of the second authority that counts",
        async || {
            let channel = secured.dial(&secured.with_pair(&foreign)).await?;
            EnsembleServiceClient::new(channel)
                .watch(WatchRequest::default())
                .await?;
            Ok(())
        },
    )
    .await;
    let mut by_token = watch(&secured, &secured.with_token(&stays)).await;
    let mut by_second = watch(&secured, &secured.with_pair(&foreign)).await;
    let mut by_short = watch(&secured, &secured.with_pair(&short)).await;

    let status = end(&mut by_short).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(
        SystemTime::now() >= soon - Duration::from_secs(1),
        "it ended too early"
    );
    fs::write(&secured.ca, secured.ours.pem()).unwrap();
    let status = end(&mut by_second).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    by_token.message().await.unwrap().expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_of_the_port_serves_new_connections_and_drops_no_stream() {
    let _permit = small().await;
    let (reader, line) = token("reader", "r");
    let secured = Secured::start(&[], &[&line]).await;
    let mut before = watch(&secured, &secured.with_token(&reader)).await;
    let next = Authority::new("next");
    let other = secured.dir.path().join("next.pem");
    fs::write(&other, next.pem()).unwrap();
    write(secured.dir.path(), "master", &next.sign(&[super::HOST]));
    eventually(SOON, "the new certificate", async || {
        let credentials = Credentials::none().with_ca(&other).with_token(&reader)?;
        secured.dial(&credentials).await?;
        Ok(())
    })
    .await;
    let refused = secured.dial(&secured.nobody()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("authority"), "{refused:#}");
    before
        .message()
        .await
        .unwrap()
        .expect("the stream of before goes on");
}
