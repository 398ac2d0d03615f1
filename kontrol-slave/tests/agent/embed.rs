//! The slave inside a service: what its few calls do, and what they leave alone.

use crate::{
    LONG, SHORT,
    master::{
        Master, Reply, SOON,
        channel::{Channel, argv, shell},
    },
    silent,
};
use kontrol_proto::v1::Outcome;
use kontrol_runtime::testing::until;
use kontrol_slave::{
    ActionCommand, Ended, PayloadError, Slave, SlaveBuilder, StartError, WrongSetting,
    payload::from_proto,
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// What a service says of itself.
fn service(masters: &str) -> SlaveBuilder {
    Slave::builder(masters).app("shop").role("web")
}

/// A master, and a slave that it has counted.
async fn pair(make: impl FnOnce(SlaveBuilder) -> SlaveBuilder) -> (Master, Slave) {
    let master = Master::start(Reply::Accept(LONG)).await;
    let builder = service(&format!("http://{}", master.address()));
    let slave = make(builder).start().unwrap();
    timeout(SOON, slave.ready()).await.unwrap().unwrap();
    (master, slave)
}

#[tokio::test]
async fn it_is_reported_as_the_builder_says_and_leaves_when_it_is_stopped() {
    let make = |builder: SlaveBuilder| {
        let ip = [127, 0, 0, 9].into();
        let builder = builder.id("web-9").ip(ip).node("n9").label("zone", "b");
        builder.annotation("note", "x").payload(json!({"load": 0}))
    };
    let (master, slave) = pair(make).await;
    let first = &master.heard()[0].request;
    assert_eq!((first.app.as_str(), first.role.as_str()), ("shop", "web"));
    assert_eq!(
        (first.id.as_str(), first.ip.as_str(), first.node.as_str()),
        ("web-9", "127.0.0.9", "n9")
    );
    let labels = [("app", "shop"), ("role", "web"), ("zone", "b")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(first.labels, labels.into());
    assert_eq!(first.annotations["note"], "x");
    assert_eq!(
        from_proto(first.payload.clone().unwrap()),
        Ok(json!({"load": 0}))
    );
    assert_eq!((first.nonce.as_str(), first.beat), (slave.nonce(), 1));
    let status = &slave.status()[0];
    assert_eq!((status.key.as_str(), status.seq), ("2kce4O", Some(7)));
    assert_eq!(status.trouble, None);

    slave.stop().await;
    // Once more is the same, and nothing waits for what is over.
    slave.stop().await;
    assert_eq!(slave.ready().await, Err(Ended));
    slave.set_payload(json!("nobody hears")).unwrap();
    let heard = master.stop().await;
    assert_eq!(heard.len(), 2);
    assert!(heard[1].request.down);
}

#[tokio::test]
async fn by_default_it_has_the_hosts_name_and_the_address_that_leads_to_its_master() {
    let (master, slave) = pair(|builder| builder).await;
    let first = &master.heard()[0].request;
    assert_eq!(first.id, kontrol_runtime::host::host_name());
    assert_eq!((first.ip.as_str(), first.node.as_str()), ("127.0.0.1", ""));
    assert_eq!(from_proto(first.payload.clone().unwrap()), Ok(json!("")));
    slave.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn a_payload_is_sent_at_once_or_refused_at_once() {
    let (mut master, slave) = pair(|builder| builder).await;
    slave.set_payload(json!({"load": 0.4})).unwrap();
    let heard = master.hears(2).await;
    let said = |index: usize, heard: &[crate::master::Heard]| {
        from_proto(heard[index].request.payload.clone().unwrap())
    };
    assert_eq!(said(1, &heard), Ok(json!({"load": 0.4})));
    // No news.
    slave.set_payload(json!({"load": 0.4})).unwrap();

    let nested = (0..40).fold(json!(1), |inner, _| json!([inner]));
    for (bad, words) in [
        (
            json!({"a": [9_007_199_254_740_993_u64]}),
            "9007199254740993",
        ),
        (json!("x".repeat(70_000)), "70002 bytes"),
        (nested, "30"),
    ] {
        let error = slave.set_payload(bad).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(matches!(
            error,
            PayloadError::Unfit(_) | PayloadError::TooLarge(_)
        ));
    }
    slave.set_payload(json!(2)).unwrap();
    let heard = master.hears(3).await;
    assert_eq!(said(2, &heard), Ok(json!(2)));
    slave.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn one_that_is_dropped_says_goodbye_in_the_background() {
    let (mut master, slave) = pair(|builder| builder).await;
    drop(slave);
    assert!(master.hears(2).await[1].request.down);
    master.stop().await;
}

#[tokio::test]
async fn it_starts_without_a_master_and_waits_for_one() {
    let (listener, address) = silent().await;
    drop(listener);
    let slave = service(&address).start().unwrap();
    let mut changes = slave.changes();
    let failed = changes.wait_for(|all| all[0].trouble.is_some());
    timeout(SOON, failed).await.unwrap().unwrap();
    assert!(
        slave.status()[0]
            .trouble
            .as_ref()
            .unwrap()
            .contains("connect")
    );
    let ready = timeout(Duration::from_millis(100), slave.ready()).await;
    assert!(ready.is_err(), "nobody answered");
    let master = Master::start_at(&address, Reply::Accept(SHORT)).await;
    timeout(SOON, slave.ready()).await.unwrap().unwrap();
    slave.stop().await;
    assert!(master.stop().await.last().unwrap().request.down);

    let (_listener, address) = silent().await;
    let slave = service(&address).start().unwrap();
    let start = Instant::now();
    slave.stop().await;
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(slave.ready().await, Err(Ended));
}

fn mistakes(builder: SlaveBuilder) -> Vec<WrongSetting> {
    match builder.start().map(drop) {
        Err(StartError::Settings(mistakes)) => mistakes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_mistake_is_told_at_once_by_the_method_that_puts_it_right() {
    let builder = Slave::builder("ftp://m")
        .role("")
        .id("a\nb")
        .ip([0, 0, 0, 0].into())
        .node("x".repeat(254))
        .label("long", "x".repeat(254))
        .annotation("", "")
        .payload(json!(u64::MAX))
        .ca("/no/such/ca")
        .certificate("/no/such/cert", "/no/such/key")
        .token("a b")
        .max_actions(0);
    let all = mistakes(builder.clone());
    let mut settings: Vec<&str> = all.iter().map(|mistake| mistake.setting).collect();
    settings.sort_unstable();
    let expected = [
        "annotation",
        "app",
        "builder",
        "ca",
        "certificate",
        "certificate",
        "id",
        "ip",
        "label",
        "max_actions",
        "node",
        "payload",
        "role",
        "token",
    ];
    assert_eq!(settings, expected, "{all:?}");
    let line = builder.start().unwrap_err().to_string();
    assert!(
        line.contains("; app: is required; role: is required; "),
        "{line}"
    );

    let both = service("m").token("t").token_file("/no/such/token");
    assert!(!format!("{both:?}").contains("\"t\""));
    let all = mistakes(both);
    let settings: Vec<&str> = all.iter().map(|mistake| mistake.setting).collect();
    assert_eq!(settings, ["token_file", "token"], "{all:?}");
}

#[test]
fn it_says_that_there_is_no_runtime() {
    let error = service("m").start().map(drop).unwrap_err();
    assert_eq!(error, StartError::NoRuntime);
    // One that is entered will do.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.enter();
    let slave = service("127.0.0.1:1").start().unwrap();
    drop(guard);
    runtime.block_on(slave.stop());
    let metrics = runtime.handle().metrics();
    runtime.block_on(until("every task ends", || metrics.num_alive_tasks() == 0));
}

async fn ends(channel: &mut Channel, id: &str, words: &[&str]) -> (Outcome, i32, String) {
    let taken = channel.whole(argv(id, words)).await;
    let (outcome, code) = taken.outcome();
    (outcome, code, taken.result().error.clone())
}

#[tokio::test]
async fn no_action_does_anything_without_a_handler_or_over_a_link_that_proves_nothing() {
    let (mut master, slave) = pair(|builder| builder.insecure(true)).await;
    let (outcome, _, error) = ends(&mut master.channel().await, "a1", &["true"]).await;
    assert_eq!(
        (outcome, error.as_str()),
        (Outcome::Refused, "this pod runs no actions")
    );
    slave.stop().await;
    master.stop().await;

    let (mut master, slave) = pair(|builder| builder.handler(async |_, _| Ok(0))).await;
    let (outcome, _, error) = ends(&mut master.channel().await, "a1", &["true"]).await;
    assert!(
        outcome == Outcome::Refused && error.contains("insecure(true)"),
        "{error}"
    );
    slave.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn a_handler_answers_with_what_the_service_knows() {
    let state = Arc::new(json!({"stock": 3}));
    let answer = move |state: Arc<Value>, command: ActionCommand| match command {
        ActionCommand::Argv(words) if words == ["stock"] => Some(state["stock"].to_string()),
        ActionCommand::Argv(_) | ActionCommand::Shell(_) => None,
    };
    let (mut master, slave) = pair(|builder| {
        builder.insecure(true).handler(move |request, mut output| {
            let told = answer(Arc::clone(&state), request.command);
            async move {
                let Some(told) = told else { return Ok(2) };
                output.stdout.print(told).await;
                Ok(0)
            }
        })
    })
    .await;
    let mut channel = master.channel().await;
    let taken = channel.whole(argv("a1", &["stock"])).await;
    assert_eq!((taken.out(), taken.outcome()), ("3", (Outcome::Exited, 0)));
    let taken = channel.whole(shell("a2", "stock")).await;
    assert_eq!(taken.outcome(), (Outcome::Exited, 2));
    slave.stop().await;
    master.stop().await;
}

/// Lets go of what blocks.
struct Free(Arc<AtomicBool>);

impl Drop for Free {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_handler_that_blocks_does_not_hold_up_the_goodbye() {
    let free = Arc::new(AtomicBool::new(false));
    let blocks = Arc::clone(&free);
    // A test that fails must not wait for it.
    let _free = Free(Arc::clone(&free));
    let (mut master, slave) = pair(|builder| {
        builder.insecure(true).handler(move |_, _| {
            let free = Arc::clone(&blocks);
            async move {
                while !free.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
                Ok(0)
            }
        })
    })
    .await;
    let mut channel = master.channel().await;
    channel.run(argv("a1", &["x"])).await;
    channel.next().await.unwrap();
    let start = Instant::now();
    slave.stop().await;
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    assert!(master.heard().last().unwrap().request.down);
    drop(channel);
    free.store(true, Ordering::SeqCst);
    master.stop().await;
}

#[test]
fn a_runtime_that_ends_takes_all_of_it_along() {
    let beside = tokio::runtime::Runtime::new().unwrap();
    let own = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut master = beside.block_on(Master::start(Reply::Accept(LONG)));
    let slave = own.block_on(async {
        let builder = service(&master.address()).insecure(true);
        let builder = builder.handler(async |_, mut output| {
            loop {
                output.stdout.print("on and on\n").await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let slave = builder.start().unwrap();
        let mut channel = master.channel().await;
        channel.run(argv("a1", &["x"])).await;
        for _ in 0..3 {
            channel.next().await.unwrap();
        }
        slave
    });
    let (told, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        drop(own);
        told.send(()).unwrap();
    });
    assert_eq!(ended.recv_timeout(SOON), Ok(()), "no thread holds it up");
    // Nobody is left to say goodbye, nor to wait for.
    let stopped = beside.block_on(async { timeout(SOON, slave.stop()).await });
    assert_eq!(stopped, Ok(()));
    beside.block_on(master.stop());
}
