//! What is handed out: made twice in different folders it is the same to the byte, and it is what it says. The programs are
//! those of this test; that they are built alike in other folders is what `deploy/release --twice` shows.

mod sources;

use crate::containers::{Engine, Scene, engine, missing, run};
use kontrol_tests::{heavy, house::project, skip};
use serde_json::{Value, json};
use sources::{Sources, ended, succeeds};
use std::{
    collections::BTreeMap, env, fs, os::unix::fs::PermissionsExt, path::Path, process::Command,
};
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Its files by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// As Debian and Go have it.
fn arch() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_the_same_each_time_and_what_it_says() {
    let tools = [
        "git",
        "buildah",
        "cargo-deb",
        "dpkg-shlibdeps",
        "cargo-cyclonedx",
        "jq",
    ];
    if let Err(why) = missing(&tools) {
        return skip(&why);
    }
    let Some(engine) = engine().await else { return };
    let Some(sources) = Sources::copied() else {
        return;
    };
    let _permit = heavy().await;

    let dir = tempfile::tempdir().unwrap();
    let make = async |name: &str| {
        let (folder, scratch) = (dir.path().join(name), dir.path().join(format!("in-{name}")));
        fs::create_dir(&scratch).unwrap();
        let made = sources.release(&folder, &[]);
        let mut command = engine.command(made.get_program());
        command
            .args(["--engine", "buildah", "--base"])
            .arg(engine.base())
            .args(made.get_args())
            .env("TMPDIR", &scratch)
            .env_remove("CARGO_TARGET_DIR");
        let ran = run(command).await;
        assert!(ran.ok(), "{ran:?}");
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "it cleans up");
        folder
    };
    let (one, two) = tokio::join!(make("one"), make("two"));
    let (ours, others) = (files(&one), files(&two));
    let arch = arch();
    let mut names = vec![
        "RELEASE.txt".to_owned(),
        "SHA256SUMS".into(),
        format!("kontrol-{VERSION}-linux-{arch}.tar.gz"),
        format!("kontrol-{VERSION}.tgz"),
        format!("kontrol-kubernetes-{VERSION}.tar.gz"),
        format!("kontrol-proto-{VERSION}.tar.gz"),
    ];
    for name in ["kontrol-master", "kontrol-slave"] {
        names.push(format!("{name}-{VERSION}-image-{arch}.cdx.json"));
        names.push(format!("{name}-{VERSION}-image-{arch}.tar"));
        names.push(format!("{name}-{VERSION}-linux-{arch}.cdx.json"));
        names.push(format!("{name}_{VERSION}-1_{arch}.deb"));
    }
    names.sort();
    assert_eq!(ours.keys().cloned().collect::<Vec<_>>(), names);
    for name in names {
        assert!(ours[&name] == others[&name], "{name} differs");
    }

    let mut check = Command::new("sha256sum");
    let checked = succeeds(check.args(["--check", "SHA256SUMS"]).current_dir(&one));
    assert_eq!(checked.lines().count(), ours.len() - 1, "{checked}");
    tells_what_it_is(&sources, &one);
    holds_programs(&one);
    holds_packages(&one);
    names_what_is_linked(&one);
    holds_images(engine, &one).await;
}

/// The notes name the commit, and what was not built of it.
fn tells_what_it_is(sources: &Sources, folder: &Path) {
    let notes = fs::read_to_string(folder.join("RELEASE.txt")).unwrap();
    let commit = sources.git(&["rev-parse", "HEAD"]);
    for words in [
        &format!(
            "Kontrol {VERSION} for linux-{}\ncommit {commit}of 2026-01-02T03:04:05Z\n",
            arch()
        ),
        "nothing says that they are of this commit",
        "rustc 1.",
        "cargo-cyclonedx 0.",
        "### Added",
    ] {
        assert!(notes.contains(words), "{words:?} is not in {notes}");
    }
    assert!(!notes.contains("LEFT OUT"), "{notes}");
}

/// An archive, and what a folder of it is called.
fn unpacked(folder: &Path, name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--file"]).arg(folder.join(name));
    succeeds(tar.current_dir(dir.path()));
    dir
}

fn holds_programs(folder: &Path) {
    let name = format!("kontrol-{VERSION}-linux-{}", arch());
    let dir = unpacked(folder, &format!("{name}.tar.gz"));
    for program in ["kontrol-master", "kontrol-slave"] {
        let mut command = Command::new(dir.path().join(&name).join(program));
        let said = succeeds(command.arg("--version"));
        assert_eq!(said, format!("{program} {VERSION}\n"));
    }
    for file in [
        "LICENSE",
        "README.md",
        "deploy/README.md",
        "deploy/systemd/kontrol-master.service",
    ] {
        assert!(dir.path().join(&name).join(file).is_file(), "{file}");
    }
    // What Helm takes for a chart, and kubectl for a folder of kustomize.
    let chart = unpacked(folder, &format!("kontrol-{VERSION}.tgz"));
    let chart = fs::read_to_string(chart.path().join("kontrol/Chart.yaml")).unwrap();
    assert!(
        chart.contains(&format!("\nversion: {VERSION}\n")),
        "{chart}"
    );
    let name = format!("kontrol-kubernetes-{VERSION}");
    let manifests = unpacked(folder, &format!("{name}.tar.gz"));
    let overlay = manifests
        .path()
        .join(name)
        .join("overlays/etcd/kustomization.yaml");
    assert!(overlay.is_file());
}

fn holds_packages(folder: &Path) {
    for name in ["kontrol-master", "kontrol-slave"] {
        let file = folder.join(format!("{name}_{VERSION}-1_{}.deb", arch()));
        let field = |name: &str| {
            let mut command = Command::new("dpkg-deb");
            succeeds(command.arg("--field").arg(&file).arg(name))
                .trim()
                .to_owned()
        };
        assert_eq!(field("Package"), name);
        assert_eq!(field("Version"), format!("{VERSION}-1"));
        let on = field("Depends");
        // A slave that is linked statically asks for no C library.
        let libc = name == "kontrol-slave" || on.contains("libc6");
        assert!(libc && on.contains("systemd"), "{on}");
        let listed = succeeds(Command::new("dpkg-deb").arg("--contents").arg(&file));
        for path in [
            format!("./usr/bin/{name}"),
            format!("./usr/lib/systemd/system/{name}.service"),
            format!("./usr/share/doc/{name}/README.md"),
        ] {
            let line = listed.lines().find(|line| line.ends_with(&path));
            let line = line.unwrap_or_else(|| panic!("{path} is not in {listed}"));
            assert!(line.contains("2026-01-02"), "{line}");
        }
    }
}

/// The inventories hold what is linked, with what scanners ask for, and nothing that only builds or tests it.
fn names_what_is_linked(folder: &Path) {
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
    };
    // `tempfile` is a part of the master, and one of the slave's tests.
    for (name, also, not) in [
        ("kontrol-master", "tempfile", "tempfile-of-nobody"),
        ("kontrol-slave", "glob", "tempfile"),
    ] {
        let linux = read(&format!("{name}-{VERSION}-linux-{}.cdx.json", arch()));
        assert_eq!(linux["bomFormat"], "CycloneDX");
        assert_eq!(linux["metadata"]["component"]["name"], name);
        let parts = linux["components"].as_array().unwrap();
        let find = |name: &str| parts.iter().find(|part| part["name"] == name);
        for name in ["kontrol-core", "kontrol-runtime", "tokio", "tonic", also] {
            let part = find(name).unwrap_or_else(|| panic!("{name} is not in there"));
            let purl = part["purl"].as_str().unwrap();
            assert!(purl.starts_with(&format!("pkg:cargo/{name}@")), "{purl}");
            assert!(part["licenses"][0]["expression"].is_string(), "{part}");
        }
        for name in [
            "proptest",
            "rcgen",
            "syn",
            "serde_derive",
            "prost-build",
            not,
        ] {
            assert!(find(name).is_none(), "{name} is in there");
        }
        let digest = find("tokio").unwrap()["hashes"][0]["content"].as_str();
        let lock = fs::read_to_string(project().join("Cargo.lock")).unwrap();
        assert!(lock.contains(digest.unwrap()));
        // Whoever is named is there.
        let refs: Vec<_> = parts.iter().map(|part| &part["bom-ref"]).collect();
        for edges in linux["dependencies"].as_array().unwrap() {
            let on = edges["dependsOn"].as_array();
            assert!(
                on.into_iter().flatten().all(|on| refs.contains(&on)),
                "{edges}"
            );
        }

        let image = read(&format!("{name}-{VERSION}-image-{}.cdx.json", arch()));
        assert_eq!(image["metadata"]["component"]["type"], "container");
        let all = image["components"].as_array().unwrap();
        assert!(all.len() > parts.len() + 10 && all.contains(find("tokio").unwrap()));
        let libc = all.iter().find(|part| part["name"] == "libc6").unwrap();
        let purl = libc["purl"].as_str().unwrap();
        assert!(
            purl.starts_with("pkg:deb/debian/libc6@2.") && purl.ends_with("&upstream=glibc"),
            "{purl}"
        );
    }
}

/// They are loaded, and say what they are.
async fn holds_images(engine: &'static Engine, folder: &Path) {
    let scene = Scene::start(engine).await;
    for name in ["kontrol-master", "kontrol-slave"] {
        let file = folder.join(format!("{name}-{VERSION}-image-{}.tar", arch()));
        let loaded = engine
            .does(&["load", "--quiet", "--input", file.to_str().unwrap()])
            .await;
        let image = format!("localhost/{name}:{VERSION}");
        assert!(loaded.contains(&image), "{loaded}");
        scene.idle(name, &image).await;
        let said = scene.succeeds(name, &[name, "--version"]).await;
        assert_eq!(said, format!("{name} {VERSION}\n"));
        let inspected = engine.does(&["image", "inspect", &image]).await;
        let [image] = &serde_json::from_str::<Vec<Value>>(&inspected).unwrap()[..] else {
            panic!("{inspected}");
        };
        assert!(
            image["Created"]
                .as_str()
                .unwrap()
                .starts_with("2026-01-02T03:04:05"),
            "{image}"
        );
        assert_eq!(image["Config"]["User"], "10001:10001", "{image}");
        if name == "kontrol-master" {
            let health = json!(["CMD", "kontrol-master", "health"]);
            assert_eq!(image["Healthcheck"]["Test"], health, "{image}");
        }
    }
}

#[test]
fn two_builds_are_compared_and_what_differs_is_named() {
    let Some(sources) = Sources::copied() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("out");
    let twice = ["--twice", "--without", "images,packages,sbom"];
    let ran = ended(sources.release(&folder, &twice), None);
    assert!(
        ran.ok() && ran.stdout.contains("made twice: 5 files"),
        "{ran:?}"
    );
    let notes = fs::read_to_string(folder.join("RELEASE.txt")).unwrap();
    assert!(
        notes.contains("\nLEFT OUT: images packages sbom\n"),
        "{notes}"
    );

    // A tool that leaves something else each time.
    let tools = dir.path().join("tools");
    fs::create_dir(&tools).unwrap();
    let strip = "#!/bin/sh\nfor file; do date +%N >>\"$file\"; done\n";
    fs::write(tools.join("strip"), strip).unwrap();
    fs::set_permissions(tools.join("strip"), fs::Permissions::from_mode(0o755)).unwrap();
    let folder = dir.path().join("other");
    let ran = ended(sources.release(&folder, &twice), Some(tools));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let archive = format!("differs: kontrol-{VERSION}-linux-{}.tar.gz\n", arch());
    assert!(
        ran.stderr.contains(&archive) && ran.stderr.contains("1 of 5 files differ"),
        "{ran:?}"
    );
    let kept = dir.path().join("other.second");
    assert_eq!(files(&kept).len(), files(&folder).len());
}

#[test]
fn what_can_not_be_released_is_told_before_anything_is_made() {
    let Some(sources) = Sources::copied() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("out");
    let less = ["--without", "images,packages,sbom"];
    let fails = |args: &[&str], code: i32, words: &[&str]| {
        let ran = ended(sources.release(&folder, args), None);
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        for words in words {
            assert!(ran.stderr.contains(words), "{args:?}: {ran:?}");
        }
        assert!(!folder.exists(), "{args:?}");
    };
    for (args, words) in [
        (
            &["--without", "programs"][..],
            "--without knows images, packages and sbom, not programs",
        ),
        (
            &["--nothing"],
            "--nothing is unknown; see deploy/release --help",
        ),
        (&["--engine", "docker"], "--engine knows buildah and podman"),
        (&["elsewhere"], "there is one FOLDER"),
        (&["--base", ""], "--base takes a value"),
    ] {
        fails(args, 2, &[words]);
    }
    fails(
        &[&less[..], &["--binaries", "/"]].concat(),
        1,
        &["there is no program //kontrol-master"],
    );

    // What it takes is told all at once, with how to get it.
    let mut command = sources.release(&folder, &["--engine", "podman"]);
    let bare = dir.path().join("bin");
    fs::create_dir(&bare).unwrap();
    for name in ["bash", "dirname", "realpath", "git"] {
        let path = env::var_os("PATH").unwrap();
        let found = env::split_paths(&path).map(|dir| dir.join(name));
        let found = found.into_iter().find(|path| path.is_file()).unwrap();
        std::os::unix::fs::symlink(found, bare.join(name)).unwrap();
    }
    command.env("PATH", &bare);
    let ran = ended(command, None);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for words in [
        "there is no cargo: see https://rustup.rs",
        "there is no cargo-deb: cargo install cargo-deb",
        "there is no cargo-cyclonedx: cargo install cargo-cyclonedx",
        "there is no jq: apt-get install jq",
        "neither buildah nor podman works here: apt-get install buildah",
        "there is no mmdebstrap: apt-get install mmdebstrap, or give --base",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
    assert!(!ran.stderr.contains("there is no git"), "{ran:?}");

    // A commit is released, and what is not in it can't be.
    fs::write(sources.path().join("kontrol-master/src/new.rs"), "").unwrap();
    fails(
        &less,
        1,
        &[
            "git stash --include-untracked",
            "?? kontrol-master/src/new.rs",
        ],
    );
    fs::remove_file(sources.path().join("kontrol-master/src/new.rs")).unwrap();

    let changelog = sources.path().join("CHANGELOG.md");
    let text = fs::read_to_string(&changelog).unwrap();
    fs::write(
        &changelog,
        text.replace(&format!("\n## {VERSION} "), "\n## "),
    )
    .unwrap();
    sources.commit();
    fails(
        &less,
        1,
        &[&format!("CHANGELOG.md has no section of {VERSION}")],
    );

    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("kept"), "").unwrap();
    let ran = ended(sources.release(&folder, &less), None);
    assert!(
        ran.code == Some(1) && ran.stderr.contains("give a new folder"),
        "{ran:?}"
    );
    assert_eq!(files(&folder).len(), 1);
}
