//! `kontrol-master token`: makes tokens. No master is asked, and nothing is stored: whoever makes one puts its line into the
//! file of `--tokens`.

use clap::{Args, Subcommand};
use jiff::{Timestamp, Unit};
use kontrol_core::access::{
    Principal, Role,
    tokens::{Entry, Token},
};
use kontrol_runtime::{duration, logging};
use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
    time::Duration,
};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token: prints it, and below it the line for the file of --tokens
    ///
    /// The first line is the token, which nothing ever shows again: it goes to whoever is to be known by it, as --token-file or
    /// KONTROL_TOKEN. The second goes into the file of every master: it holds the token's digest, which is no secret.
    New(NewArgs),
}

/// Whose token to make.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// What it is for: slave (reports a pod, runs actions), reader, operator (reads, runs commands, operates), peer (a master).
    /// Default: none, it is needed
    #[arg(long, value_name = "ROLE")]
    role: Role,

    /// The name of its owner, as logs and the history show it. Of a slave it is the id of its pod, or a pattern of ids: web-*.
    /// Default: none, it is needed
    #[arg(long, value_name = "NAME")]
    name: String,

    /// How long it counts: 720h. Default: until its line is taken out
    #[arg(long, value_name = "DURATION", value_parser = valid)]
    valid: Option<Duration>,
}

fn valid(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It was asked wrongly.
    #[error("--name: {0}")]
    Name(#[from] kontrol_core::access::BadName),
    /// The clock is beyond what can be written.
    #[error("--valid: that is too far away")]
    Valid,
    /// Nobody could be told.
    #[error("can't write the token: {0}")]
    Output(#[from] io::Error),
}

impl TokenError {
    /// Whether the command line is to be put right.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Valid)
    }
}

/// Does what was asked.
pub fn run(command: TokenCommand) -> Result<(), TokenError> {
    let TokenCommand::New(args) = command;
    let token = Token::of(rand::random());
    let line = line(&args, &token, Timestamp::now())?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}\n{line}", token.as_str())?;
    out.flush()?;
    if io::stdout().is_terminal() {
        logging::say(format_args!(
            "The first line is the token: keep it, nothing shows it again. The second goes into the file of --tokens."
        ));
    }
    Ok(())
}

fn line(args: &NewArgs, token: &Token, now: Timestamp) -> Result<Entry, TokenError> {
    let until = args.valid.map(|valid| {
        let until = now.checked_add(valid).map_err(|_| TokenError::Valid)?;
        until.round(Unit::Second).map_err(|_| TokenError::Valid)
    });
    Ok(Entry {
        principal: Arc::new(Principal::new(&args.name, args.role)?),
        digest: token.digest(),
        until: until.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::access::tokens::Tokens;

    #[test]
    fn the_line_that_is_printed_is_one_that_a_master_reads() {
        let token = Token::of([7; 32]);
        let mut args = NewArgs {
            role: Role::Slave,
            name: "web-*".into(),
            valid: None,
        };
        let now = Timestamp::UNIX_EPOCH;
        let shown = line(&args, &token, now).unwrap().to_string();
        assert!(!shown.contains(token.as_str()), "{shown}");
        let tokens = Tokens::parse(&shown).unwrap();
        assert!(
            tokens
                .find(&token.digest())
                .unwrap()
                .principal
                .speaks_for("web-7")
        );

        args.valid = Some(Duration::from_secs(3600));
        let shown = line(&args, &token, now).unwrap().to_string();
        assert!(shown.ends_with(" until:1970-01-01T01:00:00Z"), "{shown}");
        assert_eq!(Tokens::parse(&shown).unwrap().len(), 1);

        args.name = "a b".into();
        assert!(line(&args, &token, now).unwrap_err().is_usage());
    }
}
