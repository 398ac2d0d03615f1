//! A client of one Redis, of a few lines: words out, whole answers in, each within a deadline.

use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// A connection.
pub(super) struct Redis(BufReader<TcpStream>);

/// An answer that is no error.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    Nothing,
    Text(String),
    Number(i64),
    List(Vec<Reply>),
}

impl Redis {
    /// Connects to the Redis at this address.
    pub(super) async fn connect(address: &str) -> Result<Self> {
        let stream = timeout(ANSWER, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends commands, all at once, and reads the answer to each. An error of one of them is an error.
    pub(super) async fn ask(&mut self, commands: &[&[&str]]) -> Result<Vec<Reply>> {
        let mut text = String::new();
        for words in commands {
            text += &format!("*{}\r\n", words.len());
            for word in *words {
                text += &format!("${}\r\n{word}\r\n", word.len());
            }
        }
        let exchange = async {
            self.0.write_all(text.as_bytes()).await?;
            let mut replies = Vec::new();
            for _ in commands {
                replies.push(self.read().await?);
            }
            replies.into_iter().collect()
        };
        timeout(ANSWER, exchange).await?
    }

    /// What the inner result has is an error that Redis answered with: the stream goes on behind it.
    async fn read(&mut self) -> Result<Result<Reply>> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).context("the connection ended")?;
        Ok(Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            ":" => Reply::Number(rest.parse()?),
            "$" | "*" if rest == "-1" => Reply::Nothing,
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>()? + 2];
                self.0.read_exact(&mut bytes).await?;
                bytes.truncate(bytes.len() - 2);
                Reply::Text(String::from_utf8(bytes)?)
            }
            "*" => {
                let mut list = Vec::new();
                for _ in 0..rest.parse::<usize>()? {
                    list.push(Box::pin(self.read()).await??);
                }
                Reply::List(list)
            }
            "-" => return Ok(Err(anyhow::anyhow!("{rest}"))),
            _ => bail!("{line} is no answer of Redis"),
        }))
    }
}

/// Runs one command on the Redis at this address.
pub(super) async fn ask(address: &str, words: &[&str]) -> Result<Reply> {
    let mut replies = Redis::connect(address).await?.ask(&[words]).await?;
    replies.pop().context("no answer")
}

/// What the Redis at this address says of itself.
pub(super) async fn info(address: &str) -> Result<BTreeMap<String, String>> {
    let Reply::Text(text) = ask(address, &["INFO"]).await? else {
        bail!("INFO is no text");
    };
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    Ok(pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}
