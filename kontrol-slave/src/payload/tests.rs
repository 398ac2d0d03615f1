//! The payload file on a real folder, and the conversion both ways.

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::{fs, path::Path};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// A payload task at work.
struct Followed {
    value: watch::Receiver<Value>,
    token: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Followed {
    async fn start(path: &Path) -> Self {
        let (value, task) = open(path.to_owned()).await;
        let token = CancellationToken::new();
        let task = tokio::spawn(task.run(token.clone()));
        Self { value, token, task }
    }

    async fn becomes(&mut self, wanted: &Value) {
        let found = timeout(SOON, self.value.wait_for(|value| value == wanted)).await;
        assert!(found.is_ok(), "{wanted} never came");
    }

    async fn stop(self) {
        self.token.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_comes_later_is_found_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    let mut followed = Followed::start(&path).await;
    assert_eq!(*followed.value.borrow(), json!(""));
    fs::write(&path, "{\"load\": 1}").unwrap();
    followed.becomes(&json!({"load": 1})).await;
    fs::write(&path, "[2]").unwrap();
    followed.becomes(&json!([2])).await;
    followed.stop().await;
}

#[tokio::test]
async fn an_atomic_rename_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    fs::write(&path, "1").unwrap();
    let mut followed = Followed::start(&path).await;
    assert_eq!(*followed.value.borrow(), json!(1));
    let other = folder.path().join("next");
    fs::write(&other, "2").unwrap();
    fs::rename(&other, &path).unwrap();
    followed.becomes(&json!(2)).await;
    followed.stop().await;
}

#[tokio::test]
async fn a_swap_of_the_data_link_is_seen() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (version, text) in [("v1", "1"), ("v2", "2")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("payload.json"), text).unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/payload.json", at("payload.json")).unwrap();
    let mut followed = Followed::start(&at("payload.json")).await;
    assert_eq!(*followed.value.borrow(), json!(1));
    symlink("v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    followed.becomes(&json!(2)).await;
    followed.stop().await;
}

#[tokio::test]
async fn what_else_happens_in_the_folder_only_compares_stamps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    let mut changes = Changes::of_file(&path);
    fs::write(folder.path().join("other"), "1").unwrap();
    assert_eq!(timeout(SOON, changes.next()).await, Ok(Hint::Tick));
    fs::write(&path, "1").unwrap();
    let own = async { while changes.next().await != Hint::Event {} };
    assert!(timeout(SOON, own).await.is_ok());
}

#[tokio::test]
async fn a_folder_that_comes_later_is_found_by_the_tick() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("late/payload.json");
    let mut followed = Followed::start(&path).await;
    fs::create_dir(folder.path().join("late")).unwrap();
    fs::write(&path, "true").unwrap();
    followed.becomes(&json!(true)).await;
    followed.stop().await;
}

#[tokio::test]
async fn what_is_broken_keeps_the_last_good_value_and_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    fs::write(&path, "{\"good\": true}").unwrap();
    let (value, mut task) = open(path.clone()).await;
    let deep = format!("{}{}", "[".repeat(31), "]".repeat(31));
    let large = format!("\"{}\"", "x".repeat(MAX_PAYLOAD_BYTES));
    let long = format!("1{}", " ".repeat(MAX_FILE_BYTES));
    // Within the limit as a file, and not as what masters measure.
    let grows = format!("[{}]", ["1e20"; 13_000].join(","));
    assert!(grows.len() < MAX_PAYLOAD_BYTES);
    for (text, said) in [
        ("{\"good\":", "not valid JSON"),
        ("", "not valid JSON"),
        (deep.as_str(), "JSON may nest 30 levels"),
        (
            large.as_str(),
            "65538 bytes of canonical JSON, and a payload may have 65536",
        ),
        (grows.as_str(), "286001 bytes of canonical JSON"),
        (long.as_str(), "larger than 1024 KiB"),
        (
            "[1,{\"a\":9007199254740993}]",
            "[1].a: the number 9007199254740993",
        ),
        ("{\"a\":1,\"a\":2}", "twice"),
        ("36893488147419103233", "does not fit a double"),
    ] {
        fs::write(&path, text).unwrap();
        task.look(Hint::Event).await;
        let reason = task.said.clone().unwrap();
        assert!(reason.contains(said), "{reason}");
        assert_eq!(*value.borrow(), json!({"good": true}));
    }
    fs::remove_file(&path).unwrap();
    task.look(Hint::Event).await;
    assert!(task.said.as_ref().unwrap().contains("does not exist"));
    assert_eq!(*value.borrow(), json!({"good": true}));
    fs::write(&path, "7").unwrap();
    task.look(Hint::Event).await;
    assert_eq!(
        (task.said.as_ref(), value.borrow().clone()),
        (None, json!(7))
    );
}

#[tokio::test]
async fn a_tick_reads_nothing_while_the_stamp_stands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    fs::write(&path, "1").unwrap();
    let (value, mut task) = open(path.clone()).await;
    // Were the file read, this would be published.
    let Content::Read { stamp, .. } = task.content else {
        panic!("the file was read")
    };
    task.sender.send_replace(json!("mark"));
    task.content = Content::Read {
        stamp,
        bytes: Vec::new(),
    };
    task.look(Hint::Tick).await;
    assert_eq!(*value.borrow(), json!("mark"));
    fs::write(&path, "22").unwrap();
    task.look(Hint::Tick).await;
    assert_eq!(*value.borrow(), json!(22));
}

#[tokio::test]
async fn the_same_value_written_anew_is_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    fs::write(&path, "{\"a\":1}").unwrap();
    let (mut value, mut task) = open(path.clone()).await;
    value.mark_unchanged();
    fs::write(&path, "{ \"a\": 1 }").unwrap();
    task.look(Hint::Event).await;
    assert!(!value.has_changed().unwrap());
}

#[test]
fn what_json_cannot_say_is_refused() {
    let number = |number| prost_types::Value {
        kind: Some(Kind::NumberValue(number)),
    };
    assert_eq!(from_proto(number(f64::NAN)), Err(NotJson::Number));
    assert_eq!(from_proto(number(f64::INFINITY)), Err(NotJson::Number));
    assert_eq!(
        from_proto(prost_types::Value { kind: None }),
        Err(NotJson::Empty)
    );
}

#[test]
fn whole_numbers_stay_integers_while_a_double_counts_in_ones() {
    assert_eq!(
        from_proto(to_proto(&json!(1_i64 << 53))),
        Ok(json!(1_i64 << 53))
    );
    assert_eq!(from_proto(to_proto(&json!(1.0))), Ok(json!(1)));
    let large = from_proto(to_proto(&json!(u64::MAX))).unwrap();
    assert_eq!(large, json!(18_446_744_073_709_551_615.0));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53)..=1 << 53).prop_map(Value::from),
        any::<f64>()
            .prop_filter("not whole", |n| n.is_finite() && n.fract() != 0.0)
            .prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_passes_through_protobuf_unchanged(value in any_json()) {
        prop_assert_eq!(from_proto(to_proto(&value)), Ok(value));
    }
}

#[tokio::test]
async fn a_pipe_in_place_of_the_file_is_refused_and_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("payload.json");
    fs::write(&path, "1").unwrap();
    let mut followed = Followed::start(&path).await;
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    // At the start as well: nobody ever writes into it.
    let (value, _) = timeout(SOON, open(path.clone())).await.unwrap();
    assert_eq!(*value.borrow(), json!(""));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "2").unwrap();
    followed.becomes(&json!(2)).await;
    followed.stop().await;
}
