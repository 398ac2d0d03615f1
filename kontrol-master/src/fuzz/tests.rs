//! The corpus of the fuzz targets, replayed; and what a few thousand mutations of it come upon.

use super::{Body, TARGETS};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
};

/// How many inputs are made of each corpus.
const MUTATIONS: usize = 2000;
/// How many inputs a corpus may have, and bytes all of them: they are replayed with each run of the tests.
const MAX_FILES: usize = 60;
const MAX_BYTES: usize = 300 * 1024;
/// What parsers have an ear for.
const WORDS: [&[u8]; 20] = [
    b"\0",
    b"\n",
    b"\"",
    b"\\",
    b"\\u",
    b"{",
    b"}",
    b"[",
    b",",
    b"=",
    b"/",
    b":",
    b"%",
    b"%00",
    b"..",
    b"null",
    b"-1",
    b"18446744073709551615",
    b"1e400",
    b"\xff",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fuzz")
        .join(name)
}

/// The names in a folder, without their endings.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = folder("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder:?} has no inputs");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Tells which input it was, when a body panics.
struct Input<'a>(&'a str, &'a [u8]);

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: b\"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

fn run(name: &str, body: Body, input: &[u8]) {
    let _told = Input(name, input);
    body(input);
}

#[test]
fn each_target_has_its_program_and_its_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).into()).collect();
    assert_eq!(targets.len(), TARGETS.len());
    assert_eq!(names(&folder("targets")), targets);
    assert_eq!(names(&folder("corpus")), targets);
    let corpora = TARGETS.map(|(name, _)| corpus(name));
    assert!(corpora.iter().all(|corpus| corpus.len() <= MAX_FILES));
    let bytes: usize = corpora.iter().flatten().map(Vec::len).sum();
    assert!(bytes <= MAX_BYTES, "the corpus has {bytes} bytes");
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in targets {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")));
        let program = fs::read_to_string(folder("targets").join(format!("{name}.rs"))).unwrap();
        assert!(program.contains(&format!("kontrol_master::fuzz::{name}(data)")));
    }
}

#[test]
fn nothing_breaks_a_parser_that_once_did_or_is_like_what_did() {
    thread::scope(|scope| {
        for (name, body) in TARGETS {
            scope.spawn(move || {
                let corpus = corpus(name);
                corpus.iter().for_each(|input| run(name, body, input));
                // Each run has the same: what fails here fails everywhere.
                let mut dice = StdRng::seed_from_u64(7);
                for _ in 0..MUTATIONS {
                    run(name, body, &mutated(&corpus, &mut dice));
                }
            });
        }
    });
}

/// One of the inputs, changed in a few places.
fn mutated(corpus: &[Vec<u8>], dice: &mut StdRng) -> Vec<u8> {
    let some = |dice: &mut StdRng| corpus[dice.random_range(0..corpus.len())].clone();
    let mut input = some(dice);
    for _ in 0..dice.random_range(1..4) {
        let at = dice.random_range(0..=input.len());
        let end = (at + dice.random_range(0..16)).min(input.len());
        match dice.random_range(0..6) {
            0 if at < end => input[at] ^= 1 << dice.random_range(0..8),
            1 => drop(input.drain(at..end)),
            2 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            3 => {
                let other = some(dice);
                let from = dice.random_range(0..=other.len());
                input.splice(at..end, other[from..].iter().copied());
            }
            4 => drop(input.splice(at..at, [dice.next_u32() as u8])),
            _ => {
                let word = WORDS[dice.random_range(0..WORDS.len())];
                input.splice(at..end, word.iter().copied());
            }
        }
    }
    input
}
