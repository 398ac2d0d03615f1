//! nginx and haproxy, each with the very settings that the guide of operators shows: names, ports and files are those of the
//! test, and the time-outs where it asks for other ones.

use anyhow::Context;
use kontrol_runtime::testing::{Authority, write};
use kontrol_tests::{SOON, house::project, ports, process::Process, skip, wait::eventually};
use rustix::process::Signal;
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// How often a proxy is started anew when its port was taken.
const ATTEMPTS: usize = 3;
/// What the time-outs of the guide are.
const AS_SHOWN: &str = "60s";
/// The name that the certificate of a proxy is for.
const HOST: &str = "127.0.0.1";

/// What stands between slaves and masters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `grpc_pass`, and `proxy_pass` for plain HTTP; TLS ends here.
    NginxRequests,
    /// The module `stream`.
    NginxConnections,
    /// `mode http` with HTTP/2 on both sides; TLS ends here.
    HaproxyRequests,
    /// `mode tcp`.
    HaproxyConnections,
}

impl Kind {
    /// What its block of the guide has and no other.
    fn mark(self) -> &'static str {
        match self {
            Self::NginxRequests => "grpc_pass",
            Self::NginxConnections => "stream {",
            Self::HaproxyRequests => "mode http",
            Self::HaproxyConnections => "mode tcp",
        }
    }

    fn language(self) -> &'static str {
        if self.is_nginx() { "nginx" } else { "haproxy" }
    }

    fn is_nginx(self) -> bool {
        matches!(self, Self::NginxRequests | Self::NginxConnections)
    }
}

/// The blocks of the guide in a language.
fn blocks(language: &str) -> Vec<String> {
    let guide = fs::read_to_string(project().join("deploy/README.md")).unwrap();
    let fence = format!("\n```{language}\n");
    let blocks = guide.split(&fence).skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("\n```").next());
    blocks.map(str::to_owned).collect()
}

/// The one that is for this kind.
fn block(kind: Kind) -> String {
    let mut found = blocks(kind.language());
    found.retain(|block| block.contains(kind.mark()));
    let [block] = &found[..] else {
        panic!("{} blocks of the guide are for {kind:?}", found.len());
    };
    block.clone()
}

/// How many blocks there are that no kind is for.
pub(crate) fn unknown_blocks() -> usize {
    let kinds = [
        Kind::NginxRequests,
        Kind::NginxConnections,
        Kind::HaproxyRequests,
        Kind::HaproxyConnections,
    ];
    let known = kinds.map(block);
    let mut all = [blocks("nginx"), blocks("haproxy")].concat();
    all.retain(|block| !known.contains(block));
    all.len()
}

/// A program of Debian, which may be where only root looks.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A proxy at work.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    kind: Kind,
    process: Process,
    dir: TempDir,
}

impl Proxy {
    /// Starts one in front of two masters. `timeouts` stand for those of the guide where they are given. None, said aloud,
    /// where the program is not installed: the test is skipped.
    pub(crate) async fn start(
        kind: Kind,
        masters: [u16; 2],
        timeouts: Option<&str>,
    ) -> Option<Self> {
        let name = kind.language();
        let Some(program) = program(name) else {
            skip(&format!("{name} is not installed"));
            return None;
        };
        let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
        if kind == Kind::NginxConnections && !module.is_file() {
            skip("nginx has no module `stream`: apt-get install libnginx-mod-stream");
            return None;
        }
        let text = block(kind);
        let text = text.replace(AS_SHOWN, timeouts.unwrap_or(AS_SHOWN));
        for _ in 0..ATTEMPTS {
            let dir = tempfile::tempdir().unwrap();
            let port = ports::free();
            let text = fitted(&text, dir.path(), port, masters);
            let mut command = Command::new(&program);
            let file = dir.path().join("settings");
            if kind.is_nginx() {
                fs::write(&file, whole(kind, &text, dir.path(), module)).unwrap();
                command
                    .args(["-g", "daemon off;", "-e", "stderr", "-p"])
                    .arg(dir.path())
                    .arg("-c")
                    .arg(&file);
            } else {
                fs::write(&file, text).unwrap();
                command.args(["-db", "-f"]).arg(&file);
            }
            let process = Process::spawn(name, &mut command, &dir.path().join("log"));
            let mut proxy = Self {
                port,
                kind,
                process,
                dir,
            };
            if proxy.listens().await {
                return Some(proxy);
            }
        }
        panic!("found no free port for {name} in {ATTEMPTS} attempts");
    }

    /// Has nginx read its settings again, as whoever operates it does now and then: its old workers go once nothing of theirs
    /// is open.
    pub(crate) fn reload(&mut self) {
        if self.kind.is_nginx() {
            self.process.signal(Signal::HUP);
        }
    }

    /// Waits until it takes connections. False where it ended because its port was taken.
    async fn listens(&mut self) -> bool {
        eventually(SOON, "a proxy that listens", async || {
            if let Some(status) = self.process.status() {
                let log = self.process.log();
                assert!(
                    log.to_lowercase().contains("in use"),
                    "it ended ({status}):\n{log}"
                );
                return Ok(false);
            }
            TcpStream::connect(("127.0.0.1", self.port)).context(self.process.log())?;
            Ok(true)
        })
        .await
    }

    /// Its URL, where TLS is spoken or not. The name is that of its certificate.
    pub(crate) fn url(&self, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
        format!("{scheme}://{HOST}:{}", self.port)
    }

    /// The authority that its certificate is of.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

/// The text with what is of this machine.
fn fitted(text: &str, dir: &Path, port: u16, masters: [u16; 2]) -> String {
    let ours = Authority::new("proxy");
    ours.install(dir);
    let pair = write(dir, "proxy", &ours.sign(&[HOST]));
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    fs::write(
        dir.join("proxy-with-key.pem"),
        read(&pair.cert) + &read(&pair.key),
    )
    .unwrap();
    let dir = dir.to_str().unwrap();
    let at = format!("127.0.0.1:{port}");
    let mut text = text
        .replace("m1:8000", &format!("127.0.0.1:{}", masters[0]))
        .replace("m2:8000", &format!("127.0.0.1:{}", masters[1]))
        .replace("/etc/kontrol/proxy.pem", pair.cert.to_str().unwrap())
        .replace("/etc/kontrol/proxy.key", pair.key.to_str().unwrap())
        .replace("/etc/kontrol", dir);
    for shown in ["listen 443", "listen 8000", "bind :443", "bind :8000"] {
        let (word, _) = shown.split_once(' ').unwrap();
        text = text.replace(shown, &format!("{word} {at}"));
    }
    text + "\n"
}

/// The file that nginx has around such a part.
fn whole(kind: Kind, text: &str, dir: &Path, module: &Path) -> String {
    let dir = dir.display();
    let head =
        format!("pid {dir}/pid;\nworker_processes 1;\nevents {{ worker_connections 256; }}\n");
    if kind == Kind::NginxConnections {
        return format!("load_module {};\n{head}{text}", module.display());
    }
    let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let folders = folders
        .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
        .concat();
    // A connection has so few requests that slaves come back on other ones.
    format!("{head}http {{\nkeepalive_requests 10;\naccess_log off;\n{folders}{text}}}\n")
}
