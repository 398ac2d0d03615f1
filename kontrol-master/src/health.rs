//! `kontrol-master health`: whether a master is ready, told by the exit code. It is what the health check of the image runs,
//! which has nothing else to ask with.
//!
//! It asks the master that the variables around it describe: its port, in TLS where `KONTROL_TLS_CERT` is set. There it
//! trusts that very certificate, whatever name it is for and whoever signed it: a master is not ill because the check
//! knows no authority.

use crate::{config::ServeArgs, server::own_address};
use clap::Args;
use http_body_util::{BodyExt, Limited};
use kontrol_runtime::{
    command_line::Mistake,
    dial::{self, Credentials, DialArgs, Options, Target},
    duration,
};
use std::{net::SocketAddr, time::Duration};
use tower::ServiceExt;

/// What `/readyz` says is a line.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Which master to ask.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The master to ask: a URL (https:// for TLS) or `host[:port]`. Default: the one that KONTROL_PORT, KONTROL_BIND and
    /// KONTROL_TLS_CERT describe, on this host
    #[arg(long, value_name = "URL", value_parser = target)]
    endpoint: Option<Target>,

    /// How long it may take to answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = time)]
    timeout: Duration,

    /// What is shown to the master of --endpoint, and whom to trust.
    #[command(flatten, next_help_heading = "Dialling the master of --endpoint")]
    dial: DialArgs,
}

fn target(text: &str) -> Result<Target, &'static str> {
    let form = "is no master: use http://host:port, https://host:port or host[:port]";
    text.trim().parse().map_err(|_| form)
}

fn time(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// Why a master can't be called ready.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// It was asked wrongly.
    #[error("settings that are wrong")]
    Settings(Vec<Mistake>),
    /// It does not answer, or says why it is not ready.
    #[error("{0}: {1}")]
    NotReady(Target, String),
}

/// Asks; done when the master is ready. `serve`: the settings of the master beside this command.
pub async fn run(serve: &ServeArgs, args: HealthArgs) -> Result<(), HealthError> {
    let (target, credentials) = whom(serve, args.endpoint, &args.dial)?;
    let asked = tokio::time::timeout(args.timeout, ask(&target, &credentials, args.timeout)).await;
    let late = || Err(format!("no answer within {}", duration::show(args.timeout)));
    asked
        .unwrap_or_else(|_| late())
        .map_err(|reason| HealthError::NotReady(target, reason))
}

fn whom(
    serve: &ServeArgs,
    endpoint: Option<Target>,
    dial: &DialArgs,
) -> Result<(Target, Credentials), HealthError> {
    if let Some(target) = endpoint {
        let credentials = dial.check(dial::token_variable());
        return Ok((target, credentials.map_err(HealthError::Settings)?));
    }
    let own = serve.own_port().map_err(HealthError::Settings)?;
    let ip = own_address(own.bind);
    let target = Target {
        host: ip.to_string(),
        port: own.port,
        tls: own.certificate.is_some(),
        address: Some(SocketAddr::new(ip, own.port)),
    };
    // No token: whether a master is ready is for everybody to know.
    let nobody = Credentials::none();
    Ok((
        target,
        match own.certificate {
            Some(certificate) => nobody.with_pinned(certificate),
            None => nobody,
        },
    ))
}

async fn ask(target: &Target, credentials: &Credentials, limit: Duration) -> Result<(), String> {
    let options = Options {
        limit,
        ping: limit,
        ping_timeout: limit,
        while_idle: false,
        user_agent: Some(format!(
            "kontrol-master/{} (health)",
            env!("CARGO_PKG_VERSION")
        )),
    };
    let channel = dial::connect(target.clone(), credentials, options)
        .await
        .map_err(|error| error.to_string())?;
    // Not grpc.health, which does not say why.
    let request = http::Request::get("/readyz").body(tonic::body::Body::empty());
    let request = request.map_err(|error| error.to_string())?;
    let asked = channel.clone().oneshot(request).await;
    let answer = asked.map_err(|error| channel.reason(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
    let said = body.collect().await.map(|body| body.to_bytes());
    let said = String::from_utf8_lossy(&said.unwrap_or_default())
        .trim()
        .to_owned();
    Err(if said.is_empty() {
        status.to_string()
    } else {
        said
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn own(flags: &[&str]) -> Result<(Target, Credentials), HealthError> {
        let words = ["kontrol-master"].iter().chain(flags);
        whom(&Line::parse_from(words).serve, None, &DialArgs::default())
    }

    #[test]
    fn the_master_beside_it_is_found_by_its_settings() {
        for (flags, url) in [
            (&[][..], "http://127.0.0.1:8000"),
            (&["--bind", "0.0.0.0", "--port", "9"], "http://127.0.0.1:9"),
            (&["--bind", "::"], "http://[::1]:8000"),
            (&["--bind", "10.0.0.7"], "http://10.0.0.7:8000"),
            (&["--tls-cert", "m1.pem"], "https://127.0.0.1:8000"),
        ] {
            let (target, _) = own(flags).unwrap();
            assert_eq!(target.to_string(), url);
        }
        for flags in [["--port", "0"], ["--bind", "here"]] {
            assert!(matches!(own(&flags), Err(HealthError::Settings(_))));
        }
    }

    #[tokio::test]
    async fn a_master_that_does_not_answer_is_not_ready() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let serve = Line::parse_from(["kontrol-master", "--port", &port]).serve;
        let args = || HealthArgs {
            endpoint: None,
            timeout: Duration::from_millis(200),
            dial: DialArgs::default(),
        };
        let silent = run(&serve, args()).await.unwrap_err().to_string();
        assert!(silent.contains("no answer within 200ms"), "{silent}");
        drop(listener);
        let nobody = run(&serve, args()).await.unwrap_err().to_string();
        assert!(nobody.contains("refused"), "{nobody}");
    }
}
