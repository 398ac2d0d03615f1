//! A network of hosts that can be cut anywhere: each host is a network namespace with an address, all on one bridge.
//!
//! It is inside of namespaces of its own (network, mounts, processes), in which a test runs itself a second time: nothing
//! of it is seen on this machine, and nothing is left when the test ends, however that is. A user who may not make
//! namespaces is told so, and the test is skipped.

use crate::skip;
use std::{
    env,
    io::Write,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

/// Tells a test that it runs inside.
const INSIDE: &str = "KONTROL_TEST_INSIDE";
/// What must be possible inside.
const PROBE: &str = "ip netns add probe && ip netns exec probe iptables -w -A INPUT -s 10.0.0.1 -j DROP && ip netns del probe";
/// What comes before whatever runs inside.
const ENTER: &str = "mount -t tmpfs none /run && ip link set lo up && ";

fn unshare(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-c", &format!("{ENTER}{script}")]);
    command
}

/// Whether this is the inner run of a test, which goes on. Outside, the inner run is made and waited for, and must pass.
pub fn inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let probe = match unshare(PROBE).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = probe {
        skip(&format!(
            "no network of namespaces can be made here, which takes root, iproute2 and iptables: {why}"
        ));
        return false;
    }
    // The shell stays, so that somebody reaps what has lost its parent.
    let status = unshare("\"$0\" --exact \"$1\" --nocapture --test-threads 1; exit $?")
        .arg(env::current_exe().unwrap())
        .arg(test)
        .env(INSIDE, "1")
        // A group of its own: Ctrl-C ends this test, and that ends the group.
        .process_group(0)
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed: its output is above");
    false
}

/// The hosts.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<String>,
}

impl Network {
    /// Makes a bridge with the address of this test, further addresses of the test, and these hosts.
    pub fn make(own: &[Ipv4Addr], hosts: &[(String, Ipv4Addr)]) -> Self {
        let mut script = String::from("set -e\nip link add br0 type bridge\nip link set br0 up\n");
        for address in own {
            script += &format!("ip addr add {address}/16 dev br0\n");
        }
        for (index, (name, address)) in hosts.iter().enumerate() {
            script += &format!(
                "ip netns add {name}\nip link add v{index} type veth peer name eth0 netns {name}\n\
                 ip link set v{index} master br0 up\nip -n {name} addr add {address}/16 dev eth0\n\
                 ip -n {name} link set lo up\nip -n {name} link set eth0 up\n"
            );
        }
        run("sh", &[], &script);
        let hosts = hosts.iter().map(|(name, _)| name.clone()).collect();
        Self { hosts }
    }

    /// A command on a host.
    pub fn command(&self, host: &str, program: &std::path::Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{host}"));
        command.arg(program);
        command
    }

    /// Lets nothing pass any more between a host and these addresses or networks.
    pub fn cut(&self, host: &str, others: &[String]) {
        let rules = others
            .iter()
            .map(|other| format!("-A INPUT -s {other} -j DROP\n-A OUTPUT -d {other} -j DROP\n"));
        self.rules(host, &rules.collect::<String>());
    }

    /// Lets nobody of these addresses or networks reach this port of a host, as a firewall does.
    pub fn close(&self, host: &str, port: u16, others: &[String]) {
        let rules = others
            .iter()
            .map(|other| format!("-A INPUT -s {other} -p tcp --dport {port} -j DROP\n"));
        self.rules(host, &rules.collect::<String>());
    }

    fn rules(&self, host: &str, rules: &str) {
        let arguments = ["netns", "exec", host, "iptables-restore", "--noflush", "-w"];
        run("ip", &arguments, &format!("*filter\n{rules}COMMIT\n"));
    }

    /// Mends everything.
    pub fn heal(&self) {
        for host in &self.hosts {
            run("ip", &["netns", "exec", host, "iptables", "-w", "-F"], "");
        }
    }
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    assert!(
        child.wait().unwrap().success(),
        "{program} {arguments:?} <<< {input}"
    );
}
