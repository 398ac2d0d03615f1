//! Cancelling an action, whichever master carries it.

use super::dispatch::Dispatches;
use crate::cluster::{error::Error, peers::Dialer, roster::Roster};
use kontrol_core::{
    model::action::{ActionId, State},
    view::View,
};
use kontrol_proto::internal::v1::{CancelRequest, exchange_service_client::ExchangeServiceClient};
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;

/// How long another master may take to cancel.
const LIMIT: Duration = Duration::from_secs(2);

/// Cancels an action. True when it was over already.
pub async fn cancel(
    dispatches: &Dispatches,
    roster: &Roster,
    dialer: &Dialer,
    id: &ActionId,
) -> Result<bool, Error> {
    // An action that could not be recorded is known only to the master that carries it, so this comes first.
    if dispatches.cancel(id).await {
        return Ok(false);
    }
    if !roster.started() {
        return Err(Error::Unavailable(
            "this master has not read the history yet; try another master".to_owned(),
        ));
    }
    let view = roster.view();
    let known = view.action(id).ok_or_else(|| Error::no_action(id))?;
    if known.head.state == State::Finished || dispatches.is_mine(&known.head) {
        return Ok(true);
    }
    elsewhere(&view, dialer, id, &known.head.instance).await?;
    Ok(false)
}

/// Asks the master that carries the action to cancel it.
async fn elsewhere(
    view: &View,
    dialer: &Dialer,
    id: &ActionId,
    instance: &str,
) -> Result<(), Error> {
    let master = view.masters().find(|master| master.instance == instance);
    let master = master.ok_or_else(|| {
        Error::Unavailable(
            "the master that carries the action is gone, and the leader has not taken it over yet; try again".to_owned(),
        )
    })?;
    let ask = async {
        let channel = dialer.dial(master, LIMIT).await?;
        let request = CancelRequest { id: id.to_string() };
        ExchangeServiceClient::new(channel).cancel(request).await
    };
    match timeout(LIMIT, ask).await {
        Ok(Ok(_)) => Ok(()),
        // The action ended just now.
        Ok(Err(status)) if status.code() == Code::NotFound => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Error::Unavailable(format!(
            "the master {} that carries the action can't be reached just now; try again",
            master.id
        ))),
    }
}
