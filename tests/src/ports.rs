//! Free loopback ports. A port is given once in the life of a test binary; another process may still take it between
//! the giving and the use, so whoever starts a server tries again with another.

use std::{collections::BTreeSet, net::TcpListener, sync::Mutex};

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 that nobody listens on.
pub fn free() -> u16 {
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        if given.insert(port) {
            return port;
        }
    }
}
