//! The shape of the source, held by a test: what `kontrol-master/src/lib.rs` says of it must stay true.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Longest source file, in lines.
const MAX_LINES: usize = 500;
/// Never awaits, reads a clock, or names what it must not know.
const PURE: [&str; 8] = [
    "kontrol-master/core/src",
    "kontrol-master/src/callback/changes",
    "kontrol-master/src/action/switchboard/directory",
    "kontrol-master/src/action/switchboard/orphans",
    "kontrol-slave/src/action/journal",
    "kontrol-slave/src/action/policy/rules",
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
const OWNERS: [(&str, &[&str]); 7] = [
    ("etcd_client", &["kontrol-master/src/store/etcd", "tests/"]),
    ("redb", &["kontrol-master/src/store/embedded"]),
    (
        "axum",
        &[
            "kontrol-master/src/gateway",
            "kontrol-master/src/listener",
            "kontrol-master/src/server",
            "kontrol-master/tests",
        ],
    ),
    (
        "prometheus_client",
        &[
            "kontrol-master/src/metrics",
            "kontrol-master/src/store/measured",
        ],
    ),
    ("glob", &["kontrol-slave/src/action/policy/rules"]),
    (
        "nix",
        &[
            "kontrol-slave/runtime/src/process",
            "kontrol-slave/runtime/src/host",
        ],
    ),
    ("close_fds", &["kontrol-slave/runtime/src/process/shim"]),
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
                folders.push(path);
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
        let is_target = folder.ends_with("tests")
            && folder
                .parent()
                .is_some_and(|above| root().join(above).join("Cargo.toml").exists());
        assert!(declared || is_target, "{name} belongs to no module");
    }
}

/// buf is in the PyPI package `buf-bin`; `tests/run` fetches it where it can.
#[test]
fn buf_lints_and_builds_the_protobuf_files() {
    let buf = |arguments: &[&str]| {
        let mut buf = Command::new("buf");
        buf.args(arguments).current_dir(root().join("proto"));
        buf.output()
    };
    if buf(&["--version"]).is_err() {
        return kontrol_tests::skip("there is no buf");
    }
    for arguments in [&["lint"][..], &["build", "-o", "/dev/null"]] {
        let ran = buf(arguments).unwrap();
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        assert!(ran.status.success(), "buf {arguments:?}: {said}");
    }
}
