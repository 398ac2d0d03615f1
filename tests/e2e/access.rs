//! Who may come in: one master with TLS, tokens and an authority, and everybody who tries.

mod lapse;
mod matrix;
mod own;
mod secrets;
mod start;

use crate::secured::{HOST, Secured, text, token};
use std::time::Duration;

/// Within which a stream ends whose caller is not known any more.
const SECONDS: Duration = Duration::from_secs(10);
