//! The shape of the source, held by a test: what `kontrol-master/src/lib.rs` says of it must stay true.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "tidy/guides.rs"]
mod guides;
#[path = "tidy/proto.rs"]
mod proto;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest source file, in lines.
const MAX_LINES: usize = 500;
/// Largest file of the repository, in bytes.
const MAX_BYTES: u64 = 200 * 1024;
/// Never awaits, reads a clock, or names what it must not know.
const PURE: [&str; 9] = [
    "kontrol-master/core/src",
    "kontrol-master/src/ensemble/callback/changes",
    "kontrol-master/src/action/switchboard/directory",
    "kontrol-master/src/action/switchboard/orphans",
    "kontrol-slave/src/action/journal",
    "kontrol-slave/src/action/policy/rules",
    "kontrol-slave/src/action/session/signs",
    "kontrol-slave/src/keepalive/schedule",
    "kontrol-slave/runtime/src/process/guard/plan",
];
const IMPURE_WORDS: [&str; 9] = [
    ".await",
    "SystemTime::now",
    "Instant::now",
    "tonic",
    "axum",
    "etcd_client",
    "kontrol_proto",
    "std::fs",
    "std::env",
];
/// Who may name a crate: the crate, and the beginnings of the paths.
const OWNERS: [(&str, &[&str]); 9] = [
    (
        "etcd_client",
        &["kontrol-master/src/cluster/store/etcd", "tests/"],
    ),
    ("redb", &["kontrol-master/src/cluster/store/embedded"]),
    (
        "axum",
        &[
            "kontrol-master/src/serve/access",
            "kontrol-master/src/serve/gateway",
            "kontrol-master/src/serve/holding",
            "kontrol-master/src/serve/listener",
            "kontrol-master/src/serve/operations",
            "kontrol-master/src/server",
            "kontrol-master/tests",
        ],
    ),
    (
        "prometheus_client",
        &[
            "kontrol-master/src/metrics",
            "kontrol-master/src/cluster/store/measured",
        ],
    ),
    (
        "glob",
        &[
            "kontrol-slave/src/action/policy/rules",
            "kontrol-master/core/src/access",
        ],
    ),
    ("sha2", &["kontrol-master/core/src/access/tokens"]),
    (
        "x509_parser",
        &["kontrol-master/src/serve/access/certificate"],
    ),
    (
        "nix",
        &[
            "kontrol-slave/runtime/src/process",
            "kontrol-slave/runtime/src/host",
        ],
    ),
    ("close_fds", &["kontrol-slave/runtime/src/process/shim"]),
];

/// The rooms of the master, from the ground up: each may use those below it, and none beside or above it.
const ROOMS: [&str; 8] = [
    "metrics", "cluster", "ensemble", "trial", "action", "serve", "config", "server",
];
/// Which crates of ours a crate may stand on.
const CRATES: [(&str, &[&str]); 6] = [
    ("kontrol-proto", &[]),
    ("kontrol-slave/runtime", &[]),
    ("kontrol-master/core", &[]),
    (
        "kontrol-slave",
        &["kontrol-core", "kontrol-proto", "kontrol-runtime"],
    ),
    (
        "kontrol-master/cli",
        &["kontrol-core", "kontrol-proto", "kontrol-runtime"],
    ),
    (
        "kontrol-master",
        &[
            "kontrol-cli",
            "kontrol-core",
            "kontrol-proto",
            "kontrol-runtime",
            "kontrol-slave",
        ],
    ),
];
/// All that the pure core stands on. Of tokio it takes the `Instant`.
const CORE: [&str; 13] = [
    "bytes",
    "glob",
    "imbl",
    "jiff",
    "md-5",
    "proptest",
    "serde",
    "serde_json",
    "serde_json_canonicalizer",
    "sha2",
    "subtle",
    "thiserror",
    "tokio",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file of ours: its path below the root with `/`, and its text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = ["kontrol-proto", "kontrol-slave", "kontrol-master", "tests"]
        .map(|name| root().join(name))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Where `cargo fuzz` builds unless it is told another place.
                if !path.ends_with("tests/fuzz/target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 50, "the sources are where they were");
    found
}

/// The code of a file: without its comments, and without its tests.
fn code(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let text = text
        .split("#[cfg(test)]\npub(crate) mod tests {")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/") || name.starts_with("tests/")
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{name} has {lines} lines: it holds two things"
        );
        assert!(!name.ends_with("/mod.rs"), "{name}: write x.rs beside x/");
    }
}

/// What was fetched or built stays out of the history, where it would be for ever.
#[test]
fn nothing_is_kept_that_nobody_wrote() {
    let mut git = Command::new("git");
    let listed = git.args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else {
        kontrol_tests::skip("this is no clone of the repository, or there is no git");
        return;
    };
    for name in String::from_utf8(listed.stdout)
        .unwrap()
        .split_terminator('\0')
    {
        let size = fs::symlink_metadata(root().join(name)).map_or(0, |file| file.len());
        assert!(size <= MAX_BYTES, "{name} has {size} bytes");
        assert!(!name.contains("/target/"), "{name} was built");
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for (name, text) in sources().iter().filter(|(name, _)| !is_test(name)) {
        assert!(text.starts_with("//!"), "{name} does not say what it owns");
    }
}

#[test]
fn what_is_called_pure_is_pure() {
    let sources = sources();
    for pure in PURE {
        let mut files = sources
            .iter()
            .filter(|(name, _)| {
                name.strip_prefix(pure)
                    .is_some_and(|rest| rest.starts_with(['.', '/']))
                    && !is_test(name)
            })
            .peekable();
        assert!(files.peek().is_some(), "{pure} is gone");
        for (name, text) in files {
            for word in IMPURE_WORDS {
                assert!(!code(text).contains(word), "{name} is not pure: {word}");
            }
        }
    }
}

/// Whether some code names a crate, and not another whose name ends the same.
fn names(code: &str, crate_name: &str) -> bool {
    let path = format!("{crate_name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

/// These panic where the descriptor takes nothing: `logging::say` does not.
#[test]
fn no_program_prints_with_what_may_panic() {
    for (name, text) in sources() {
        let ours = [
            "kontrol-master/src",
            "kontrol-slave/src",
            "kontrol-slave/runtime/src",
        ];
        if !is_test(&name) && ours.iter().any(|ours| name.starts_with(ours)) {
            for word in ["print!(", "println!("] {
                assert!(!code(&text).contains(word), "{name} uses {word}");
            }
        }
    }
}

/// Time-outs, credentials, and what is told of a failure are those of every connection to a master.
#[test]
fn a_master_is_dialled_in_one_way() {
    for (name, text) in sources() {
        let ours = !name.starts_with("tests/") && !is_test(&name);
        let owns = [
            "kontrol-slave/runtime/src/dial.rs",
            "kontrol-master/src/cluster/store/etcd/connection.rs",
        ];
        let dials =
            code(&text).contains("transport::Endpoint") || code(&text).contains("Endpoint::from");
        assert!(
            !ours || owns.contains(&name.as_str()) || !dials,
            "{name} dials"
        );
    }
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    for (name, text) in sources() {
        for (crate_name, owners) in OWNERS {
            let named = names(&code(&text), crate_name);
            let owns = owners.iter().any(|owner| name.starts_with(owner));
            assert!(!named || owns, "{name} names {crate_name}");
        }
    }
}

/// The names that follow `crate::` in some code, those in braces among them.
fn used(code: &str) -> Vec<&str> {
    let word = |text: &'_ str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        end.unwrap_or(text.len())
    };
    let mut found = Vec::new();
    for (at, head) in code.match_indices("crate::") {
        let rest = &code[at + head.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(&rest[..word(rest)]);
            continue;
        };
        let mut depth = 0;
        let mut fresh = true;
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => fresh = true,
                _ if fresh && depth == 0 && letter.is_alphabetic() => {
                    found.push(&list[at..at + word(&list[at..])]);
                    fresh = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// The arrow that runs up or sideways from a room of the master, if there is one in this code.
fn upward(room: &str, code: &str) -> Option<String> {
    let rank = |room: &str| ROOMS.iter().position(|other| *other == room);
    let own = rank(room)?;
    used(code).into_iter().find_map(|other| {
        let up = other != room && rank(other).is_none_or(|other| other >= own);
        up.then(|| format!("{room} uses {other}"))
    })
}

#[test]
fn arrows_between_rooms_run_down() {
    for (room, code, arrow) in [
        ("cluster", "use crate::metrics::Metrics;", None),
        ("cluster", "use crate::{cluster::x, metrics};", None),
        (
            "cluster",
            "crate::action::Action",
            Some("cluster uses action"),
        ),
        (
            "action",
            "use crate::{cluster::{a, b::{serve}}, serve::rpc};",
            Some("action uses serve"),
        ),
        ("serve", "use crate::stranger;", Some("serve uses stranger")),
    ] {
        assert_eq!(upward(room, code).as_deref(), arrow, "{code}");
    }
    for (name, text) in sources() {
        let Some(path) = name.strip_prefix("kontrol-master/src/") else {
            continue;
        };
        let room = path.split(['/', '.']).next().unwrap_or_default();
        if !is_test(&name)
            && !path.ends_with("/double.rs")
            && let Some(arrow) = upward(room, &code(&text))
        {
            panic!("{name}: {arrow}");
        }
    }
}

/// The names of the crates that a manifest depends on, those of its tests left out.
fn dependencies(manifest: &str) -> Vec<String> {
    let (_, rest) = manifest
        .split_once("\n[dependencies]\n")
        .unwrap_or_default();
    let lines = rest.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_stand_on_what_is_below_them_and_the_core_on_nothing_that_acts() {
    for (folder, below) in CRATES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let names = dependencies(&manifest);
        assert!(folder == "kontrol-master/core" || !names.is_empty());
        for name in names {
            let ours = name.starts_with("kontrol-");
            assert!(
                !ours || below.contains(&name.as_str()),
                "{folder} stands on {name}"
            );
            let core = folder == "kontrol-master/core";
            assert!(
                !core || CORE.contains(&name.as_str()),
                "the core names {name}"
            );
        }
    }
}

/// A file that no module declares is never compiled, and nobody notices.
#[test]
fn no_file_is_orphaned() {
    let sources = sources();
    for (name, _) in &sources {
        let path = Path::new(name);
        let module = path.file_stem().unwrap().to_str().unwrap();
        if ["lib", "main", "build"].contains(&module)
            || name == "tests/tidy.rs"
            || name.contains("/src/bin/")
            // The test that replays the corpus holds them to their manifest.
            || name.starts_with("tests/fuzz/targets/")
        {
            continue;
        }
        let folder = path.parent().unwrap();
        let parents = [
            folder.with_extension("rs"),
            folder.join("lib.rs"),
            folder.join("main.rs"),
        ];
        let declared = sources.iter().any(|(other, text)| {
            let is_parent = parents.iter().any(|parent| Path::new(other) == parent);
            is_parent && text.contains(&format!("mod {module};"))
        });
        let is_target = (folder.ends_with("tests") || folder.ends_with("examples"))
            && folder
                .parent()
                .is_some_and(|above| root().join(above).join("Cargo.toml").exists());
        assert!(declared || is_target, "{name} belongs to no module");
    }
}
