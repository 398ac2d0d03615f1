//! What goes wrong, and how it is told.

use super::{
    super::{Output, finish, output::Format},
    ensemble,
    script::{Cli, Master, Script, Sink, nobody, parse, run},
    watch::watches,
};
use std::io::{self, Write};
use tonic::Status;

#[tokio::test]
async fn masters_are_asked_in_turn_until_one_can_answer() {
    let blind = Master::start(Script {
        refuse: Some(Status::unavailable("cannot reach the leader")),
        ..Script::default()
    })
    .await;
    let master = Master::start(Script::default()).await;
    let line = format!("--endpoint {},{},{}", nobody().await, blind.url, master.url);
    for command in ["pods", "state put 1"] {
        let ran = run(&format!("{command} {line}")).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    }
    assert_eq!(blind.script.asked().len(), 2);
    assert_eq!(master.script.asked().len(), 2);
    drop(master);
    let ran = run(&format!("pods {line}")).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("(connection refused)")
            && ran.err.contains("(not ready: cannot reach the leader)")
            && ran
                .err
                .ends_with("name another with --endpoint or KONTROL_ENDPOINT\n"),
        "{}",
        ran.err
    );
    assert_eq!(ran.err.lines().count(), 1);
}

#[tokio::test]
async fn a_write_without_an_answer_is_not_sent_twice() {
    let mute = Master::start(Script {
        hang: true,
        ..Script::default()
    })
    .await;
    let other = Master::start(Script::default()).await;
    let ran = run(&format!(
        "state put 1 --timeout 300ms --endpoint {},{}",
        mute.url, other.url
    ))
    .await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("did not answer (no answer within 300ms), so it may or may not be done"),
        "{}",
        ran.err
    );
    assert_eq!(mute.script.asked().len(), 1);
    assert!(other.script.asked().is_empty());
}

#[tokio::test]
async fn a_refusal_is_told_and_ends_the_search() {
    for (code, status, message) in [
        // Asked wrongly.
        (
            2,
            Status::invalid_argument("selector is wrong"),
            "answers: selector is wrong\n",
        ),
        (
            1,
            Status::permission_denied(""),
            "does not allow it: it takes another token, or another certificate (PERMISSION_DENIED)\n",
        ),
        (
            1,
            Status::permission_denied("a reader can't"),
            "does not allow it (a reader can't): it takes",
        ),
        (
            1,
            Status::unauthenticated(""),
            "does not know who asks: give --token-file, or KONTROL_TOKEN, or a certificate with --cert and --key (UNAUTHENTICATED)\n",
        ),
        (
            1,
            Status::unauthenticated("no such token"),
            "does not know who asks (no such token): give --token-file",
        ),
        (
            1,
            Status::unimplemented("x"),
            "does not know this request: is it a kontrol-master",
        ),
    ] {
        let stern = Master::start(Script {
            refuse: Some(status),
            ..Script::default()
        })
        .await;
        let other = Master::start(Script::default()).await;
        let ran = run(&format!("pods --endpoint {},{}", stern.url, other.url)).await;
        assert_eq!((ran.code, ran.out.as_str()), (code, ""));
        assert!(ran.err.contains(message), "{}", ran.err);
        assert!(other.script.asked().is_empty());
    }
}

/// The address of a server that is no master.
pub(super) async fn web() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_server_that_is_no_master_makes_one_readable_line() {
    let web = web().await;
    let ran = run(&format!("pods --endpoint {web}")).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.err.lines().count(), 1);
    assert!(
        ran.err
            .starts_with(&format!("error: no master answers: {web} (")),
        "{}",
        ran.err
    );
}

/// A reader that went away, or a full disk.
pub(super) struct Closed(pub(super) io::ErrorKind);

impl Write for Closed {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_quietly_and_a_full_disk_does_not() {
    let master = Master::start(Script {
        watches: watches(),
        ..Script::default()
    })
    .await;
    for (command, error, code) in [
        ("pods", io::ErrorKind::BrokenPipe, 0),
        ("watch", io::ErrorKind::BrokenPipe, 0),
        ("pods", io::ErrorKind::StorageFull, 1),
    ] {
        let command = parse(&format!("{command} --endpoint {}", master.url)).unwrap();
        let (mut out, mut err) = (Closed(error), Sink::default());
        let told = err.clone();
        let mut output = Output::to(Format::Table, false, &mut out, &mut err);
        let stop = &mut async || std::future::pending().await;
        let ended = finish(&command, &mut output, &mut io::empty(), stop).await;
        assert_eq!(ended, code);
        assert_eq!(told.text().is_empty(), code == 0, "{}", told.text());
    }
}

#[tokio::test]
async fn colours_are_only_there_when_asked_for() {
    let master = Master::start(Script {
        ensemble: ensemble(),
        ..Script::default()
    })
    .await;
    let command = parse(&format!("status --endpoint {}", master.url)).unwrap();
    for colour in [false, true] {
        let (mut out, mut err) = (Sink::default(), Sink::default());
        let seen = out.clone();
        let mut output = Output::to(Format::Table, colour, &mut out, &mut err);
        let stop = &mut async || std::future::pending().await;
        finish(&command, &mut output, &mut io::empty(), stop).await;
        assert_eq!(seen.text().contains('\u{1b}'), colour);
    }
}

#[test]
fn the_parser_is_consistent_and_refuses_what_it_cannot_use() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
    assert!(parse("pods --output '' --timeout '' --endpoint ''").is_ok());
    for (line, reason) in [
        ("pods --selector 'a in b'", "at character 6"),
        ("pods --endpoint ftp://m1", "unknown scheme ftp"),
        ("pods --endpoint m1,,m2", "is not a master"),
        ("pods --timeout 0", "must be longer than nothing"),
        ("pods --timeout soon", "duration"),
        ("pods --output xml", "possible values: auto, table, json"),
        ("watch --revision=-1", "-1"),
        ("explain", "<KEY|IP|ID>"),
        ("state put", "<JSON|->"),
        ("hold", "<REASON>"),
        ("hold ' '", "say why"),
        ("hold why --for 0", "must be longer than nothing"),
        ("hold why --for 7d", "is not a unit of time"),
        ("evict", "<KEY|IP|ID>"),
        ("actions --limit 0", "0 is not in"),
        ("actions show", "<ID>"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        let text = error.to_string();
        assert!(text.contains(reason), "{line}: {text}");
    }
}
