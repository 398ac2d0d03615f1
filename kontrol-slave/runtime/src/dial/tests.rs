//! A master that answers only health checks, dialled over real sockets.

use super::*;
use crate::{
    command_line::Mistake,
    testing::{Authority, Pair, rcgen, write},
};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Mutex,
};
use tempfile::TempDir;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::{
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::health_reporter,
};
use tower::util::MapRequestLayer;

/// What a request bore: its URI and its headers.
type Seen = Arc<Mutex<Vec<(http::Uri, http::HeaderMap)>>>;

struct Master {
    address: SocketAddr,
    seen: Seen,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Master {
    /// A master on this address, with these certificates if it speaks TLS.
    fn start(address: SocketAddr, tls: Option<ServerTlsConfig>) -> Self {
        let incoming = TcpIncoming::bind(address).unwrap();
        let address = incoming.local_addr().unwrap();
        let (seen, stop) = (Seen::default(), CancellationToken::new());
        let (_, health) = health_reporter();
        let record = {
            let seen = Arc::clone(&seen);
            move |request: http::Request<Body>| {
                let (head, body) = request.into_parts();
                let bore = (head.uri.clone(), head.headers.clone());
                seen.lock().unwrap().push(bore);
                http::Request::from_parts(head, body)
            }
        };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let router = server
            .layer(MapRequestLayer::new(record))
            .add_service(health);
        let stopped = stop.clone().cancelled_owned();
        let serve = router.serve_with_incoming_shutdown(incoming, stopped);
        Self {
            address,
            seen,
            stop,
            task: AbortOnDropHandle::new(tokio::spawn(async move { serve.await.unwrap() })),
        }
    }

    /// Hangs up, and frees the port.
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    fn target(&self, tls: bool) -> Target {
        Target {
            host: "m1.example".into(),
            port: self.address.port(),
            tls,
            address: Some(self.address),
        }
    }

    fn tokens(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let bore = |headers: &http::HeaderMap| {
            let value = headers.get("authorization");
            value.map_or("none".into(), |value| value.to_str().unwrap().to_owned())
        };
        seen.iter().map(|(_, headers)| bore(headers)).collect()
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn speaks(signed: &(String, String)) -> ServerTlsConfig {
    ServerTlsConfig::new().identity(Identity::from_pem(&signed.0, &signed.1))
}

fn options() -> Options {
    Options {
        limit: Duration::from_secs(20),
        ping: Duration::from_secs(5),
        ping_timeout: Duration::from_secs(5),
        while_idle: true,
        user_agent: Some("tester".into()),
    }
}

async fn ask(channel: &Channel) -> Result<(), Status> {
    let mut client = HealthClient::new(channel.clone());
    client.check(HealthCheckRequest::default()).await.map(drop)
}

async fn refusal(target: Target, credentials: &Credentials) -> String {
    let error = match connect(target, credentials, options()).await {
        Err(error) => return error.to_string(),
        Ok(channel) => (ask(&channel).await.unwrap_err(), channel),
    };
    let (status, channel) = error;
    channel.reason(&status)
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
    fn pair(&self, name: &str, signed: &(String, String)) -> Pair {
        write(self.path(), name, signed)
    }
}

#[tokio::test]
async fn a_master_over_tls_is_told_who_asks_by_token() {
    let (files, authority) = (Files::new(), Authority::new("one"));
    let master = Master::start(any(), Some(speaks(&authority.sign(&["m1.example"]))));
    let credentials = Credentials::none()
        .with_ca(authority.install(files.path()))
        .with_token_file(files.put("token", " s3cret \nmore\n"));
    let target = master.target(true);
    let channel = connect(target.clone(), &credentials, options())
        .await
        .unwrap();
    assert!(channel.is_tls());
    ask(&channel).await.unwrap();
    assert_eq!(master.tokens(), ["Bearer s3cret"]);
    let (uri, headers) = master.seen.lock().unwrap()[0].clone();
    assert_eq!(uri.scheme_str(), Some("https"));
    assert_eq!(
        uri.authority().unwrap().as_str(),
        format!("m1.example:{}", target.port)
    );
    let agent = headers["user-agent"].to_str().unwrap();
    assert!(agent.starts_with("tester"), "{agent}");

    files.put("token", "another\n");
    ask(&channel).await.unwrap();
    assert_eq!(master.tokens()[1], "Bearer s3cret", "its connection stands");
    let next = connect(target, &credentials, options()).await.unwrap();
    ask(&next).await.unwrap();
    assert_eq!(master.tokens()[2], "Bearer another");
}

#[tokio::test]
async fn a_certificate_that_is_known_is_trusted_by_itself_and_no_other_is() {
    let (files, authority) = (Files::new(), Authority::new("one"));
    let signed = authority.sign(&["elsewhere.example"]);
    let master = Master::start(any(), Some(speaks(&signed)));
    let own = files.pair("own", &signed);
    let knows = Credentials::none().with_pinned(own.cert);
    let channel = connect(master.target(true), &knows, options()).await;
    ask(&channel.unwrap()).await.unwrap();

    let another = files.pair("another", &authority.sign(&["m1.example"]));
    let mistaken = Credentials::none().with_pinned(another.cert);
    let told = refusal(master.target(true), &mistaken).await;
    assert!(told.contains("not the one that is known"), "{told}");
}

#[tokio::test]
async fn a_connection_that_is_made_again_reads_all_files_anew() {
    let (files, first) = (Files::new(), Authority::new("first"));
    let tls = |authority: &Authority| speaks(&authority.sign(&["m1.example"]));
    let master = Master::start(any(), Some(tls(&first)));
    let credentials = Credentials::none()
        .with_ca(first.install(files.path()))
        .with_token_file(files.put("token", "old"));
    let (address, target) = (master.address, master.target(true));
    let channel = connect(target, &credentials, options()).await.unwrap();
    ask(&channel).await.unwrap();
    master.stop().await;

    let second = Authority::new("second");
    second.install(files.path());
    files.put("token", "new");
    let master = Master::start(address, Some(tls(&second)));
    // A request that is under way when the connection ends may fail; the ones behind it do not.
    let _ = ask(&channel).await;
    ask(&channel).await.unwrap();
    assert_eq!(master.tokens().last().unwrap(), "Bearer new");
}

#[tokio::test]
async fn in_clear_text_all_addresses_of_a_name_are_tried() {
    let master = Master::start(any(), None);
    let target = Target {
        host: "localhost".into(),
        address: None,
        ..master.target(false)
    };
    assert_eq!(
        target.to_string(),
        format!("http://localhost:{}", target.port)
    );
    let credentials = Credentials::none().with_token("abc").unwrap();
    let channel = connect(target, &credentials, options()).await.unwrap();
    assert!(!channel.is_tls());
    ask(&channel).await.unwrap();
    assert_eq!(master.tokens(), ["Bearer abc"]);
    let without = connect(master.target(false), &Credentials::none(), options()).await;
    ask(&without.unwrap()).await.unwrap();
    assert_eq!(master.tokens()[1], "none");
    assert_eq!(master.seen.lock().unwrap()[0].0.scheme_str(), Some("http"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_what_is_wrong_with_it_is_told() {
    let (files, authority) = (Files::new(), Authority::new("one"));
    let tls = speaks(&authority.sign(&["m1.example"]))
        .client_ca_root(Certificate::from_pem(authority.pem()));
    let master = Master::start(any(), Some(tls));
    let nobody = Credentials::none().with_ca(authority.install(files.path()));
    let told = refusal(master.target(true), &nobody).await;
    assert!(told.contains("give --cert and --key"), "{told}");

    let pair = files.pair("client", &authority.sign_client("web-1", "kontrol:slave"));
    let known = nobody.clone().with_identity(&pair.cert, &pair.key);
    let channel = connect(master.target(true), &known, options())
        .await
        .unwrap();
    ask(&channel).await.unwrap();

    let over = authority.sign_as(&["x"], |params| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    files.pair("client", &over);
    let told = refusal(master.target(true), &known).await;
    assert!(told.contains("renew the file of --cert"), "{told}");
    files.pair("client", &Authority::new("two").sign_client("web-1", "x"));
    let told = refusal(master.target(true), &known).await;
    assert!(
        told.contains("does not trust the authority of our client certificate"),
        "{told}"
    );
    let other = files.pair("other", &authority.sign_client("web-2", "x"));
    fs::copy(other.key, &pair.key).unwrap();
    let told = refusal(master.target(true), &known).await;
    assert!(told.contains("is not that of the certificate"), "{told}");
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_in_one_line() {
    let (files, authority) = (Files::new(), Authority::new("one"));
    let trusting = Credentials::none().with_ca(authority.install(files.path()));
    let tls = Master::start(any(), Some(speaks(&authority.sign(&["m1.example"]))));
    let clear = Master::start(any(), None);
    let of = |target: &Target, host: &str| Target {
        host: host.into(),
        ..target.clone()
    };
    let nobody = {
        let listener = TcpListener::bind(any()).unwrap();
        let address = listener.local_addr().unwrap();
        Target {
            address: Some(address),
            ..tls.target(true)
        }
    };
    let missing = Credentials::none().with_ca(files.path().join("nowhere"));
    let no_token = trusting.clone().with_token_file(files.put("empty", "\n"));
    for (target, credentials, words) in [
        (tls.target(true), &missing, "nowhere: No such file"),
        (tls.target(true), &no_token, "--token-file: "),
        (
            clear.target(true),
            &trusting,
            "speaks clear text: use http://",
        ),
        (tls.target(false), &trusting, "use https://"),
        (
            of(&tls.target(true), "m2"),
            &trusting,
            "is not for m2, but for m1.example",
        ),
        (
            of(&tls.target(true), "-"),
            &trusting,
            "no certificate can be for",
        ),
        (nobody, &trusting, "refused"),
    ] {
        let told = refusal(target, credentials).await;
        assert!(told.contains(words), "{words}: {told}");
        assert!(!told.contains('\n'));
    }
    let untrusting = Credentials::none().with_ca(files.put("other", &Authority::new("x").pem()));
    let told = refusal(tls.target(true), &untrusting).await;
    assert!(told.contains("with --ca"), "{told}");
}

#[tokio::test]
async fn an_end_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind(any()).unwrap();
    let target = Target {
        host: "m1".into(),
        port: 1,
        tls: true,
        address: Some(listener.local_addr().unwrap()),
    };
    let (files, authority) = (Files::new(), Authority::new("one"));
    let credentials = Credentials::none().with_ca(authority.install(files.path()));
    let options = Options {
        limit: Duration::from_millis(200),
        ..options()
    };
    let error = connect(target, &credentials, options).await.unwrap_err();
    assert!(
        error.to_string().contains("does the other end speak TLS?"),
        "{error}"
    );
}

#[tokio::test]
async fn what_breaks_a_connection_under_way_is_no_riddle() {
    let master = Master::start(any(), None);
    let none = Credentials::none();
    let channel = connect(master.target(false), &none, options())
        .await
        .unwrap();
    ask(&channel).await.unwrap();
    master.stop().await;
    let mut told = String::new();
    for _ in 0..3 {
        if let Err(status) = ask(&channel).await {
            told = channel.reason(&status);
        }
    }
    assert!(told.contains("refused"), "{told}");
}

#[test]
fn settings_are_checked_with_all_mistakes_told_and_no_token_shown() {
    let (files, authority) = (Files::new(), Authority::new("one"));
    let pair = files.pair("client", &authority.sign_client("web-1", "kontrol:slave"));
    let ca = authority.install(files.path());
    let lines = |args: &DialArgs, token: Option<&str>| -> Vec<String> {
        let mistakes = args.check(token.map(str::to_owned)).unwrap_err();
        mistakes.iter().map(Mistake::to_string).collect()
    };
    let good = DialArgs {
        ca: Some(ca.clone()),
        cert: Some(pair.cert.clone()),
        key: Some(pair.key.clone()),
        token_file: Some(PathBuf::new()),
    };
    let credentials = good.check(Some(" s3cret\n".into())).unwrap();
    assert!(credentials.has_token());
    let shown = format!("{credentials:?}");
    assert!(
        shown.contains("client.key") && !shown.contains("s3cret"),
        "{shown}"
    );
    assert!(
        !DialArgs::default()
            .check(Some(" ".into()))
            .unwrap()
            .has_token()
    );

    let args = DialArgs {
        cert: Some(pair.key.clone()),
        key: Some(pair.cert.clone()),
        ca: Some(files.put("empty", "")),
        token_file: Some(files.path().join("nowhere")),
    };
    let told = lines(&args, None);
    assert_eq!(told.len(), 4, "{told:?}");
    for (line, words) in told
        .iter()
        .zip(["--ca: ", "--cert: ", "--key: ", "--token-file: "])
    {
        assert!(line.starts_with(words), "{line}");
    }
    assert!(told[1].contains("exchanged"), "{told:?}");
    let alone = DialArgs {
        cert: Some(pair.cert.clone()),
        ..DialArgs::default()
    };
    assert_eq!(
        lines(&alone, None),
        ["--cert: goes with --key: give both or none"]
    );
    let alone = DialArgs {
        key: Some(pair.key.clone()),
        ..DialArgs::default()
    };
    assert_eq!(
        lines(&alone, None),
        ["--key: goes with --cert: give both or none"]
    );
    let of_a_pod = DialArgs {
        key: Some("39mysN".into()),
        ..DialArgs::default()
    };
    of_a_pod.check(None).unwrap();
    let both = DialArgs {
        token_file: Some(files.put("token", "x")),
        ..DialArgs::default()
    };
    assert_eq!(
        lines(&both, Some("y")),
        ["--token-file: KONTROL_TOKEN holds a token already: give one of the two"]
    );
    for bad in ["s3 cret", "s3\u{e9}cret", "s3\u{7f}cret"] {
        let told = lines(&DialArgs::default(), Some(bad));
        assert!(
            told[0].contains("visible ASCII") && !told[0].contains("s3"),
            "{told:?}"
        );
        files.put("token", bad);
        let told = lines(&both, None);
        assert!(
            told[0].contains("visible ASCII") && !told[0].contains("s3"),
            "{told:?}"
        );
    }
}

#[test]
fn a_token_that_others_can_read_is_remarked_on() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    let path = files.put("token", "x");
    let credentials = Credentials::none().with_token_file(&path);
    for (mode, told) in [(0o600, false), (0o640, true), (0o604, true), (0o400, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(credentials.remark().is_some(), told, "{mode:o}");
    }
    assert_eq!(Credentials::none().remark(), None);
}
