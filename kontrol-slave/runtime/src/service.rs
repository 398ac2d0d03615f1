//! What a service manager is told (`sd_notify(3)`, `Type=notify`): that the program is ready, how it fares, that its loop
//! still turns, and that it stops.
//!
//! Without a service manager that asks for it (`NOTIFY_SOCKET`) all of this does nothing. What can't be told is no
//! failure of the program: it is logged at debug, and the manager draws its own conclusions.

use crate::command_line::one_line;
use sd_notify::NotifyState;
use std::{ffi::OsStr, future::pending, time::Duration};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Whether a variable is what the service manager says to this program, and to none that it starts.
pub fn is_own(name: &OsStr) -> bool {
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"]
        .iter()
        .any(|own| name == *own)
}

/// The program does its work from now on. The text is for whoever asks how it fares.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// How the program fares, in a few words. They may be another's, a master's say: what follows a line break would be an
/// order to the service manager.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(&one_line(status))]);
}

/// Says that the loop of this program turns, as often as the manager wants to hear it (`WatchdogSec=`), until the token is
/// cancelled; then, that it stops. It tells it twice in that time, so that one that comes late does no harm.
pub async fn watch(token: CancellationToken) {
    let turns = async {
        let Some(patience) = sd_notify::watchdog_enabled() else {
            return pending().await;
        };
        let mut ticks = interval((patience / 2).max(Duration::from_millis(1)));
        // What was missed need not be made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            tell(&[NotifyState::Watchdog]);
        }
    };
    token.run_until_cancelled(turns).await;
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager can't be told: {error}");
    }
}
