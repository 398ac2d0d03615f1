use super::*;

#[test]
fn only_the_files_of_a_run_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (own, other) = (
        directory.path().join("pods.json"),
        directory.path().join("other"),
    );
    fs::write(&own, "[]").unwrap();
    fs::write(&other, "mine").unwrap();
    remove(directory.path());
    assert!(!own.exists() && other.exists());
    fs::remove_file(&other).unwrap();
    remove(directory.path());
    assert!(!directory.path().exists());
}
