//! A rack with most of the slaves is cut off from everybody, and comes back; in between the leader loses etcd. Each machine
//! is a host of its own. It needs root or user namespaces, iproute2 and iptables.

use super::{everywhere, seqs};
use anyhow::{Context, ensure};
use kontrol_tests::{
    SLACK, SOON,
    client::{Api, exchange},
    crew, heavy,
    keeper::Keeper,
    net::{self, Network},
    node::program,
    process::Process,
    wait::{eventually, throughout},
};
use std::{
    collections::BTreeSet,
    env,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

const MASTERS: usize = 3;
/// How many slaves there are.
const SIZE: usize = 100;
/// How many of them are in the rack.
const RACK: usize = 60;
const TTL: Duration = Duration::from_secs(4);

fn host(third: u8, index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, third, index as u8 + 1)
}

fn api(index: usize) -> Api {
    Api::new(format!("http://{}:8000", host(2, index)))
}

/// The machines, and what runs on them.
struct World {
    processes: Vec<Process>,
    network: Network,
    keeper: Keeper,
    dir: PathBuf,
}

impl World {
    async fn start(dir: &Path) -> Self {
        let mut hosts = vec![
            ("e0".to_owned(), host(1, 0)),
            ("rack".to_owned(), host(3, 0)),
            ("hall".to_owned(), host(4, 0)),
        ];
        hosts.extend((0..MASTERS).map(|index| (format!("m{index}"), host(2, index))));
        let mut world = Self {
            processes: Vec::new(),
            network: Network::make(&[host(0, 0)], &hosts),
            keeper: Keeper::new(),
            dir: dir.to_owned(),
        };
        let data = dir.join("etcd");
        let (client, peer) = (
            format!("http://{}:2379", host(1, 0)),
            format!("http://{}:2380", host(1, 0)),
        );
        world.launch(
            "e0",
            "etcd",
            Path::new("etcd"),
            &[
                ("name", "e0"),
                ("data-dir", data.to_str().unwrap()),
                ("listen-client-urls", &client),
                ("advertise-client-urls", &client),
                ("listen-peer-urls", &peer),
                ("initial-advertise-peer-urls", &peer),
                ("initial-cluster", &format!("e0={peer}")),
                ("log-level", "warn"),
            ],
        );
        let store = format!("etcd://{}:2379", host(1, 0));
        let ttl = format!("{}s", TTL.as_secs());
        let callback = world.keeper.program().to_str().unwrap().to_owned();
        for index in 0..MASTERS {
            let name = format!("m{index}");
            let advertise = format!("{}:8000", host(2, index));
            world.launch(
                &name,
                &name,
                &program("kontrol-master"),
                &[
                    ("id", &name),
                    ("bind", "0.0.0.0"),
                    ("insecure", ""),
                    ("advertise", &advertise),
                    ("store", &store),
                    ("ttl", &ttl),
                    ("damper", "500ms"),
                    ("fover", "2s"),
                    ("callback", &callback),
                ],
            );
        }
        world.leader().await;
        let masters: Vec<String> = (0..MASTERS)
            .map(|index| format!("{}:8000", host(2, index)))
            .collect();
        for index in 0..SIZE {
            let place = if index < RACK { "rack" } else { "hall" };
            let slave = program("kontrol-slave");
            let settings = [
                ("id", crew::id(index)),
                ("ip", crew::ip(index)),
                ("master", masters.join("|")),
                ("labels", r#"{"app":"web","role":"slave"}"#.to_owned()),
                ("insecure", String::new()),
            ];
            let settings = settings.each_ref().map(|(flag, value)| (*flag, &**value));
            world.launch(place, &crew::id(index), &slave, &settings);
        }
        world
    }

    fn launch(&mut self, host: &str, name: &str, program: &Path, settings: &[(&str, &str)]) {
        let mut command = self.network.command(host, program);
        for (flag, value) in settings {
            command.arg(format!("--{flag}"));
            // A switch has no value.
            command.args(Some(value).filter(|value| !value.is_empty()));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path);
        let log = self.dir.join(format!("{name}.log"));
        self.processes
            .push(Process::spawn(name, &mut command, &log));
    }

    /// Waits until every master is ready and all name one leader; tells which.
    async fn leader(&self) -> usize {
        self.leader_among(&[0, 1, 2]).await
    }

    async fn leader_among(&self, masters: &[usize]) -> usize {
        eventually(SOON * 2, "masters that are ready and agree", async || {
            let mut leaders = BTreeSet::new();
            for index in masters {
                let url = format!("{}/readyz", api(*index).url());
                let ready = exchange("GET", &url, "", Vec::new()).await?;
                ensure!(ready.status == 200, "m{index}: {}", ready.body);
                let view = api(*index).ensemble().await?;
                leaders.insert(view.leader.context("no leader")?.id);
            }
            ensure!(leaders.len() == 1, "{leaders:?}");
            let leader = masters
                .iter()
                .find(|index| leaders.contains(&format!("m{index}")));
            Ok(*leader.with_context(|| format!("{leaders:?} among {masters:?}"))?)
        })
        .await
    }

    /// Looks for so long: removals are frozen, the roster is whole, no run is begun, nothing is deleted.
    async fn nothing_happens(&self, masters: &[usize], time: Duration, runs: usize) {
        let apis: Vec<Api> = masters.iter().map(|index| api(*index)).collect();
        throughout(time, "the freeze", async || {
            ensure!(self.keeper.deleted().is_empty());
            ensure!(self.keeper.runs().len() == runs, "a callback ran");
            for api in &apis {
                let view = api.ensemble().await?;
                ensure!(view.safeguard.is_some(), "{view:#?}");
                ensure!(view.pod_count as usize == SIZE, "{view:#?}");
            }
            Ok(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rack_that_is_cut_off_and_comes_back_loses_nothing() {
    let _permit = heavy().await;
    let here = "safeguard::rack::a_rack_that_is_cut_off_and_comes_back_loses_nothing";
    if !tokio::task::spawn_blocking(|| net::inside(here))
        .await
        .unwrap()
    {
        return;
    }
    let data = env::var_os("KONTROL_TEST_DATA").map_or_else(env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(data).unwrap();
    let world = World::start(dir.path()).await;
    let apis = [api(0), api(1), api(2)];
    everywhere(&apis, "handled roster", |view| {
        view.pod_count as usize == SIZE && view.handled_digest == view.digest
    })
    .await;
    let before = seqs(&apis[0]).await.unwrap();
    let digest = apis[0].ensemble().await.unwrap().digest;
    let runs = world.keeper.runs().len();
    let mut watch = apis[0].watch(0).await.unwrap();

    let masters: Vec<String> = (0..MASTERS).map(|m| host(2, m).to_string()).collect();
    world.network.cut("rack", &masters);
    let bound = TTL + Duration::from_secs(1) + SLACK;
    watch.until(bound, "safeguard", super::frozen).await;
    everywhere(&apis, "all that are cut off", |view| {
        let safeguard = view.safeguard.as_ref();
        safeguard.is_some_and(|safeguard| safeguard.silent as usize == RACK)
    })
    .await;
    world.nothing_happens(&[0, 1, 2], TTL, runs).await;

    // The leader loses etcd, and with it its place. The others go on as it was.
    let old = world.leader().await;
    let rest: Vec<usize> = (0..MASTERS).filter(|index| *index != old).collect();
    let etcd = [host(1, 0).to_string()];
    world.network.cut(&format!("m{old}"), &etcd);
    world.leader_among(&rest).await;
    world.nothing_happens(&rest, TTL + SLACK, runs).await;

    world.network.heal();
    world.leader().await;
    everywhere(&apis, "the whole roster, heard again", |view| {
        view.safeguard.is_none() && view.digest == digest
    })
    .await;
    // Long enough for a wrong deadline to strike, and for a wrong run to start.
    throughout(TTL + SLACK, "the roster", async || {
        let view = apis[old].ensemble().await?;
        ensure!(view.digest == digest, "{view:#?}");
        ensure!(view.safeguard.is_none(), "{view:#?}");
        Ok(())
    })
    .await;
    for api in &apis {
        assert_eq!(seqs(api).await.unwrap(), before);
    }
    assert!(world.keeper.deleted().is_empty());
    let names: BTreeSet<String> = (0..SIZE).map(crew::id).collect();
    assert_eq!(world.keeper.data(), names);
    assert_eq!(world.keeper.runs().len(), runs, "nothing was new");
}
