//! What people read beside the code: it names what is there, and users are not given more than they read.

use super::{root, sources};
use std::fs;

/// What people read.
const GUIDES: [&str; 13] = [
    "README.md",
    "deploy/README.md",
    "deploy/operating.md",
    "deploy/examples/alerting/README.md",
    "deploy/examples/configuration/README.md",
    "deploy/examples/healing/README.md",
    "proto/README.md",
    "deploy/coming-from-python.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "tests/clients/README.md",
];

/// Whoever is sent to a file must find it.
#[test]
fn the_guides_name_files_that_are_there() {
    let sources = sources();
    for guide in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(guide)).unwrap();
        let named = text.split('`').skip(1).step_by(2);
        let files: Vec<&str> = named.filter(|name| name.ends_with(".rs")).collect();
        assert!(files.len() > 5, "{guide} names files");
        for file in files {
            let is_there = sources.iter().any(|(name, _)| {
                let rest = name.strip_suffix(file);
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
            });
            assert!(is_there, "{guide} names {file}");
        }
    }
}

/// What a heading is called in a link: small letters and digits, `-` for each space, nothing else.
fn anchor(heading: &str) -> String {
    let letters = heading.trim_start_matches('#').trim().chars();
    letters
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| {
            if c == ' ' {
                '-'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect()
}

#[test]
fn links_of_the_guides_lead_somewhere() {
    for guide in GUIDES {
        let path = root().join(guide);
        let text = fs::read_to_string(&path).unwrap();
        let links = text.split("](").skip(1);
        let targets = links.filter_map(|rest| rest.split(')').next());
        for link in targets.filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = match file {
                "" => path.clone(),
                file => path.with_file_name("").join(file),
            };
            let text = fs::read_to_string(file).unwrap_or_else(|_| panic!("{guide}: {link}"));
            let mut headings = text.lines().filter(|line| line.starts_with('#'));
            assert!(
                heading.is_empty() || headings.any(|line| anchor(line) == heading),
                "{guide}: {link}"
            );
        }
    }
}

/// Users read the README to its end; what operators look up is in the guide of theirs. What both tell is the same.
#[test]
fn the_readme_is_short_and_its_settings_are_those_of_the_operators() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (readme, guide) = (read("README.md"), read("deploy/README.md"));
    let lines = readme.lines().count();
    assert!(lines < 250, "README.md has {lines} lines");
    let rows = readme.lines().filter(|line| line.starts_with("| `--"));
    let mut count = 0;
    for row in rows {
        let mut cells = row.split(" | ");
        let (flag, default) = (cells.next().unwrap(), cells.next().unwrap());
        let is_told = guide.lines().any(|line| {
            line.strip_prefix(flag).is_some_and(|rest| {
                rest.starts_with(',') && rest.split(" | ").nth(1) == Some(default)
            })
        });
        assert!(is_told, "deploy/README.md does not say so: {row}");
        count += 1;
    }
    assert!(count > 5, "README.md tells of settings");
}

/// `.ci/run` runs the lines of these recipes itself where there is no just.
#[test]
fn what_ci_runs_are_plain_lines_and_the_guides_name_recipes_that_are_there() {
    let text = fs::read_to_string(root().join("justfile")).unwrap();
    let ci = text.lines().find_map(|line| line.strip_prefix("ci: "));
    for recipe in ci.unwrap().split(' ') {
        let (_, rest) = text.split_once(&format!("\n{recipe}:\n")).unwrap();
        let lines: Vec<&str> = rest.lines().take_while(|line| !line.is_empty()).collect();
        let plain = |line: &&str| {
            let line = line.strip_prefix("    ");
            line.is_some_and(|line| !line.starts_with(['@', '-', '#']) && !line.contains("{{"))
        };
        assert!(!lines.is_empty() && lines.iter().all(plain), "{recipe}");
    }
    for guide in GUIDES {
        let guide = fs::read_to_string(root().join(guide)).unwrap();
        for named in guide.split("`just ").skip(1) {
            let name = named.split([' ', '`', '\n']).next().unwrap();
            let heads = [format!("\n{name}:"), format!("\n{name} ")];
            assert!(heads.iter().any(|head| text.contains(head)), "just {name}");
        }
    }
}
