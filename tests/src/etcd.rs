//! A real etcd of the test's own: one member or three, on free loopback ports, with its data in a temporary folder.
//!
//! The folder is made in `KONTROL_TEST_DATA` where that is set: `tests/run` puts it in memory, for a disk that a build keeps
//! busy lets etcd wait for seconds, and no test here is about a machine that loses its power.
//!
//! It can be stopped, killed, paused and started again on the same ports with the same data. The number of writes that
//! it took is the difference of two revisions.

use crate::{SOON, ports, process::Process, wait::eventually};
use anyhow::{Context, Result};
use etcd_client::{Client, ConnectOptions, DeleteOptions, GetOptions};
use rustix::process::Signal;
use std::{collections::BTreeMap, env, process::Command, thread, time::Duration};
use tempfile::TempDir;

/// How often etcd is started anew on other ports when one was taken.
const ATTEMPTS: usize = 3;

/// An etcd, one member or several.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    dir: TempDir,
}

#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    process: Option<Process>,
}

impl Etcd {
    /// Starts one member and waits until it serves. None, said aloud, when etcd is not installed: the test is skipped,
    /// unless `KONTROL_REQUIRE_ETCD=1` makes that a failure.
    pub async fn start() -> Option<Self> {
        Self::start_members(1).await
    }

    /// The same with three members.
    pub async fn start_three() -> Option<Self> {
        Self::start_members(3).await
    }

    async fn start_members(count: usize) -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            let test = thread::current().name().unwrap_or("a test").to_owned();
            assert!(
                env::var("KONTROL_REQUIRE_ETCD").as_deref() != Ok("1"),
                "{test} needs etcd, which is not installed: apt-get install etcd-server"
            );
            crate::skip("etcd is not installed");
            return None;
        }
        for _ in 0..ATTEMPTS {
            let mut etcd = Self {
                members: (0..count)
                    .map(|_| Member {
                        client_port: ports::free(),
                        peer_port: ports::free(),
                        process: None,
                    })
                    .collect(),
                dir: data_folder(),
            };
            etcd.launch();
            if !etcd.port_was_taken().await {
                etcd.serving().await;
                return Some(etcd);
            }
        }
        panic!("found no free ports for etcd in {ATTEMPTS} attempts");
    }

    /// Whether a member ended at once because of its ports, rather than served.
    async fn port_was_taken(&mut self) -> bool {
        let endpoints = self.endpoints();
        for _ in 0..400 {
            if self
                .members
                .iter_mut()
                .filter_map(|member| member.process.as_mut())
                .any(|process| {
                    process.status().is_some() && process.log().contains("address already in use")
                })
            {
                return true;
            }
            if connect(&endpoints).await.is_ok() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        false
    }

    fn launch(&mut self) {
        for index in 0..self.members.len() {
            self.launch_member(index);
        }
    }

    fn launch_member(&mut self, index: usize) {
        if self.members[index].process.is_some() {
            return;
        }
        let members: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| format!("e{index}=http://127.0.0.1:{}", member.peer_port))
            .collect();
        let client = format!("http://127.0.0.1:{}", self.members[index].client_port);
        let peer = format!("http://127.0.0.1:{}", self.members[index].peer_port);
        let name = format!("e{index}");
        let mut command = Command::new("etcd");
        command
            .args(["--name", &name, "--data-dir"])
            .arg(self.dir.path().join(&name))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &members.join(",")])
            .args(["--initial-cluster-token", &members.join("+")])
            .args(["--logger", "zap", "--log-level", "warn"])
            .env_clear();
        let log = self.dir.path().join(format!("{name}.log"));
        self.members[index].process =
            Some(Process::spawn(format!("etcd {name}"), &mut command, &log));
    }

    /// Where its members serve: `127.0.0.1:port` each.
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| format!("127.0.0.1:{}", member.client_port))
            .collect()
    }

    /// The value of `--store` for it.
    pub fn store(&self) -> String {
        format!("etcd://{}", self.endpoints().join(","))
    }

    /// Stops every member as an operator would (SIGTERM) and waits for their ends.
    pub async fn stop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.signal(Signal::TERM);
                process.ended(SOON).await;
            }
        }
    }

    /// Kills every member (SIGKILL).
    pub fn kill(&mut self) {
        for index in 0..self.members.len() {
            self.kill_member(index);
        }
    }

    /// Kills one member (SIGKILL).
    pub fn kill_member(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill();
        }
    }

    /// Pauses every member (SIGSTOP): connections stay, answers don't come.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Lets paused members go on.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        for member in &mut self.members {
            if let Some(process) = member.process.as_mut() {
                process.signal(signal);
            }
        }
    }

    /// Starts the members that are down, with the same ports and data, and waits until they serve.
    pub async fn restart(&mut self) {
        self.launch();
        self.serving().await;
    }

    /// Which member leads the etcd cluster.
    pub async fn leading_member(&self) -> usize {
        let mut leading = None;
        for (index, endpoint) in self.endpoints().iter().enumerate() {
            let mut client = connect(std::slice::from_ref(endpoint)).await.unwrap();
            let status = client.status().await.unwrap();
            if status.header().unwrap().member_id() == status.leader() {
                leading = Some(index);
            }
        }
        leading.expect("no member of etcd leads")
    }

    async fn serving(&self) {
        eventually(SOON, "etcd that serves", async || self.try_revision().await).await;
    }

    /// The revision: it grows by one with each transaction that writes.
    pub async fn revision(&self) -> i64 {
        eventually(SOON, "revision of etcd", async || self.try_revision().await).await
    }

    async fn try_revision(&self) -> Result<i64> {
        revision(&self.endpoints()).await
    }

    /// Every key under a prefix with its value.
    pub async fn read(&self, prefix: &str) -> BTreeMap<String, String> {
        eventually(SOON, "keys of etcd", async || {
            let mut client = connect(&self.endpoints()).await?;
            let options = GetOptions::new().with_prefix();
            let answer = client.get(prefix, Some(options)).await?;
            let entries = answer.kvs().iter().map(|entry| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (text(entry.key()), text(entry.value()))
            });
            Ok(entries.collect())
        })
        .await
    }

    /// Sets a key by hand.
    pub async fn put(&self, key: &str, value: &str) {
        let mut client = connect(&self.endpoints()).await.unwrap();
        client.put(key, value, None).await.unwrap();
    }

    /// Deletes keys by hand: every key under a prefix. Tells how many there were.
    pub async fn delete(&self, prefix: &str) -> i64 {
        let mut client = connect(&self.endpoints()).await.unwrap();
        let options = DeleteOptions::new().with_prefix();
        client
            .delete(prefix, Some(options))
            .await
            .unwrap()
            .deleted()
    }

    /// Forgets every revision before the present one, as an operator's compaction does.
    pub async fn compact(&self) {
        let revision = self.revision().await;
        let mut client = connect(&self.endpoints()).await.unwrap();
        client.compact(revision, None).await.unwrap();
    }
}

fn data_folder() -> TempDir {
    match env::var_os("KONTROL_TEST_DATA") {
        Some(parent) => tempfile::tempdir_in(parent).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// The revision of the etcd at these endpoints: `host:port` each.
pub async fn revision(endpoints: &[String]) -> Result<i64> {
    // A linearized read, so that the answer is the cluster's and not one member's.
    let mut client = connect(endpoints).await?;
    let answer = client.get("/", None).await?;
    Ok(answer.header().context("no header")?.revision())
}

async fn connect(endpoints: &[String]) -> Result<Client> {
    let options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(2))
        .with_timeout(Duration::from_secs(5));
    Ok(Client::connect(endpoints, Some(options)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_survives_a_stop_a_kill_and_a_pause() {
        let Some(mut etcd) = Etcd::start().await else {
            return;
        };
        let before = etcd.revision().await;
        etcd.put("/a/1", "one").await;
        etcd.put("/a/2", "two").await;
        assert_eq!(etcd.revision().await, before + 2);
        etcd.stop().await;
        etcd.restart().await;
        etcd.kill();
        etcd.restart().await;
        etcd.pause();
        assert!(
            tokio::time::timeout(Duration::from_millis(300), etcd.try_revision())
                .await
                .is_err()
        );
        etcd.resume();
        let expected = BTreeMap::from([
            ("/a/1".to_owned(), "one".to_owned()),
            ("/a/2".to_owned(), "two".to_owned()),
        ]);
        assert_eq!(etcd.read("/a/").await, expected);
        assert_eq!(etcd.delete("/a/1").await, 1);
        etcd.compact().await;
        assert_eq!(etcd.revision().await, before + 3);
    }

    #[tokio::test]
    async fn three_members_bear_the_loss_of_their_leader() {
        let Some(mut etcd) = Etcd::start_three().await else {
            return;
        };
        etcd.put("/a", "one").await;
        let leading = etcd.leading_member().await;
        etcd.kill_member(leading);
        assert_eq!(etcd.read("/a").await["/a"], "one");
        etcd.restart().await;
        assert_eq!(etcd.read("/a").await["/a"], "one");
    }
}
