//! What a peer can't do to the port. Serving and draining are tested with the gateway, in `tests/gateway`.

use super::{greeting::PREFACE, *};
use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

const PATIENCE: Duration = Duration::from_secs(100);

struct Served {
    address: SocketAddr,
    token: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Served {
    async fn start(most: usize) -> Self {
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/panic", get(|| async { panic!("scripted") as () }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = CancellationToken::new();
        let port = Port {
            limits: Limits {
                connections: most,
                ..Limits::default()
            },
            ..Port::new(listener, router)
        };
        let task = tokio::spawn(port.serve(token.clone(), PATIENCE));
        Self {
            address,
            token,
            task,
        }
    }

    async fn say(&self, words: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(words).await.unwrap();
        stream
    }

    async fn stop(self) {
        self.token.cancel();
        self.task.await.unwrap().unwrap();
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n";

async fn is_greeted(stream: &mut TcpStream) -> bool {
    let mut head = [0; 12];
    let read = timeout(PATIENCE, stream.read_exact(&mut head)).await;
    read.is_ok_and(|read| read.is_ok()) && &head == b"HTTP/1.1 200"
}

/// Sockets and a paused clock go together here because nothing but the time-out can happen: the clock jumps to it.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_get_to_the_point_is_dropped() {
    let served = Served::start(10).await;
    for words in [&b""[..], b"PRI * HTTP", b"GET / HTTP/1.1\r\nho"] {
        let mut stream = served.say(words).await;
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{words:?} keeps a connection open");
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    served.stop().await;
}

#[tokio::test]
async fn a_preface_in_pieces_is_still_http_2() {
    let served = Served::start(10).await;
    let mut stream = served.say(&PREFACE[..10]).await;
    stream.write_all(&PREFACE[10..]).await.unwrap();
    // An empty SETTINGS frame, to which the server answers with its own.
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut frame = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut frame))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(frame[3], 4);
    drop(stream);
    served.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_waits_for_its_turn() {
    let served = Served::start(1).await;
    let mut first = served.say(REQUEST).await;
    assert!(is_greeted(&mut first).await);
    let mut second = served.say(REQUEST).await;
    first.write_all(REQUEST).await.unwrap();
    assert!(
        timeout(Duration::from_millis(100), second.read_u8())
            .await
            .is_err()
    );
    drop(first);
    assert!(is_greeted(&mut second).await);
    served.stop().await;
}

#[tokio::test]
async fn a_handler_that_panics_takes_only_its_connection_along() {
    let served = Served::start(1).await;
    let mut stream = served.say(b"GET /panic HTTP/1.1\r\nhost: t\r\n\r\n").await;
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
    assert!(is_greeted(&mut served.say(REQUEST).await).await);
    served.stop().await;
}

#[test]
fn errors_of_a_peer_are_told_from_errors_of_the_system() {
    let error = |number| io::Error::from_raw_os_error(number);
    let (emfile, enfile, econnaborted) = (24, 23, 103);
    assert!(is_of_one_connection(&error(econnaborted)));
    assert!(!is_of_one_connection(&error(emfile)));
    assert!(!is_of_one_connection(&error(enfile)));
}
