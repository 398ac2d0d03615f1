//! `load`: lets simulated pods report to running masters and prints what that took, as a table.
//!
//! Bounded by `--seconds`. It shares the machine with what it measures, so its own use of the processors is a row of the
//! table: keepalives a second are those of both together, CPU per keepalive is the master's own.

use clap::Parser;
use kontrol_tests::{
    etcd,
    load::{Load, Plan},
    process::{Usage, usage},
};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// Lets simulated pods report to masters, and prints keepalives per second, latencies, errors, and what processes used.
///
/// First every pod joins, then the figures are taken for so many seconds.
#[derive(Debug, Parser)]
struct Args {
    /// host:port of the masters; pods go to the next one when one refuses
    #[arg(long, value_delimiter = ',', required = true)]
    masters: Vec<String>,
    /// How many pods
    #[arg(long, default_value_t = 1000)]
    pods: u32,
    /// The number of the first pod: another range, other pods
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// How many connections, shared out among the masters
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Keepalives under way on each gRPC connection, when flat out
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Seconds between a pod's keepalives; 0 is flat out
    #[arg(long, default_value_t = 0.0)]
    interval: f64,
    /// Send every pod's first keepalive at once, and not spread over the interval
    #[arg(long)]
    burst: bool,
    /// PUT /ping over HTTP/1.1 instead of gRPC
    #[arg(long)]
    http: bool,
    /// How long to take the figures, in seconds; joining may take as long again
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long a keepalive waits for its answer, in seconds
    #[arg(long, default_value_t = 3.0)]
    patience: f64,
    /// Processes to watch
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// host:port of etcd members, to count the transactions that wrote
    #[arg(long, value_delimiter = ',')]
    etcd: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let lasting = Duration::from_secs_f64(args.seconds);
    let plan = Plan {
        masters: args.masters.clone(),
        pods: args.pods.max(1),
        first: args.first,
        connections: args.connections.max(1),
        in_flight: args.in_flight.max(1),
        interval: Duration::from_secs_f64(args.interval),
        burst: args.burst,
        http: args.http,
        patience: Duration::from_secs_f64(args.patience),
    };
    let pids = [std::process::id()].into_iter().chain(args.pids.clone());
    let pids: Vec<u32> = pids.collect();

    let joining = Sample::take(&args.etcd, &pids).await;
    let load = Load::start(&plan);
    while load.accepted_once() < plan.pods && joining.at.elapsed() < lasting {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let steady = Sample::take(&args.etcd, &pids).await;
    println!("{:<14} {}", "accepted pods", load.accepted_once());
    print("joining", &load, &pids, &joining, &steady);
    tokio::time::sleep(lasting).await;
    let end = Sample::take(&args.etcd, &pids).await;
    print("steady", &load, &pids, &steady, &end);
    ExitCode::from(u8::from(load.accepted_once() < plan.pods))
}

/// What processes have used and etcd has written by now.
struct Sample {
    at: Instant,
    revision: Option<i64>,
    usages: Vec<Option<Usage>>,
}

impl Sample {
    async fn take(etcd: &[String], pids: &[u32]) -> Self {
        let revision = if etcd.is_empty() {
            None
        } else {
            etcd::revision(etcd).await.ok()
        };
        Self {
            at: Instant::now(),
            revision,
            usages: pids.iter().map(|pid| usage(*pid)).collect(),
        }
    }
}

fn print(phase: &str, load: &Load, pids: &[u32], from: &Sample, to: &Sample) {
    let mut figures = load.take();
    let took = (to.at - from.at).as_secs_f64();
    let accepted = figures.latencies.len() as f64;
    let row = |name: &str, value: String| println!("{name:<14} {value}");
    println!("--- {phase}: {took:.2} s");
    row(
        "keepalives",
        format!("{accepted} = {:.0}/s", accepted / took),
    );
    let [half, most, all] = [0.5, 0.99, 1.0].map(|share| figures.quantile(share));
    row("latency", format!("p50 {half:?} p99 {most:?} max {all:?}"));
    row("longest wait", format!("{:?}", figures.longest_wait));
    row("errors", format!("{} {}", figures.errors, figures.error));
    row("lost", figures.lost.to_string());
    if let (Some(from), Some(to)) = (from.revision, to.revision) {
        row("etcd writes", (to - from).to_string());
    }
    println!("process          CPU %   CPU us/keepalive   RSS MiB   of it anonymous");
    for (index, pid) in pids.iter().enumerate() {
        let name = if index == 0 {
            "this one".to_owned()
        } else {
            pid.to_string()
        };
        let (Some(from), Some(to)) = (&from.usages[index], &to.usages[index]) else {
            println!("{name:<14} is gone");
            continue;
        };
        let cpu = (to.cpu - from.cpu).as_secs_f64();
        println!(
            "{name:<14} {:>7.1} {:>18.1} {:>9.1} {:>17.1}",
            100.0 * cpu / took,
            1e6 * cpu / accepted,
            to.resident_kib as f64 / 1024.0,
            to.anonymous_kib as f64 / 1024.0,
        );
    }
}
