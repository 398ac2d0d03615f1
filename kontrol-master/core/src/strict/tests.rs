use super::*;
use proptest::prelude::*;

fn exact(text: &[u8]) -> Result<String, Fault> {
    super::exact(text, Numbers::Any)
}

fn refusal(text: &str) -> String {
    value(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn what_a_double_would_change_is_refused_by_its_path() {
    for (text, path) in [
        ("9007199254740993", ""),
        ("-9007199254740993", ""),
        (r#"{"a":[0,{"b":1234567890123456789}]}"#, "a[1].b: "),
        ("[18446744073709551615]", "[0]: "),
        ("[9007199254740993.0]", "[0]: "),
        ("[9007199254740992.5]", "[0]: "),
        ("[123456789012345678901234567890]", "[0]: "),
        // A double holds it, but would be written as 1152921504606847000.
        ("[1152921504606846976]", "[0]: "),
        ("[1e-400]", "[0]: "),
    ] {
        let reason = refusal(text);
        let expected = format!("{path}the number ");
        assert!(
            reason.starts_with(&expected) && reason.contains("does not fit a double"),
            "{text}: {reason}"
        );
    }
    for text in [
        "9007199254740992",
        "-9007199254740992",
        "9007199254740994",
        "1e300",
        "1E+23",
        "100000000000000000000000",
        "0.1",
        "3.141592653589793238462643",
        "-0.0",
        "0e999999999999999999999",
        "1152921504606847000",
    ] {
        assert!(value(text.as_bytes()).is_ok(), "{text}");
    }
}

#[test]
fn text_that_is_kept_keeps_every_digit() {
    for text in [
        "9007199254740993",
        "0.1234567890123456789",
        "1.0",
        "-0.0",
        "1E5",
        "null",
        "\"\\u00e9é\"",
        r#"{"b":[],"a":{}}"#,
    ] {
        assert_eq!(exact(text.as_bytes()).unwrap(), text);
        let spaced = format!(" \r\n\t{}\n", indented(text));
        assert_eq!(exact(spaced.as_bytes()).unwrap(), text);
    }
    assert_eq!(
        indented(r#"{"a":[1,"b: {"],"c":{}}"#),
        "{\n  \"a\": [\n    1,\n    \"b: {\"\n  ],\n  \"c\": {}\n}"
    );
}

#[test]
fn a_name_that_comes_twice_is_refused_at_any_depth_however_it_is_written() {
    for (text, path) in [
        (r#"{"a":1,"a":1}"#, "a"),
        (r#"{"a":1,"\u0061":2}"#, "a"),
        (r#"[{"x":[{},{"b":{"c":1,"d":2,"c":3}}]}]"#, "[0].x[1].b.c"),
        (r#"{"":1,"":2}"#, ""),
    ] {
        let fault = exact(text.as_bytes()).unwrap_err();
        assert_eq!(
            (fault.path.as_str(), fault.reason.as_str()),
            (path, "is given twice")
        );
        assert!(!fault.malformed);
    }
    assert!(value(br#"[{"a":{"a":1}},{"a":1}]"#).is_ok());
}

#[test]
fn nesting_is_bounded_before_anything_else() {
    let nested = |levels: usize| format!("{{\"a\":{}", "[".repeat(levels - 1));
    assert!(refusal(&nested(MAX_DEPTH)).contains("EOF"));
    let reason = refusal(&nested(100_000));
    let expected = format!("a{}: nests too deeply", "[0]".repeat(MAX_DEPTH - 1));
    assert!(reason.starts_with(&expected), "{reason}");
}

#[test]
fn whatever_is_no_json_is_told_with_its_place() {
    for (text, line, column) in [
        ("", 1, 0),
        ("{", 1, 1),
        ("[1,\n 2", 2, 2),
        ("{\"a\":\n}", 2, 1),
        ("{} x", 1, 4),
        ("[1 2]", 1, 4),
        ("[1,]", 1, 4),
        ("[,1]", 1, 2),
        ("{,}", 1, 2),
        ("{\"a\" 1}", 1, 6),
        ("{\"a\":1,}", 1, 8),
        ("{a:1}", 1, 2),
        ("nul", 1, 3),
        ("NaN", 1, 1),
        ("[\n01]", 2, 1),
        ("[+1]", 1, 2),
        ("[1.]", 1, 2),
        ("[1e400]", 1, 2),
        ("[\"\\ud800\"]", 1, 2),
        ("\"\u{1}\"", 1, 1),
        ("\"a", 1, 1),
        ("\"a\\\"", 1, 1),
        ("\"", 1, 1),
    ] {
        let fault = exact(text.as_bytes()).unwrap_err();
        let place = format!(" at line {line} column {column}");
        assert!(
            fault.malformed && fault.reason.ends_with(&place),
            "{text:?}: {fault}"
        );
    }
    assert!(exact(b"\xff").unwrap_err().malformed);
}

#[test]
fn whole_numbers_are_told_however_they_are_written() {
    for (token, number) in [
        ("0", Some(0)),
        ("-0.0", Some(0)),
        ("1e3", Some(1000)),
        ("1.50e1", Some(15)),
        ("1000.0", Some(1000)),
        ("18446744073709551616", Some(1 << 64)),
        ("-9223372036854775808.00", Some(i128::from(i64::MIN))),
        ("1.5", None),
        ("15e-1", None),
        ("1e39", None),
        ("1e99999999999999999999", None),
        ("1e-99999999999999999999", None),
    ] {
        assert_eq!(integer(token), number, "{token}");
    }
}

proptest! {
    /// The reader takes what serde_json takes, and gives back its very value.
    #[test]
    fn it_agrees_with_serde_json(text in r#"[\[\]{}",:0-9a-c.eE \\n-]{0,24}"#) {
        let theirs = serde_json::from_str::<Value>(&text);
        match exact(text.as_bytes()) {
            Ok(kept) => prop_assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), theirs.unwrap()),
            Err(fault) if fault.malformed => prop_assert!(theirs.is_err(), "{fault}"),
            Err(fault) => prop_assert_eq!(fault.reason, "is given twice"),
        }
    }

    #[test]
    fn every_integer_comes_back_or_is_refused(number in any::<i128>(), bits in 0_u32..127) {
        let number = number >> bits;
        let text = number.to_string();
        if let Ok(value) = value(text.as_bytes()) {
            // Doubles with fewer digits stand for their neighbours as well: what is written of one is what counts.
            let double = value.as_f64().unwrap();
            prop_assert_eq!(double.to_string(), text);
        } else {
            prop_assert!(number.unsigned_abs() > 1 << 53);
        }
    }

    #[test]
    fn every_double_comes_back(number in any::<f64>()) {
        prop_assume!(number.is_finite());
        prop_assert!(comes_back(&serde_json::to_string(&number).unwrap()));
    }
}

#[test]
fn a_path_shows_where_it_begins_and_ends_somewhere() {
    let name = r"\u0001".repeat(100);
    let text = format!(
        "{}1,\"a\":2,\"a\":3{}",
        format!("{{\"{name}\":").repeat(29),
        "}".repeat(29)
    );
    let fault = value(text.as_bytes()).unwrap_err();
    assert_eq!(fault.reason, "is given twice");
    assert!(
        fault.path.starts_with("\\u{1}") && fault.path.ends_with('…'),
        "{fault}"
    );
    assert!(fault.path.len() < 1024, "{} bytes", fault.path.len());
}
