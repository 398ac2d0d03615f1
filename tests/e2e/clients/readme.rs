//! What `tests/clients/README.md` shows is what runs.

use super::root;
use std::fs;

/// The lines of a text without what indents them.
fn trimmed(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

/// Each part of a block stands in one file of its language as it is, but for how far it is indented. `...` stands between parts.
#[test]
fn the_blocks_of_the_readme_are_parts_of_the_programs() {
    let folder = root().join("tests/clients");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut parts = 0;
    for block in readme.split("\n```").skip(1).step_by(2) {
        let (language, block) = block.split_once('\n').unwrap();
        let ends = match language {
            "python" => "python/*.py",
            "go" => "go/*.go",
            "js" => "node/*.js",
            "sh" => "*/build",
            "text" => continue,
            other => panic!("a block of {other}"),
        };
        let sources = files(&folder, ends);
        let lines = trimmed(block);
        for part in lines.split(|line| ["# ...", "// ..."].contains(line)) {
            let is_there = sources.iter().any(|source| {
                trimmed(source)
                    .windows(part.len())
                    .any(|lines| lines == part)
            });
            assert!(is_there, "not in {ends}: {part:#?}");
            parts += 1;
        }
    }
    assert!(parts > 8, "{parts} parts");
}

/// The texts of the files that a pattern of two parts names, each with one `*` at the most.
fn files(folder: &std::path::Path, pattern: &str) -> Vec<String> {
    let (below, name) = pattern.split_once('/').unwrap();
    let fits = |name: &str, pattern: &str| match pattern.split_once('*') {
        Some((start, end)) => name.starts_with(start) && name.ends_with(end),
        None => name == pattern,
    };
    let named =
        |entry: &fs::DirEntry, pattern: &str| fits(entry.file_name().to_str().unwrap(), pattern);
    let folders = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let folders = folders.filter(|entry| entry.path().is_dir() && named(entry, below));
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap());
    let files = files.map(Result::unwrap).filter(|entry| named(entry, name));
    files
        .map(|entry| fs::read_to_string(entry.path()).unwrap())
        .collect()
}
