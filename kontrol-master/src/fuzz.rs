//! Every parser that meets the outside, by name: what the targets in `tests/fuzz` run, and the tests replay. What must hold of
//! a parser stands beside it, here and in the crates below.

#[cfg(test)]
mod tests;

use crate::cluster::store::StoreUrl;
pub use crate::{
    action::fuzz::{dispatch, slave_event},
    ensemble::callback::fuzz::callback_output,
    serve::{
        gateway::fuzz::{http_json, http_routes},
        rpc::fuzz::{payload, ping, view},
    },
};
use kontrol_cli::MasterUrls;
pub use kontrol_core::fuzz::{ids, pods_record, selector, store_record, strict_json, tokens};
use kontrol_runtime::command_line::Mistake;
pub use kontrol_runtime::fuzz::{duration, host_port};
pub use kontrol_slave::fuzz::{podinfo, policy, tiers};

/// What takes any bytes, and panics where something does not hold.
pub type Body = fn(&[u8]);

/// All of them.
pub const TARGETS: [(&str, Body); 20] = [
    ("callback_output", callback_output),
    ("dispatch", dispatch),
    ("duration", duration),
    ("host_port", host_port),
    ("http_json", http_json),
    ("http_routes", http_routes),
    ("ids", ids),
    ("payload", payload),
    ("ping", ping),
    ("podinfo", podinfo),
    ("pods_record", pods_record),
    ("policy", policy),
    ("selector", selector),
    ("slave_event", slave_event),
    ("store_record", store_record),
    ("store_url", store_url),
    ("strict_json", strict_json),
    ("tiers", tiers),
    ("tokens", tokens),
    ("view", view),
];

/// `--store`, its classic spelling, and `--endpoint` of the command line: what is read is shown so that it reads back.
pub fn store_url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let said = |error: String| kontrol_core::fuzz::said(Mistake::new("store", error));
    for read in [text.parse(), StoreUrl::classic(text)] {
        match read {
            Ok(url) => {
                let again: StoreUrl = url.to_string().parse().expect("what is shown is read");
                assert_eq!(again, url);
            }
            Err(error) => said(error.to_string()),
        }
    }
    match text.parse::<MasterUrls>() {
        Ok(urls) => assert_eq!(urls.to_string().parse().as_ref(), Ok(&urls)),
        Err(error) => said(error),
    }
}
