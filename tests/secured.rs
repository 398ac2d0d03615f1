//! A master that asks who comes: TLS, tokens, and an authority. For the tests of this folder that have one; none of them
//! needs all of it.
//!
//! It is no part of the library, which would put the authority of tests, and what makes certificates, into the programs.

#![allow(dead_code, reason = "some of it is for one test, some for another")]
#![allow(unreachable_pub, reason = "a module of several tests")]

use anyhow::{Context as _, ensure};
use kontrol_runtime::{
    dial::{self, Channel, Credentials, Options, Target},
    testing::{Authority, Pair, write},
};
use kontrol_tests::{SOON, node, node::Master, wait::eventually};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The name that the master's certificate is for.
pub const HOST: &str = "localhost";

/// A token and its line for the file of a master, as the command line makes them.
pub fn token(role: &str, name: &str) -> (String, String) {
    let mut command = node::command("kontrol-master");
    command.args(["token", "new", "--role", role, "--name", name]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (token, line) = text.trim_end().split_once('\n').unwrap();
    (token.to_owned(), line.to_owned())
}

/// A connection to the master on this port.
pub async fn connect(port: u16, tls: bool, credentials: &Credentials) -> anyhow::Result<Channel> {
    let target = Target {
        host: HOST.into(),
        port,
        tls,
        address: Some(([127, 0, 0, 1], port).into()),
    };
    let options = Options {
        limit: SOON,
        ping: SOON,
        ping_timeout: SOON,
        while_idle: false,
        user_agent: None,
    };
    let connected = dial::connect(target, credentials, options).await;
    connected.context("dial")
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A master that asks who comes, with its authority and its file of tokens.
pub struct Secured {
    pub dir: TempDir,
    pub ours: Authority,
    pub ca: PathBuf,
    pub tokens: PathBuf,
    pub master: Master,
}

impl Secured {
    /// Starts it. `settings`: flags beside those that say who may come.
    pub async fn start(settings: &[(&str, &str)], lines: &[&str]) -> Self {
        let mut secured = Self::prepare(settings, lines);
        secured.master.launch();
        secured.listens().await;
        secured
    }

    pub fn prepare(settings: &[(&str, &str)], lines: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ours = Authority::new("ours");
        let ca = ours.install(dir.path());
        let port = write(dir.path(), "master", &ours.sign(&[HOST, "127.0.0.1"]));
        let tokens = dir.path().join("tokens");
        fs::write(&tokens, lines.join("\n")).unwrap();
        let mut all: Vec<(String, String)> = vec![
            ("tls-cert".into(), text(&port.cert)),
            ("tls-key".into(), text(&port.key)),
            ("client-ca".into(), text(&ca)),
            ("tokens".into(), text(&tokens)),
        ];
        let more = settings.iter();
        all.extend(more.map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())));
        let master = Master::new("master", all, Vec::new(), dir.path());
        Self {
            dir,
            ours,
            ca,
            tokens,
            master,
        }
    }

    /// Waits until it takes keepalives.
    pub async fn listens(&self) {
        eventually(SOON, "a master that is ready", async || {
            let mut client = tonic_health::pb::health_client::HealthClient::new(
                self.dial(&self.nobody()).await?,
            );
            let answer = client
                .check(tonic_health::pb::HealthCheckRequest::default())
                .await?;
            ensure!(answer.get_ref().status == 1, "{:?}", answer.get_ref());
            Ok(())
        })
        .await;
    }

    /// Whoever trusts its authority and shows nothing.
    pub fn nobody(&self) -> Credentials {
        Credentials::none().with_ca(&self.ca)
    }

    pub fn with_token(&self, token: &str) -> Credentials {
        self.nobody().with_token(token).unwrap()
    }

    pub fn with_pair(&self, pair: &Pair) -> Credentials {
        self.nobody().with_identity(&pair.cert, &pair.key)
    }

    /// A client certificate of this authority.
    pub fn client(
        &self,
        authority: &Authority,
        file: &str,
        name: &str,
        organization: &str,
    ) -> Pair {
        write(
            self.dir.path(),
            file,
            &authority.sign_client(name, organization),
        )
    }

    /// A connection to it.
    pub async fn dial(&self, credentials: &Credentials) -> anyhow::Result<Channel> {
        connect(self.master.port(), true, credentials).await
    }

    /// Replaces the file of tokens, as tools do it.
    pub fn set_tokens(&self, lines: &[&str]) {
        let new = self.tokens.with_extension("new");
        fs::write(&new, lines.join("\n")).unwrap();
        fs::rename(new, &self.tokens).unwrap();
    }

    /// A command of the command line that asks this master, over TLS.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = node::command("kontrol-master");
        command.args(words);
        command
            .env(
                "KONTROL_ENDPOINT",
                format!("https://{HOST}:{}", self.master.port()),
            )
            .env("KONTROL_CA", &self.ca);
        command
    }
}
