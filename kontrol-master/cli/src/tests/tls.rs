//! Masters that speak TLS, and that are told who asks.

use super::script::{Cli, Master, Script, parse, run};
use crate::error::CliError;
use clap::CommandFactory;
use kontrol_runtime::testing::{Authority, write};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

fn speaks(authority: &Authority) -> ServerTlsConfig {
    let (cert, key) = authority.sign(&["127.0.0.1"]);
    ServerTlsConfig::new().identity(Identity::from_pem(cert, key))
}

fn token(folder: &Path, text: &str) -> String {
    let path = folder.join("token");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_master_over_tls_is_told_who_asks() {
    let (authority, folder) = (Authority::new("one"), tempfile::tempdir().unwrap());
    let master = Master::start_with(Script::default(), Some(speaks(&authority))).await;
    let ca = authority.install(folder.path());
    let token = token(folder.path(), "s3cret\n");
    let known = format!(
        "--endpoint {} --ca {} --token-file {token}",
        master.url,
        ca.display()
    );
    for command in ["pods", "state put 1", "state", "hold why"] {
        let ran = run(&format!("{command} {known}")).await;
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(
            !ran.err.contains("s3cret") && !ran.err.contains("warning"),
            "{}",
            ran.err
        );
    }
    let borne = master.script.tokens.lock().unwrap().clone();
    assert!(borne.len() >= 4);
    assert!(
        borne
            .iter()
            .all(|token| token.as_deref() == Some("Bearer s3cret"))
    );

    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let ran = run(&format!("pods {known}")).await;
    assert!(
        ran.err.starts_with("warning: others on this host can read"),
        "{}",
        ran.err
    );
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_in_a_clear_line() {
    let (authority, folder) = (Authority::new("one"), tempfile::tempdir().unwrap());
    let tls = speaks(&authority).client_ca_root(Certificate::from_pem(authority.pem()));
    let master = Master::start_with(Script::default(), Some(tls)).await;
    let ca = authority.install(folder.path());
    let signed = authority.sign_client("ops", "kontrol:operator");
    let pair = write(folder.path(), "client", &signed);
    let known = format!("--endpoint {} --ca {}", master.url, ca.display());
    // A write as well: nothing was done, and that is certain.
    for command in ["pods", "state put 1"] {
        let ran = run(&format!("{command} {known}")).await;
        assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
        assert!(
            ran.err.starts_with("error: no master answers")
                && ran
                    .err
                    .contains("the other end wants a client certificate: give --cert and --key"),
            "{}",
            ran.err
        );
        let (cert, key) = (pair.cert.display(), pair.key.display());
        let ran = run(&format!("{command} {known} --cert {cert} --key {key}")).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    }
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_with_what_to_do() {
    let (authority, folder) = (Authority::new("one"), tempfile::tempdir().unwrap());
    let tls = Master::start_with(Script::default(), Some(speaks(&authority))).await;
    let clear = Master::start(Script::default()).await;
    let ca = authority.install(folder.path());
    let other = folder.path().join("other.pem");
    fs::write(&other, Authority::new("two").pem()).unwrap();
    let localhost = tls.url.replace("127.0.0.1", "localhost");
    for (url, ca, words) in [
        (
            &tls.url,
            &other,
            "give the certificate of that authority with --ca",
        ),
        (&localhost, &ca, "is not for localhost, but for 127.0.0.1"),
        (
            &tls.url.replace("https", "http"),
            &ca,
            "the other end speaks TLS: use https://",
        ),
        (
            &clear.url.replace("http", "https"),
            &ca,
            "the other end speaks clear text: use http://",
        ),
    ] {
        let ran = run(&format!(
            "state put 1 --endpoint {url} --ca {}",
            ca.display()
        ))
        .await;
        assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
        assert!(
            ran.err.contains(words) && ran.err.contains(url.as_str()),
            "{}",
            ran.err
        );
    }
    assert!(tls.script.asked().is_empty());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_a_usage_error() {
    let ran = run("pods --ca /nowhere --cert /nowhere --token-file /nowhere").await;
    assert_eq!(ran.code, 2);
    for words in [
        "--ca: can't read /nowhere",
        "--cert: goes with --key",
        "--token-file: can't read",
    ] {
        assert!(ran.err.contains(words), "{}", ran.err);
    }
    assert_eq!(ran.err.lines().count(), 1);
    let ran = run("exec --all --cert /nowhere -- true").await;
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("--cert: goes with --cert-key"),
        "{}",
        ran.err
    );
    let client = parse("pods").unwrap().client();
    let token = |token: &str| client.endpoint.credentials(Some(token.to_owned()));
    assert!(token("s3cret").unwrap().has_token());
    assert!(!token("").unwrap().has_token());
    let error = token("s3 cret").unwrap_err();
    assert!(
        matches!(&error, CliError::Usage(line) if !line.contains("s3")),
        "{error:?}"
    );
}

/// A list of processes shows what was given as a flag.
#[test]
fn there_is_no_flag_for_the_token_itself() {
    for command in Cli::command().get_subcommands() {
        let flags: Vec<_> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .collect();
        assert!(!flags.contains(&"token"), "{}", command.get_name());
        assert!(flags.contains(&"token-file"), "{}", command.get_name());
        let key = match command.get_name() {
            "exec" => "cert-key",
            _ => "key",
        };
        let own = command
            .get_arguments()
            .find(|arg| arg.get_id() == "dial-key");
        assert_eq!(own.unwrap().get_long(), Some(key), "{}", command.get_name());
    }
}
