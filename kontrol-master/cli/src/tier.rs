//! What a tier holds, read for whoever tries something with it. Nothing here changes anything.

use super::{
    DEFAULT_TIMEOUT, credentials, endpoint::MasterUrls, error::CliError, masters::Masters,
    parse_timeout, pods, state,
};
use kontrol_proto::v1::{GetEnsembleRequest, ListPodsRequest, Pod};
use kontrol_runtime::dial::{DialArgs, token_variable};

/// What a tier holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Tier {
    /// The live pods in seq order.
    pub pods: Vec<Pod>,
    /// The callback's state as exact JSON; none before the first.
    pub state: Option<String>,
    /// The epoch of its leader.
    pub epoch: i64,
}

/// Reads the pods, page by page, and the state from the first of the masters that can answer. What `dial` and the variable
/// KONTROL_TOKEN say is shown to them. An error names the flag that gave the masters.
pub async fn tier(urls: &MasterUrls, dial: &DialArgs, flag: &str) -> Result<Tier, CliError> {
    read(urls, dial).await.map_err(|error| match error {
        CliError::Unreachable(reasons) => CliError::Failed(format!(
            "no master answers: {reasons}; start kontrol-master there, or name another with --{flag}"
        )),
        other @ (CliError::Usage(_)
        | CliError::Failed(_)
        | CliError::Unclear(_)
        | CliError::Lost(_)
        | CliError::Write(_)) => other,
    })
}

async fn read(urls: &MasterUrls, dial: &DialArgs) -> Result<Tier, CliError> {
    let credentials = credentials(dial, token_variable())?;
    let timeout = parse_timeout(DEFAULT_TIMEOUT).map_err(CliError::Usage)?;
    let masters = Masters::new(urls, credentials, timeout);
    let ensemble = masters
        .read(async |client| client.ensemble().get_ensemble(GetEnsembleRequest {}).await)
        .await?;
    let state = state::read(&masters).await?;
    let listed = pods::list(&masters, ListPodsRequest::default()).await?;
    Ok(Tier {
        pods: listed.pods,
        state,
        epoch: ensemble.epoch,
    })
}
