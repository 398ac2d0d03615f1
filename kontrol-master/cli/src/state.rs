//! `kontrol-master state`: the callback's persisted state, shown as it is, or replaced by another.
//!
//! What `state` prints, `state put -` takes.

use super::{
    ClientArgs,
    error::CliError,
    masters::Masters,
    output::{Format, Output, json},
    value::{self, VALUE},
};
use clap::{Args, Subcommand};
use kontrol_core::strict::{Numbers, indented};
use kontrol_proto::v1::{GetStateRequest, PutStateRequest};
use std::io;

/// What to do with the state.
#[derive(Debug, Args)]
pub struct StateArgs {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// What to do with the state other than to show it.
#[derive(Debug, Subcommand)]
enum Change {
    /// Replace the state. The digest that was last handled stays: no callback runs for it
    Put {
        /// The new state as JSON, or - to read it from standard input
        #[arg(value_name = "JSON|-", allow_negative_numbers = true)]
        value: String,
    },
}

/// Shows the state, or changes it.
pub(super) async fn run(
    masters: &Masters,
    args: &StateArgs,
    input: &mut dyn io::Read,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    match &args.change {
        None => show(masters, output).await,
        Some(Change::Put { value }) => put(masters, value, input, output).await,
    }
}

/// Asks for the state and shows it: indented for a person, on one line for a program.
async fn show(masters: &Masters, output: &mut Output<'_>) -> Result<(), CliError> {
    let Some(line) = read(masters).await? else {
        output.note("there is no state yet: the callback has printed none, and none was put");
        return output.line("null");
    };
    match output.format() {
        Format::Json => output.line(line),
        Format::Table => output.line(indented(&line)),
    }
}

/// Asks for the state: its exact JSON, or none.
pub(super) async fn read(masters: &Masters) -> Result<Option<String>, CliError> {
    let answer = masters
        .read(async |client| client.ensemble().get_state(GetStateRequest {}).await)
        .await?;
    Ok(match (answer.json, &answer.state) {
        (json, _) if !json.is_empty() => Some(json),
        // Of an older master.
        (_, Some(state)) => Some(json(state, VALUE)?),
        (_, None) => None,
    })
}

/// Puts a state: JSON, or `-` for what `input` holds.
async fn put(
    masters: &Masters,
    value: &str,
    input: &mut dyn io::Read,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let request = PutStateRequest {
        json: value::given("the state", value, Numbers::Any, input)?,
        ..PutStateRequest::default()
    };
    let answer = masters
        .write(async |client| client.ensemble().put_state(request.clone()).await)
        .await?;
    match output.format() {
        Format::Json => output.json(&answer, "kontrol.v1.PutStateResponse"),
        Format::Table => output.line(format_args!("stored at revision {}", answer.revision)),
    }
}
