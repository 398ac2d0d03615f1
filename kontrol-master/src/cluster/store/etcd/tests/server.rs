//! etcd servers for tests, each on free ports of 127.0.0.1 with a data directory of its own.
//!
//! Each server is the child of a small shell that waits for the end of its standard input, and then kills it: so it goes
//! when the test does, however that ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

const GUARD: &str = r#"
etcd "$@" >>"$LOG" 2>&1 </dev/null &
pid=$!
echo $pid
cat >/dev/null
kill -9 $pid
wait $pid 2>/dev/null
[ -z "$REMOVE" ] || rm -rf "$REMOVE"
"#;
/// Long enough for an etcd on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether tests that need etcd are to be skipped; they say so by name.
pub(in crate::cluster::store) fn is_missing() -> bool {
    if Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok()
    {
        return false;
    }
    let required = std::env::var("KONTROL_REQUIRE_ETCD").is_ok_and(|value| value == "1");
    assert!(
        !required,
        "KONTROL_REQUIRE_ETCD=1, but there is no program etcd"
    );
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test").to_owned();
    // Not by eprintln!, which is kept from the user when a test passes.
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED {name}: there is no program etcd (KONTROL_REQUIRE_ETCD=1 makes this a failure)"
    );
    true
}

/// One etcd, of one member or more.
pub(in crate::cluster::store) struct Etcd {
    members: Vec<Member>,
    dir: tempfile::TempDir,
    /// The folder of its certificate and of who may be its client, when it speaks TLS.
    tls: Option<std::path::PathBuf>,
    /// Nobody will drop this one, so its guard removes the directory.
    forever: bool,
}

struct Member {
    ports: (u16, u16),
    /// Where it tells its health: in clear, even when it speaks TLS.
    health: u16,
    running: Option<Running>,
}

struct Running {
    guard: Child,
    pid: rustix::process::Pid,
}

impl Etcd {
    /// Starts so many members, and waits until they have a leader.
    pub(in crate::cluster::store) fn start(members: usize) -> Self {
        let etcd = Self::prepare(members);
        etcd.run()
    }

    /// Starts one member for a `static`, which is never dropped.
    pub(in crate::cluster::store) fn start_forever() -> Self {
        let mut etcd = Self::prepare(1);
        etcd.forever = true;
        etcd.run()
    }

    /// Chooses ports and directories, but starts nothing.
    pub(in crate::cluster::store) fn prepare(members: usize) -> Self {
        // All are bound at once, so that none is chosen twice.
        let listeners: Vec<_> = (0..members * 3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        let member = |three: &[u16]| Member {
            ports: (three[0], three[1]),
            health: three[2],
            running: None,
        };
        Self {
            members: ports.chunks(3).map(member).collect(),
            dir: tempfile::tempdir().unwrap(),
            tls: None,
            forever: false,
        }
    }

    /// Has it speak TLS with `server.pem` and `server.key` of this folder, to clients whom `ca.pem` signed.
    pub(in crate::cluster::store) fn with_tls(mut self, folder: &Path) -> Self {
        self.tls = Some(folder.to_owned());
        self
    }

    /// Starts what was prepared.
    pub(in crate::cluster::store) fn run(mut self) -> Self {
        for n in 0..self.members.len() {
            self.spawn(n);
        }
        for n in 0..self.members.len() {
            self.wait_until_healthy(n);
        }
        self
    }

    /// `host:port` of every member.
    pub(in crate::cluster::store) fn endpoints(&self) -> Vec<String> {
        let endpoint = |member: &Member| format!("127.0.0.1:{}", member.ports.0);
        self.members.iter().map(endpoint).collect()
    }

    fn spawn(&mut self, n: usize) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(n, member)| format!("m{n}={}", url(member.ports.1)))
            .collect();
        let (client, peer) = self.members[n].ports;
        let mut guard = Command::new("sh");
        let mut client = url(client);
        guard
            .args(["-c", GUARD, "guard"])
            .args(["--name", &format!("m{n}")])
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("m{n}")))
            .args(["--listen-peer-urls", &url(peer)])
            .args(["--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .env("LOG", self.log(n))
            .env(
                "REMOVE",
                if self.forever {
                    self.dir.path()
                } else {
                    Path::new("")
                },
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(folder) = &self.tls {
            client = client.replace("http:", "https:");
            guard
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(folder.join("ca.pem"))
                .arg("--cert-file")
                .arg(folder.join("server.pem"))
                .arg("--key-file")
                .arg(folder.join("server.key"))
                .args(["--listen-metrics-urls", &url(self.members[n].health)]);
        }
        guard
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client]);
        let mut guard = guard.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(guard.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let pid = line.trim().parse().ok();
        self.members[n].running = Some(Running {
            pid: pid.and_then(rustix::process::Pid::from_raw).unwrap(),
            guard,
        });
    }

    fn log(&self, n: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("m{n}.log"))
    }

    fn wait_until_healthy(&self, n: usize) {
        let end = Instant::now() + START_TIMEOUT;
        let member = &self.members[n];
        let port = if self.tls.is_some() {
            member.health
        } else {
            member.ports.0
        };
        while !is_healthy(port) {
            if Instant::now() > end {
                let log = std::fs::read_to_string(self.log(n)).unwrap_or_default();
                panic!("etcd did not start:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, n: usize, signal: rustix::process::Signal) {
        let running = self.members[n].running.as_ref().unwrap();
        rustix::process::kill_process(running.pid, signal).unwrap();
    }

    /// Stops a member as a stalled machine would: its sockets stay open.
    pub(in crate::cluster::store) fn pause(&self, n: usize) {
        self.signal(n, rustix::process::Signal::STOP);
    }

    /// Lets a stopped member go on.
    pub(in crate::cluster::store) fn resume(&self, n: usize) {
        self.signal(n, rustix::process::Signal::CONT);
    }

    /// kill -9.
    pub(in crate::cluster::store) fn kill(&mut self, n: usize) {
        if let Some(running) = self.members[n].running.take() {
            running.end();
        }
    }

    /// Starts a killed member again, with its data.
    pub(in crate::cluster::store) fn restart(&mut self, n: usize) {
        self.spawn(n);
        self.wait_until_healthy(n);
    }
}

impl Running {
    fn end(mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            self.kill(n);
        }
    }
}

fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// A name that no other test of this process has.
pub(in crate::cluster::store) fn unique_app() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("app-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
