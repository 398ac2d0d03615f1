//! What the program is given: environment, standard input and files. PURE, but that it knows where this executable is.
//!
//! The files and standard input always hold everything. A variable holds what fits into it: Linux refuses to execute
//! anything with a longer one.

use super::{Input, Settings};
use kontrol_core::{
    access::tokens::Token,
    model::{Digest, Exact},
};
use kontrol_runtime::{process::DEFAULT_PATH, service};
use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
};

/// Longest `NAME=value` with its closing NUL that Linux passes on (MAX_ARG_STRLEN with pages of 4 KiB).
pub(super) const MAX_VARIABLE_BYTES: usize = 128 * 1024;

/// A document's names: the variable that holds it, the variable that names its file, the file.
struct Names {
    variable: &'static str,
    file_variable: &'static str,
    file: &'static str,
}

const PODS: Names = Names {
    variable: "PODS",
    file_variable: "PODS_FILE",
    file: "pods.json",
};
const STATE: Names = Names {
    variable: "STATE",
    file_variable: "STATE_FILE",
    file: "state.json",
};
const CHANGES: Names = Names {
    variable: "CHANGES",
    file_variable: "CHANGES_FILE",
    file: "changes.json",
};

/// The variable of the token that it calls back with.
const TOKEN: &str = "KONTROL_TOKEN";
/// The variable of the authorities by which it knows masters; the master's own stays where it is not said anew.
const CA: &str = "KONTROL_CA";

/// Variables that are about one run, so that none must come from the master's own environment.
const OWN: [&str; 11] = [
    "HASH",
    "MD5",
    "KONTROL_EPOCH",
    "KONTROL_ENDPOINT",
    TOKEN,
    PODS.variable,
    PODS.file_variable,
    STATE.variable,
    STATE.file_variable,
    CHANGES.variable,
    CHANGES.file_variable,
];

/// The way back to the masters.
#[derive(Clone, Copy)]
pub(super) struct Back<'a> {
    pub(super) endpoint: &'a str,
    pub(super) ca: Option<&'a Path>,
}

impl<'a> From<&'a Settings> for Back<'a> {
    fn from(settings: &'a Settings) -> Self {
        Self {
            endpoint: &settings.endpoint,
            ca: settings.ca.as_deref(),
        }
    }
}

/// The documents of one run.
pub(super) struct Documents {
    digest: Digest,
    epoch: i64,
    pods: Vec<u8>,
    state: Option<Exact>,
    changes: Vec<u8>,
    token: Option<Token>,
}

/// The environment of one run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Environment {
    /// All variables.
    pub(super) variables: Vec<(OsString, OsString)>,
    /// The documents that are too long for a variable.
    pub(super) left_out: Vec<&'static str>,
}

impl Documents {
    pub(super) fn new(input: Input) -> Self {
        Self {
            digest: input.digest,
            epoch: input.epoch,
            pods: input.pods,
            state: input.state,
            changes: input.changes,
            token: input.token,
        }
    }

    fn parts(&self) -> impl Iterator<Item = (&'static Names, &[u8])> {
        [
            (&PODS, Some(self.pods.as_slice())),
            (
                &STATE,
                self.state.as_ref().map(|state| state.as_str().as_bytes()),
            ),
            (&CHANGES, Some(&self.changes)),
        ]
        .into_iter()
        .filter_map(|(names, document)| Some((names, document?)))
    }

    /// The files with their contents, standard input apart.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.parts().map(|(names, document)| (names.file, document))
    }

    /// Standard input: everything as one JSON object; `state` is null when there is none.
    pub(super) fn input(&self) -> Vec<u8> {
        let Self { digest, epoch, .. } = self;
        let head =
            format!("\"epoch\":{epoch},\"hash\":\"{digest}\",\"md5\":\"{digest}\",\"pods\":");
        let state = self.state.as_ref().map_or("null", Exact::as_str);
        [
            b"{\"changes\":",
            self.changes.as_slice(),
            b",",
            head.as_bytes(),
            self.pods.as_slice(),
            b",\"state\":",
            state.as_bytes(),
            b"}\n",
        ]
        .concat()
    }

    /// The environment: what the master has itself, without secrets and leftovers, and this run's variables, documents
    /// only up to `limit` bytes of `NAME=value` and NUL.
    pub(super) fn environment(
        &self,
        inherited: impl IntoIterator<Item = (OsString, OsString)>,
        directory: &Path,
        back: Back<'_>,
        limit: usize,
    ) -> Environment {
        let mut variables: Vec<_> = inherited
            .into_iter()
            .filter(|(name, _)| !is_own(name) && !is_secret(name) && !service::is_own(name))
            .filter(|(name, _)| back.ca.is_none() || name != CA)
            .collect();
        let mut left_out = Vec::new();
        let digest = self.digest.to_string();
        let mut set = |name: &str, value: OsString| variables.push((name.into(), value));
        set("HASH", digest.as_str().into());
        set("MD5", digest.into());
        set("KONTROL_EPOCH", self.epoch.to_string().into());
        set("KONTROL_ENDPOINT", back.endpoint.into());
        if let Some(ca) = back.ca {
            set(CA, ca.into());
        }
        if let Some(token) = &self.token {
            set(TOKEN, token.as_str().into());
        }
        for (names, document) in self.parts() {
            set(
                names.file_variable,
                directory.join(names.file).into_os_string(),
            );
            let fits = names.variable.len() + 1 + document.len() < limit;
            match str::from_utf8(document) {
                Ok(text) if fits => set(names.variable, text.into()),
                _ => left_out.push(names.variable),
            }
        }
        Environment {
            variables,
            left_out,
        }
    }
}

/// Variables with a PATH in which that directory is found, too.
pub(super) fn with_path(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    directory: Option<&Path>,
) -> Vec<(OsString, OsString)> {
    let is_path = |variable: &(OsString, OsString)| variable.0 == "PATH";
    let (path, mut others): (Vec<_>, Vec<_>) = variables.into_iter().partition(is_path);
    let mut path = path.into_iter().map(|(_, path)| path);
    let path = path.rfind(|path| !path.is_empty());
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let path = match directory {
        Some(directory) => with_directory(path, directory),
        None => path,
    };
    others.push(("PATH".into(), path));
    others
}

/// A PATH that ends with a directory, unless that is in it already.
fn with_directory(path: OsString, directory: &Path) -> OsString {
    let mut directories: Vec<_> = env::split_paths(&path).collect();
    if directories.iter().any(|known| known == directory) {
        return path;
    }
    directories.push(directory.to_owned());
    // A directory with a colon in its name can't be in a PATH.
    env::join_paths(directories).unwrap_or(path)
}

fn is_own(name: &OsStr) -> bool {
    OWN.iter().any(|own| name == *own)
}

/// What the master alone may know.
fn is_secret(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    name.starts_with("KONTROL_")
        && ["PASSWORD", "TOKEN", "SECRET"]
            .iter()
            .any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_core::{json, testing::any_json};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn documents(pods: &str, state: Option<Value>) -> Documents {
        Documents::new(Input {
            digest: Digest::of_nothing(),
            pods: pods.into(),
            state: state.map(|state| Exact::of(&state).unwrap()),
            changes: br#"{"since":null}"#.to_vec(),
            epoch: 7,
            token: None,
        })
    }

    fn environment(documents: &Documents, inherited: &[(&str, &str)]) -> Environment {
        let inherited = inherited
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let directory = Path::new("/run");
        documents.environment(
            inherited,
            directory,
            Back {
                endpoint: "https://[::1]:8000",
                ca: Some(Path::new("/ca.pem")),
            },
            MAX_VARIABLE_BYTES,
        )
    }

    fn value<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
        let mut values = environment.variables.iter().filter(|(n, _)| n == name);
        let value = values.next().map(|(_, value)| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} is set twice");
        value
    }

    #[test]
    fn a_first_run_has_no_state() {
        let environment = environment(
            &documents("[]", None),
            &[("STATE", "old"), ("STATE_FILE", "/old"), ("HASH", "old")],
        );
        assert_eq!(value(&environment, "STATE"), None);
        assert_eq!(value(&environment, "STATE_FILE"), None);
        let digest = Digest::of_nothing().to_string();
        assert_eq!(value(&environment, "HASH"), Some(digest.as_str()));
        assert_eq!(value(&environment, "MD5"), Some(digest.as_str()));
        assert_eq!(value(&environment, "PODS"), Some("[]"));
        assert_eq!(value(&environment, "PODS_FILE"), Some("/run/pods.json"));
        assert_eq!(value(&environment, "CHANGES"), Some("{\"since\":null}"));
        assert_eq!(value(&environment, "KONTROL_EPOCH"), Some("7"));
    }

    #[test]
    fn a_null_state_is_a_state() {
        let environment = environment(&documents("[]", Some(json!(null))), &[]);
        assert_eq!(value(&environment, "STATE"), Some("null"));
        assert_eq!(value(&environment, "STATE_FILE"), Some("/run/state.json"));
    }

    #[test]
    fn every_digit_of_the_state_is_handed_out() {
        let text = r#"{"ns":1795818574164123457,"a":[1.0,1e5,123456789012345678901234567890]}"#;
        let mut documents = documents("[]", None);
        documents.state = Some(Exact::read(text.as_bytes()).unwrap());
        assert_eq!(value(&environment(&documents, &[]), "STATE"), Some(text));
        let input = String::from_utf8(documents.input()).unwrap();
        assert!(
            input.ends_with(&format!(",\"state\":{text}}}\n")),
            "{input}"
        );
        let file = documents.files().find(|(name, _)| *name == "state.json");
        assert_eq!(file.unwrap().1, text.as_bytes());
    }

    #[test]
    fn secrets_stay_with_the_master_and_all_else_is_passed_on() {
        let environment = environment(
            &documents("[]", None),
            &[
                ("KONTROL_ETCD_PASSWORD", "x"),
                ("KONTROL_PEER_TOKEN_FILE", "x"),
                ("KONTROL_SECRET", "x"),
                ("KONTROL_TTL", "25s"),
                ("PATH", "/bin"),
                ("MY_TOKEN", "mine"),
            ],
        );
        for secret in [
            "KONTROL_ETCD_PASSWORD",
            "KONTROL_PEER_TOKEN_FILE",
            "KONTROL_SECRET",
        ] {
            assert_eq!(value(&environment, secret), None);
        }
        assert_eq!(value(&environment, "KONTROL_TTL"), Some("25s"));
        assert!(value(&environment, "PATH").is_some());
        assert_eq!(value(&environment, "MY_TOKEN"), Some("mine"));
    }

    #[test]
    fn the_callback_is_given_its_own_token_and_never_the_masters() {
        let masters = [("KONTROL_TOKEN", "masters"), ("KONTROL_CA", "old.pem")];
        let without = documents("[]", None);
        assert_eq!(value(&environment(&without, &masters), TOKEN), None);
        assert_eq!(value(&environment(&without, &masters), CA), Some("/ca.pem"));
        let token = Token::of([1; 32]);
        let with = Documents {
            token: Some(token.clone()),
            ..without
        };
        assert_eq!(
            value(&environment(&with, &masters), TOKEN),
            Some(token.as_str())
        );
        let input = String::from_utf8(with.input()).unwrap();
        assert!(!input.contains(token.as_str()), "{input}");
    }

    #[test]
    fn a_directory_is_searched_last_and_once() {
        let path = |path: &str, directory| with_directory(path.into(), Path::new(directory));
        assert_eq!(path("/bin:/sbin", "/opt"), "/bin:/sbin:/opt");
        assert_eq!(
            path("/opt/kontrol:/bin", "/opt/kontrol"),
            "/opt/kontrol:/bin"
        );
        assert_eq!(path("/bin", "/a:b"), "/bin");
    }

    #[test]
    fn without_a_path_programs_are_found_all_the_same() {
        let path = |variables: &[(&str, &str)]| {
            let variables = variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()));
            let variables = with_path(variables, Some(Path::new("/opt/kontrol")));
            let [.., (name, path)] = &variables[..] else {
                panic!("none")
            };
            assert_eq!(name, "PATH");
            path.clone()
        };
        let default = format!("{DEFAULT_PATH}:/opt/kontrol");
        assert_eq!(path(&[]), default.as_str());
        assert_eq!(path(&[("PATH", "")]), default.as_str());
        assert_eq!(path(&[("PATH", "/bin"), ("A", "1")]), "/bin:/opt/kontrol");
    }

    #[test]
    fn a_variable_is_left_out_as_soon_as_linux_would_refuse_it() {
        // PODS= and the closing NUL take six bytes.
        let longest = "x".repeat(MAX_VARIABLE_BYTES - 6);
        let fits = environment(&documents(&longest, None), &[]);
        assert_eq!(value(&fits, "PODS").map(str::len), Some(longest.len()));
        assert_eq!(fits.left_out, [""; 0]);

        let too_long = environment(&documents(&format!("{longest}x"), None), &[("PODS", "old")]);
        assert_eq!(value(&too_long, "PODS"), None);
        assert_eq!(value(&too_long, "PODS_FILE"), Some("/run/pods.json"));
        assert_eq!(too_long.left_out, ["PODS"]);
    }

    proptest! {
        #[test]
        fn input_is_one_object_with_every_document(state in prop::option::of(any_json()), pods in any_json()) {
            let document = documents(&pods.to_string(), state.clone());
            let input: Value = serde_json::from_slice(&document.input()).unwrap();
            let digest = Digest::of_nothing().to_string();
            prop_assert_eq!(&input["hash"], &json!(digest));
            prop_assert_eq!(&input["md5"], &json!(digest));
            prop_assert_eq!(&input["epoch"], &json!(7));
            prop_assert_eq!(&input["changes"], &json!({"since": null}));
            prop_assert!(json::same(&input["pods"], &pods));
            prop_assert!(json::same(&input["state"], &state.unwrap_or_default()));
            prop_assert_eq!(input.as_object().unwrap().len(), 6);
        }
    }
}
