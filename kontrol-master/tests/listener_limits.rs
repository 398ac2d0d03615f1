//! A port without file descriptors to spare. A process of its own, because the limit is the whole process's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use axum::{Router, routing::get};
use kontrol_master::serve::listener::Port;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fs, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn connections_wait_while_no_file_can_be_opened() {
    let router = Router::new().route("/", get(|| async { "hello" }));
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")
            .await
            .unwrap();
        clients.push(client);
    }
    let before = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(64),
        ..before
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        files.push(file);
    }
    files.pop().expect("one connection has room");
    let token = CancellationToken::new();
    let drain = Duration::from_secs(10);
    let serving = tokio::spawn(Port::new(port, router).serve(token.clone(), drain));

    let mut first = [0; 15];
    timeout(drain, clients[0].read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    // Nothing can be seen to happen here; were the others answered, the limit would not be what the test thinks it is.
    let early = timeout(Duration::from_millis(50), clients[1].read_u8()).await;
    assert!(early.is_err());
    setrlimit(Resource::Nofile, before).unwrap();
    for client in &mut clients[1..] {
        timeout(drain, client.read_exact(&mut first))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
    }
    token.cancel();
    serving.await.unwrap().unwrap();
}
