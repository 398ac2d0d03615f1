//! Masters that speak TLS, and that want to know who asks.

use crate::{
    LONG, Running, SHORT, action,
    master::{Master, Reply, SOON, channel::shell},
    program::program,
};
use kontrol_proto::v1::Outcome;
use kontrol_runtime::{
    dial::Credentials,
    testing::{Authority, write},
};
use kontrol_slave::action::Settings;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// An authority, and the files of whoever trusts it.
struct House {
    authority: Authority,
    folder: TempDir,
}

impl House {
    fn new() -> Self {
        let (authority, folder) = (Authority::new("house"), tempfile::tempdir().unwrap());
        authority.install(folder.path());
        Self { authority, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn trusting(&self) -> Credentials {
        Credentials::none().with_ca(self.path("ca.pem"))
    }

    fn bearing(&self, token: &str) -> Credentials {
        fs::write(self.path("token"), token).unwrap();
        self.trusting().with_token_file(self.path("token"))
    }

    fn speaks(&self) -> ServerTlsConfig {
        let (cert, key) = self.authority.sign(&["localhost", "127.0.0.1"]);
        ServerTlsConfig::new().identity(Identity::from_pem(cert, key))
    }

    async fn master(&self, reply: Reply) -> Master {
        Master::start_with("127.0.0.1:0", reply, Some(self.speaks())).await
    }
}

fn url(master: &Master) -> String {
    format!("https://{}", master.address())
}

#[tokio::test]
async fn over_tls_a_master_is_trusted_and_in_clear_text_it_is_not() {
    let house = House::new();
    let mut proved = house.master(Reply::Accept(LONG)).await;
    let mut clear = Master::start(Reply::Accept(LONG)).await;
    let masters = format!("{},{}", url(&proved), clear.address());
    let settings = Settings {
        trusted: false,
        ..action::config()
    };
    let mut agent = Running::start_as(&masters, house.trusting(), Some(settings));
    let status = agent.tier(0, |status| status.attached.is_some()).await;
    assert_eq!(status.attached, Some(url(&proved)));
    let (mut one, mut two) = (proved.channel().await, clear.channel().await);
    assert_eq!(one.whole(shell("a1", "echo ok")).await.out(), "ok\n");
    let refused = two.whole(shell("a2", "echo ok")).await;
    assert_eq!(refused.outcome(), (Outcome::Refused, -1));
    let why = &refused.result().error;
    assert!(
        why.contains("https://") && why.contains("--insecure"),
        "{why}"
    );
    agent.stop().await;
    drop((one, two));
    proved.stop().await;
    clear.stop().await;
}

#[tokio::test]
async fn a_token_that_is_replaced_costs_no_keepalive() {
    let house = House::new();
    let mut master = house.master(Reply::Accept(LONG)).await;
    master.only("first");
    let credentials = house.bearing("first");
    let mut agent = Running::start_as(&url(&master), credentials, Some(action::config()));
    agent.tier(0, |status| status.attached.is_some()).await;
    let before = master.channel().await;
    master.only("second");
    fs::write(house.path("token"), "second").unwrap();
    // The interval is an hour, so only what happens at once brings this there.
    agent.payload.send_replace(json!(1));
    let heard = master.hears(2).await;
    assert_eq!(heard.len(), 2);
    // And so it is with the channel for actions.
    let after = master.channel().await;
    let status = agent.status.borrow()[0].clone();
    assert_eq!(
        (status.attached, status.trouble),
        (Some(url(&master)), None)
    );
    agent.stop().await;
    drop((before, after));
    master.stop().await;
}

#[tokio::test]
async fn a_stranger_is_told_so_and_let_in_once_it_is_known() {
    let house = House::new();
    let mut master = house.master(Reply::Accept(SHORT)).await;
    master.only("right");
    let mut agent = Running::start_as(&url(&master), house.bearing("wrong"), None);
    let status = agent.tier(0, |status| status.trouble.is_some()).await;
    let trouble = status.trouble.unwrap();
    assert!(
        trouble.contains("(unknown token): look at --token-file"),
        "{trouble}"
    );
    fs::write(house.path("token"), "right").unwrap();
    agent.tier(0, |status| status.attached.is_some()).await;
    // Without a change of the file it is lost, and found again when its master knows it again.
    master.only("another");
    agent.tier(0, |status| status.attached.is_none()).await;
    let count = master.heard().len();
    master.only("right");
    agent.tier(0, |status| status.attached.is_some()).await;
    master.hears(count + 1).await;
    agent.stop().await;
    assert!(master.stop().await.last().unwrap().request.down);
}

#[tokio::test]
async fn another_master_may_know_who_is_a_stranger_here() {
    let house = House::new();
    let (strict, mut open) = (
        house.master(Reply::Accept(LONG)).await,
        house.master(Reply::Accept(LONG)).await,
    );
    strict.only("right");
    let masters = format!("{}|{}", url(&strict), url(&open));
    let agent = Running::start_as(&masters, house.trusting(), None);
    open.hears(1).await;
    agent.stop().await;
    assert!(strict.stop().await.is_empty());
    open.stop().await;
}

#[tokio::test]
async fn certificates_are_checked_both_ways_and_read_again() {
    let house = House::new();
    let clients = Authority::new("clients");
    let client = clients.sign_client("web-1", "kontrol:slave");
    let pair = write(house.folder.path(), "client", &client);
    let tls = house
        .speaks()
        .client_ca_root(Certificate::from_pem(clients.pem()));
    let master = Master::start_with("127.0.0.1:0", Reply::Accept(SHORT), Some(tls)).await;
    let (address, url) = (master.address(), url(&master));
    let mut nobody = Running::start_as(&url, house.trusting(), None);
    let status = nobody.tier(0, |status| status.trouble.is_some()).await;
    let trouble = status.trouble.unwrap();
    assert!(trouble.contains("give --cert and --key"), "{trouble}");
    nobody.stop().await;

    let credentials = house.trusting().with_identity(&pair.cert, &pair.key);
    let mut agent = Running::start_as(&url, credentials, None);
    agent.tier(0, |status| status.attached.is_some()).await;
    master.stop().await;
    // Its certificate is of another authority from now on, which the file of the agent does not have yet.
    let other = House::new();
    let tls = other
        .speaks()
        .client_ca_root(Certificate::from_pem(clients.pem()));
    let master = Master::start_with(&address, Reply::Accept(SHORT), Some(tls)).await;
    let told = |trouble: &Option<String>| {
        trouble
            .as_ref()
            .is_some_and(|trouble| trouble.contains("with --ca"))
    };
    agent.tier(0, |status| told(&status.trouble)).await;
    fs::copy(other.path("ca.pem"), house.path("ca.pem")).unwrap();
    agent.tier(0, |status| status.attached.is_some()).await;
    agent.stop().await;
    master.stop().await;
}

#[tokio::test]
async fn the_program_takes_its_credentials_from_variables_and_logs_what_to_do() {
    let (house, other) = (House::new(), House::new());
    let mut master = house.master(Reply::Accept(LONG)).await;
    master.only("s3cret");
    let slave = |house: &House| {
        let mut slave = program();
        slave
            .env("KONTROL_MASTER", url(&master))
            .env("KONTROL_LABELS", r#"{"app":"web","role":"front"}"#)
            .env("KONTROL_CA", house.path("ca.pem"))
            .env("KONTROL_TOKEN", "s3cret");
        slave
    };
    let mut lost = slave(&other).spawn().unwrap();
    let log = BufReader::new(lost.stderr.take().unwrap());
    let told = tokio::task::spawn_blocking(move || {
        let mut lines = log.lines().map(Result::unwrap);
        lines.find(|line| line.contains("no master answers"))
    });
    let line = timeout(SOON, told).await.unwrap().unwrap().unwrap();
    assert!(
        line.contains("with --ca") && !line.contains("s3cret"),
        "{line}"
    );
    lost.kill().unwrap();
    lost.wait().unwrap();

    let child = slave(&house).spawn().unwrap();
    master.hears(1).await;
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = timeout(SOON, ended).await.unwrap().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("s3cret"));
    master.stop().await;
}

#[test]
fn files_that_cannot_be_used_are_told_before_anything_is_contacted() {
    let house = House::new();
    let output = program()
        .env("KONTROL_MASTER", "https://m")
        .env("KONTROL_LABELS", r#"{"app":"web","role":"front"}"#)
        .env("KONTROL_TOKEN", "two words")
        .args(["--ca", "/nowhere", "--cert"])
        .arg(house.path("ca.pem"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.lines().count(), 3, "{told}");
    for words in [
        "--ca: can't read /nowhere",
        "--cert: goes with --key",
        "KONTROL_TOKEN",
    ] {
        assert!(told.contains(words), "{told}");
    }
    assert!(!told.contains("two words"), "{told}");
}
