//! Actions: an agent whose guards are the built program, and a test that plays its master.

mod channel;
mod command;
mod death;
mod grace;
mod handler;
mod queue;
mod refusal;
mod resume;

use crate::{
    LONG, Running,
    master::{Master, Reply, channel::Channel},
};
use kontrol_runtime::testing::until;
use kontrol_slave::action::Settings;
use std::{fs, future::Future, path::Path, time::Duration};

/// An agent that runs what it is told to.
pub(crate) fn config() -> Settings {
    Settings {
        trusted: true,
        guard: env!("CARGO_BIN_EXE_kontrol-slave").into(),
        ..Settings::default()
    }
}

/// An agent, its master, and the channel between them.
pub(crate) struct Pair {
    pub(crate) master: Master,
    pub(crate) agent: Running,
    pub(crate) channel: Channel,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        Self::start_with(Some(config())).await
    }

    pub(crate) async fn start_with(config: Option<Settings>) -> Self {
        let mut master = Master::start(Reply::Accept(LONG)).await;
        let agent = Running::start_with(&master.address(), config);
        let channel = master.channel().await;
        Self {
            master,
            agent,
            channel,
        }
    }

    /// Breaks the channel, and waits for the next.
    pub(crate) async fn break_channel(self) -> Self {
        let Self {
            mut master,
            agent,
            channel,
        } = self;
        drop(channel);
        let channel = master.channel().await;
        Self {
            master,
            agent,
            channel,
        }
    }

    pub(crate) async fn stop(self) -> Duration {
        let took = self.agent.stop().await;
        drop(self.channel);
        self.master.stop().await;
        took
    }
}

/// The pid that a command wrote to a file, once it has.
pub(crate) fn pid_in(file: &Path) -> impl Future<Output = u32> {
    let read = {
        let file = file.to_owned();
        move || -> Option<u32> {
            let text = fs::read_to_string(&file).ok()?;
            text.strip_suffix('\n')?.parse().ok()
        }
    };
    async move {
        until("the command runs", || read().is_some()).await;
        read().unwrap()
    }
}
