//! Pods over plain HTTP, each from an address of its own, that report, change, restart, leave and fall silent.
//!
//! A connection whose answer did not come is kept for a while: what was sent on it is delivered once the network is mended,
//! as it is for a process that died.

use super::{Shared, world};
use crate::chaos::Dice;
use anyhow::{Context, Result, bail};
use kontrol_tests::{
    pod::key_of,
    script::now,
    storm::record::{Answer, Beat},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

/// How long a keepalive waits for its answer.
const PATIENCE: Duration = Duration::from_millis(400);
/// How soon one that was not accepted goes to the next master.
const RETRY: Duration = Duration::from_millis(50);
/// How long an unanswered connection is kept.
const KEPT: Duration = Duration::from_secs(10);

pub(super) struct Pod {
    index: usize,
    shared: Shared,
    dice: Dice,
    connections: BTreeMap<usize, TcpStream>,
    kept: Vec<(Instant, TcpStream)>,
    master: usize,
    incarnation: usize,
    beat: u64,
    says: u64,
}

impl Pod {
    pub(super) fn new(index: usize, seed: u64, shared: Shared) -> Self {
        Self {
            index,
            shared,
            dice: Dice(seed ^ (index as u64) << 32),
            connections: BTreeMap::new(),
            kept: Vec::new(),
            master: index % world::MASTERS,
            incarnation: 0,
            beat: 0,
            says: 0,
        }
    }

    /// Reports for ever.
    pub(super) async fn run(mut self) {
        let interval = world::TTL / 5;
        loop {
            match self.dice.roll(100) {
                0..4 => self.restart(),
                4..6 => {
                    // A goodbye is said until somebody takes it.
                    while !self.send(true).await {}
                    sleep(Duration::from_millis(self.dice.roll(4000))).await;
                    self.restart();
                }
                6 => {
                    sleep(world::TTL * 2 + Duration::from_secs(4)).await;
                    // Whoever was silent for so long starts anew.
                    self.restart();
                }
                7..10 => self.takes_back().await,
                10..25 => self.says += 1,
                _ => {}
            }
            let sent = Instant::now();
            while !self.send(false).await {}
            sleep((sent + interval).saturating_duration_since(Instant::now())).await;
        }
    }

    fn restart(&mut self) {
        self.incarnation += 1;
        self.beat = 0;
        // The process is gone, and with it whatever waits.
        let old = std::mem::take(&mut self.connections);
        self.kept
            .extend(old.into_values().map(|stream| (Instant::now(), stream)));
    }

    /// Says something else, and what it said before again through another master, at once.
    async fn takes_back(&mut self) {
        let before = self.says;
        self.says += 1_000_000;
        let changed = self.send(false).await;
        self.says = before;
        if changed {
            self.master += 1;
            self.send(false).await;
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Sends one keepalive and writes down what became of it; whether it was accepted.
    async fn send(&mut self, down: bool) -> bool {
        if self.shared.is_over() {
            return std::future::pending().await;
        }
        self.kept.retain(|(since, _)| since.elapsed() < KEPT);
        self.beat += 1;
        let ip = world::pod(self.index).to_string();
        let (id, payload) = (format!("p{}", self.index), json!(self.says));
        let nonce = format!("{:08x}{:08x}", self.index + 1, self.incarnation + 1);
        let body = json!({
            "app": "web", "id": id, "ip": ip, "role": "pod", "nonce": nonce, "beat": self.beat, "payload": payload,
            "down": down,
        });
        let master = self.master % world::MASTERS;
        let sent = now();
        let answer = match timeout(PATIENCE, self.exchange(master, &body.to_string())).await {
            Ok(Ok((200, answer))) => Answer::Accepted(answer["seq"].as_u64().unwrap_or_default()),
            Ok(Ok((status, answer))) => Answer::Refused(status, answer["message"].to_string()),
            Ok(Err(_)) => Answer::Unclear,
            Err(_) => Answer::Unclear,
        };
        if answer == Answer::Unclear
            && let Some(stream) = self.connections.remove(&master)
        {
            self.kept.push((Instant::now(), stream));
        }
        let beat = Beat {
            id,
            key: key_of(&ip),
            nonce,
            incarnation: self.incarnation,
            payload,
            down,
            master,
            sent,
            done: now(),
            answer,
        };
        let accepted = beat.accepted();
        self.shared.lock().beats.push(beat);
        if !accepted {
            self.master += 1;
            sleep(RETRY).await;
        }
        accepted
    }

    async fn exchange(&mut self, master: usize, body: &str) -> Result<(u16, Value)> {
        if !self.connections.contains_key(&master) {
            let socket = TcpSocket::new_v4()?;
            socket.bind((world::pod(self.index), 0).into())?;
            let stream = socket.connect((world::master(master), 8000).into()).await?;
            stream.set_nodelay(true)?;
            self.connections.insert(master, stream);
        }
        let stream = self.connections.get_mut(&master).context("connection")?;
        let text = format!(
            "PUT /v1/keepalive HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, rest)) = text.split_once("\r\n\r\n") {
                let head = head.to_lowercase();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.context("no length")?.parse()?;
                if rest.len() >= length {
                    let status = head.split(' ').nth(1).context("no status")?.parse()?;
                    return Ok((status, serde_json::from_str(rest)?));
                }
            }
            if stream.read_buf(&mut answer).await? == 0 {
                bail!("the connection ended");
            }
        }
    }
}
