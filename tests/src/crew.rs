//! A crew: slaves as processes that are attached to a tier and run actions.

use crate::{
    SOON,
    client::exchange,
    cluster::Cluster,
    node::{Master, Programs, Slave},
    pod::key_of,
    process::kill_at_once,
    wait::eventually,
};
use anyhow::{Context, ensure};
use std::{net::Ipv4Addr, ops::Range};

/// Slaves of one tier, `slave-0` and on, the even ones in the role `web`, the odd ones in the role `db`.
#[derive(Debug)]
pub struct Crew {
    /// The slaves.
    pub slaves: Vec<Slave>,
}

/// The address of a slave of a crew.
pub fn ip(index: usize) -> String {
    let first = u32::from(Ipv4Addr::new(127, 30, 0, 1));
    Ipv4Addr::from(first + u32::try_from(index).unwrap()).to_string()
}

/// The key of a slave of a crew.
pub fn key(index: usize) -> String {
    key_of(&ip(index))
}

/// The name of a slave of a crew.
pub fn id(index: usize) -> String {
    format!("slave-{index}")
}

impl Crew {
    /// Starts so many slaves and waits until all are attached.
    pub async fn start(cluster: &mut Cluster, size: usize) -> Self {
        Self::with(cluster, size, &[]).await
    }

    /// The same, with more settings: flags without their dashes.
    pub async fn with(cluster: &mut Cluster, size: usize, settings: &[(&str, &str)]) -> Self {
        let masters = masters(cluster);
        let mut crew = Self { slaves: Vec::new() };
        for index in 0..size {
            crew.slaves.push(launch(cluster, index, &masters, settings));
        }
        attached(cluster, size).await;
        crew
    }

    /// Kills these slaves (SIGKILL), all at once.
    pub fn kill(&mut self, slaves: Range<usize>) {
        kill_at_once(self.slaves[slaves].iter_mut().map(Slave::process));
    }

    /// Starts slaves again that ended, each with its old name and address, as a new incarnation.
    pub fn start_again(&mut self, cluster: &Cluster, slaves: Range<usize>) {
        for index in slaves {
            self.slaves[index] = launch(cluster, index, &masters(cluster), &[]);
        }
    }
}

/// The endpoints of a tier, for `--master`.
pub fn masters(cluster: &Cluster) -> String {
    let masters = cluster.masters.iter();
    let addresses: Vec<String> = masters.map(Master::address).collect();
    addresses.join("|")
}

/// Starts one slave of a crew.
pub fn launch(cluster: &Cluster, index: usize, masters: &str, settings: &[(&str, &str)]) -> Slave {
    launch_of(&Programs::Built, cluster, index, masters, settings)
}

/// The same, of these programs.
pub fn launch_of(
    programs: &Programs,
    cluster: &Cluster,
    index: usize,
    masters: &str,
    settings: &[(&str, &str)],
) -> Slave {
    let role = if index.is_multiple_of(2) { "web" } else { "db" };
    let labels = format!(r#"{{"app":"web","role":"{role}","number":"{index}"}}"#);
    let (ip, id) = (ip(index), id(index));
    let mut all = vec![
        ("master", masters),
        ("id", &id),
        ("ip", &ip),
        ("labels", &labels),
        ("insecure", ""),
    ];
    all.extend_from_slice(settings);
    Slave::of(programs, &id, &all, cluster.dir.path())
}

/// Waits until so many slaves are attached to the masters that run.
pub async fn attached(cluster: &mut Cluster, size: usize) {
    let running = cluster.running();
    let urls: Vec<String> = running
        .iter()
        .map(|index| cluster.masters[*index].url())
        .collect();
    eventually(SOON * 3, &format!("{size} attached slaves"), async || {
        let mut sum = 0;
        for url in &urls {
            sum += attached_to(url).await?;
        }
        ensure!(sum == size, "{sum} are");
        Ok(())
    })
    .await;
}

/// How many slaves are attached to the master at this URL.
pub async fn attached_to(url: &str) -> anyhow::Result<usize> {
    let answer = exchange("GET", &format!("{url}/metrics"), "", Vec::new()).await?;
    let name = "kontrol_master_attached_slaves ";
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.context("no such metric")?.parse()?)
}
