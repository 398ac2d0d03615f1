//! The protobuf files: what buf thinks of them, what was released of them stays, and strangers can generate from what is
//! published of them.

use super::root;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// The descriptors of the last tagged release, without comments: `buf build --exclude-source-info -o released.binpb`.
const RELEASED: &str = "released.binpb";

/// buf is in the PyPI package `buf-bin`; `tests/run` fetches it where it can.
fn buf(folder: &Path, arguments: &[&str]) -> Option<Output> {
    let ran = Command::new("buf")
        .args(arguments)
        .current_dir(folder)
        .output();
    if ran.is_err() {
        kontrol_tests::skip("there is no buf");
    }
    ran.ok()
}

fn said(ran: &Output) -> String {
    String::from_utf8_lossy(&[&ran.stdout[..], &ran.stderr].concat()).into_owned()
}

#[test]
fn buf_lints_and_builds_the_protobuf_files() {
    for arguments in [&["lint"][..], &["build", "-o", "/dev/null"]] {
        let Some(ran) = buf(&root().join("proto"), arguments) else {
            return;
        };
        assert!(ran.status.success(), "buf {arguments:?}: {}", said(&ran));
    }
}

#[test]
fn nothing_that_was_released_is_gone() {
    let against = |folder: &Path| buf(folder, &["breaking", "--against", RELEASED]);
    let folder = root().join("proto");
    let Some(ran) = against(&folder) else {
        return;
    };
    assert!(ran.status.success(), "{}", said(&ran));

    // It would be told.
    let other = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(folder)
        .arg(other.path())
        .status();
    assert!(copied.unwrap().success());
    let folder = other.path().join("proto");
    let file = folder.join("kontrol/v1/keepalive.proto");
    let text = fs::read_to_string(&file).unwrap();
    let without = text.replace("  uint64 beat = 9;", "  reserved 9;");
    assert_ne!(text, without);
    fs::write(&file, without).unwrap();
    let ran = against(&folder).unwrap();
    assert!(
        !ran.status.success() && said(&ran).contains("\"beat\""),
        "{}",
        said(&ran)
    );
}

/// As somebody does who has no more than that.
#[test]
fn a_client_is_generated_from_what_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &Path, arguments: &[&str], folder: &Path| {
        let ran = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{program:?} {arguments:?}: {}",
            said(&ran)
        );
        ran.stdout
    };
    let export = root().join("deploy/export-proto");
    let [one, two] = ["one.tar.gz", "two.tar.gz"].map(|name| dir.path().join(name));
    for file in [&one, &two] {
        run(&export, &[file.to_str().unwrap()], dir.path());
    }
    assert!(
        fs::read(&one).unwrap() == fs::read(&two).unwrap(),
        "the bytes differ"
    );
    run(Path::new("tar"), &["xzf", "one.tar.gz"], dir.path());
    let folder = dir
        .path()
        .join(concat!("kontrol-proto-", env!("CARGO_PKG_VERSION")));
    assert!(folder.join("LICENSE").is_file() && folder.join("README.md").is_file());
    assert!(!folder.join("kontrol/internal").exists());
    let protoc = std::env::var_os("PROTOC").unwrap_or("protoc".into());
    for out in [
        "--python_out",
        "--java_out",
        "--csharp_out",
        "--php_out",
        "--ruby_out",
        "--objc_out",
    ] {
        let made = dir.path().join(&out[2..]);
        fs::create_dir(&made).unwrap();
        let out = format!("{out}={}", made.display());
        let services = ["action", "ensemble", "keepalive", "operate"];
        let files = services.map(|name| format!("kontrol/v1/{name}.proto"));
        let mut arguments = vec!["-I", ".", &out];
        arguments.extend(files.iter().map(String::as_str));
        run(Path::new(&protoc), &arguments, &folder);
        assert!(fs::read_dir(&made).unwrap().count() > 0, "{out}");
    }
    for arguments in [&["lint"][..], &["build", "-o", "/dev/null"]] {
        let Some(ran) = buf(&folder, arguments) else {
            return;
        };
        assert!(ran.status.success(), "buf {arguments:?}: {}", said(&ran));
    }
}
