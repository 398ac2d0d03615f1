use super::super::control::Lease;
use super::*;

#[test]
fn lines_are_put_together_from_pieces() {
    let mut control = Control::default();
    assert_eq!(control.take(b"until nev"), []);
    assert_eq!(
        control.take(b"er\nuntil 5 7\nst"),
        [
            Told::Order(Order::Until(Lease::Forever)),
            Told::Order(Order::Until(Lease::Until { soft: 5, hard: 7 })),
        ]
    );
    assert_eq!(control.take(b"op\n"), [Told::Order(Order::Stop)]);
    assert_eq!(control.take(b""), [Told::Gone]);
    assert!(control.closed);
}

#[test]
fn what_is_not_understood_means_stop() {
    let mut control = Control::default();
    assert_eq!(control.take(b"until soon\n"), [Told::Order(Order::Stop)]);
    assert_eq!(control.take(b"\xff\n"), [Told::Order(Order::Stop)]);
    let endless = vec![b'x'; MAX_LINE_BYTES + 1];
    assert_eq!(control.take(&endless), [Told::Order(Order::Stop)]);
    assert_eq!(control.buffer.len(), 0);
}

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
