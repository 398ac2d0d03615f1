//! A TCP proxy between two parties, to make the network between them fail: cut, delay, black-hole.

use crate::ports;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Every byte passes.
    Fair,
    /// Every byte passes, this much later.
    Slow(Duration),
    /// Nothing passes, though connections stay and new ones are accepted: a firewall that drops.
    Silent,
    /// Connections break at once, new ones as well.
    Cut,
}

/// A proxy in front of one server.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of `host:port`, in fair weather.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", ports::free()))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let (weather, seen) = watch::channel(Weather::Fair);
        let task = tokio::spawn(serve(listener, target.to_owned(), seen));
        Self {
            port,
            weather,
            task,
        }
    }

    /// Where to connect instead of to the target.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes the weather, for connections that exist as well.
    pub fn weather(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, weather: watch::Receiver<Weather>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(forward(client, target.clone(), weather.clone()));
    }
}

async fn forward(client: TcpStream, target: String, mut weather: watch::Receiver<Weather>) {
    if *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    tokio::select! {
        () = pump(client_reads, server_writes, weather.clone()) => {}
        () = pump(server_reads, client_writes, weather.clone()) => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // What was read in silence is sent when it ends, as TCP itself would after a retransmission.
        let now = weather
            .wait_for(|weather| *weather != Weather::Silent)
            .await;
        let Ok(now) = now.map(|now| *now) else { return };
        if let Weather::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.split();
                    tokio::io::copy(&mut reads, &mut writes).await
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn silence_holds_bytes_back_and_a_cut_breaks_the_connection() {
        let proxy = Proxy::start(&echo().await).await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let mut byte = [0];
        stream.write_all(b"a").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"a");

        proxy.weather(Weather::Silent);
        stream.write_all(b"b").await.unwrap();
        let wait = Duration::from_millis(200);
        assert!(
            tokio::time::timeout(wait, stream.read_exact(&mut byte))
                .await
                .is_err()
        );
        proxy.weather(Weather::Fair);
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"b");

        proxy.weather(Weather::Cut);
        assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
    }
}
