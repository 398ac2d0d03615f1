//! What must hold of each parser of this crate, whatever comes in: the bodies of the fuzz targets in `tests/fuzz`, which the
//! tests of `kontrol-master` replay as well.

use crate::{command_line::Mistake, duration, host::HostPort};
use std::time::Duration;

/// A duration: what is read is shown so that it reads back, and a mistake is one line that ends somewhere.
pub fn duration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match duration::parse(text) {
        Ok(read) => {
            assert_eq!(duration::parse(&duration::show(read)), Ok(read));
            assert!(read <= Duration::from_secs(366 * 24 * 3600));
        }
        Err(error) => said(&Mistake::new("ttl", error)),
    }
}

/// `host[:port]`: what is read is written so that it reads back, and fits into a URL.
pub fn host_port(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(at) = text.parse::<HostPort>() else {
        return;
    };
    assert_eq!(at.to_string().parse().as_ref(), Ok(&at));
    assert_ne!(at.port, Some(0));
    let fits = |c: char| c.is_ascii_alphanumeric() || ":.-_".contains(c);
    assert!(!at.host.is_empty() && at.host.chars().all(fits), "{at:?}");
}

fn said(mistake: &Mistake) {
    let line = mistake.to_string();
    assert!(line.len() <= 2048, "a mistake of {} bytes", line.len());
    assert!(!line.contains(char::is_control), "{line:?}");
}
