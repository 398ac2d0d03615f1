//! Tests of the selectors, against the semantics of Kubernetes.

use super::*;
use proptest::prelude::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
    let selector: Selector = selector.parse().expect("a selector");
    selector.matches(&labels(pairs))
}

fn error(selector: &str) -> String {
    selector
        .parse::<Selector>()
        .expect_err("no selector")
        .to_string()
}

#[test]
fn every_operator_has_the_meaning_of_kubernetes() {
    let web = [("app", "web"), ("tier", "a"), ("empty", "")];
    for selector in [
        "",
        "  ",
        "app=web",
        "app == web",
        " app= web , tier=a",
        "app!=db",
        "absent!=db",
        "tier in (a,b)",
        "tier in(b , a )",
        "tier notin (b,c)",
        "absent notin (b)",
        "app",
        "!absent",
        "! absent",
        "empty=",
        "empty=,app=web",
        "empty in (,x)",
        "absent != ",
        "app in (web),!canary,tier notin (x)",
    ] {
        assert!(matches(selector, &web), "{selector:?} should match");
    }
    for selector in [
        "app=db",
        "app=WEB",
        "absent=web",
        "absent=",
        "app!=web",
        "empty!=",
        "tier in (b,c)",
        "absent in (a)",
        "tier notin (a)",
        "absent",
        "!app",
        "!empty",
        "app=web,tier=b",
    ] {
        assert!(!matches(selector, &web), "{selector:?} should not match");
    }
}

#[test]
fn the_words_in_and_notin_may_be_names_and_values() {
    assert!(matches("in in (notin)", &[("in", "notin")]));
    assert!(matches("notin=in", &[("notin", "in")]));
    assert!(matches("in,notin", &[("in", ""), ("notin", "")]));
}

#[test]
fn names_and_values_may_have_prefixes_dots_and_any_letter() {
    let pairs = [("app.kubernetes.io/name", "my-app_1.2"), ("größe", "5µ")];
    assert!(matches(
        "app.kubernetes.io/name=my-app_1.2,größe in (5µ)",
        &pairs
    ));
}

#[test]
fn errors_name_the_place_and_what_could_be_there() {
    for (selector, message) in [
        (
            ",",
            "at character 1: found \",\", expected a label's name or '!'",
        ),
        (
            "a,",
            "at character 3: found the end, expected a label's name or '!'",
        ),
        ("a,,b", "at character 3"),
        (
            "a b",
            "at character 3: found \"b\", expected '=', '!=', 'in', 'notin', ',' or the end",
        ),
        (
            "a=b c",
            "at character 5: found \"c\", expected ',' or the end",
        ),
        ("a===b", "at character 4: found \"=\", expected a value"),
        ("a=!b", "at character 3"),
        ("a > 1", "at character 3: found \">\""),
        (
            "!",
            "at character 2: found the end, expected a label's name",
        ),
        ("!!a", "at character 2"),
        ("!a=b", "at character 3: found \"=\""),
        ("a in b", "at character 6: found \"b\", expected '('"),
        ("a in ()", "at character 7: found \")\", expected a value"),
        (
            "a in (b",
            "at character 8: found the end, expected ',' or ')'",
        ),
        (
            "größe in (b c)",
            "at character 13: found \"c\", expected ',' or ')'",
        ),
        ("a in (b))", "at character 9"),
        ("=b", "at character 1"),
    ] {
        let error = error(selector);
        assert!(error.starts_with(message), "{selector:?}: {error}");
    }
}

#[test]
fn a_selector_without_bound_is_refused() {
    let longest = "a".repeat(MAX_SELECTOR_BYTES);
    assert!(longest.parse::<Selector>().is_ok());
    assert_eq!(
        format!("{longest}a").parse::<Selector>(),
        Err(SelectorError::TooLong)
    );
}

#[test]
fn an_error_shows_the_start_of_what_it_found() {
    let error = error(&format!("a {}", "\n".repeat(10) + &"b".repeat(10_000)));
    assert!(error.len() < 300, "{error}");
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9./_-]{1,8}", Just("in".into()), Just("notin".into())]
}

fn any_selector() -> impl Strategy<Value = Selector> {
    let values = prop::collection::btree_set(prop_oneof![word(), Just(String::new())], 1..4);
    let test = prop_oneof![
        Just(Test::Exists),
        Just(Test::Absent),
        values.clone().prop_map(Test::In),
        values.prop_map(Test::NotIn),
    ];
    let requirement = (word(), test).prop_map(|(key, test)| Requirement { key, test });
    prop::collection::vec(requirement, 0..4).prop_map(|requirements| Selector { requirements })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(selector in any_selector()) {
        let text = selector.to_string();
        prop_assert_eq!(text.parse::<Selector>(), Ok(selector), "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,40}") {
        let _ = text.parse::<Selector>();
    }

    #[test]
    fn no_text_of_signs_makes_it_panic_and_what_reads_is_stable(text in "[ab,=! ()<>é\u{2003}]{0,16}|(a|in|notin|\\(|\\)|,|=|!| ){0,12}") {
        if let Ok(selector) = text.parse::<Selector>() {
            prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
        }
    }

    #[test]
    fn each_test_and_its_opposite_disagree(key in word(), values in prop::collection::btree_set(word(), 1..4), label in prop::option::of(word())) {
        let labels: BTreeMap<String, String> = label.into_iter().map(|value| (key.clone(), value)).collect();
        let holds = |test| Selector { requirements: vec![Requirement { key: key.clone(), test }] }.matches(&labels);
        prop_assert_ne!(holds(Test::In(values.clone())), holds(Test::NotIn(values)));
        prop_assert_ne!(holds(Test::Exists), holds(Test::Absent));
    }
}
