//! What must hold of a policy file, whatever is in it, and of whatever a command is.

use super::rules::Rules;
use kontrol_core::fuzz::said;
use std::collections::HashMap;

/// The file, then the words of a command, then `NAME=value` variables behind an empty word; all ended by a NUL. What one
/// rule allows is all that is allowed.
pub fn policy(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let rules = match Rules::parse(file) {
        Ok(rules) => rules,
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            return mistakes.iter().for_each(said);
        }
    };
    let words = parts.by_ref().take_while(|word| !word.is_empty());
    let argv: Vec<String> = words.map(str::to_owned).collect();
    let pairs = parts.filter_map(|pair| pair.split_once('='));
    let variables: HashMap<String, String> = pairs.map(|(n, v)| (n.into(), v.into())).collect();
    judge(file, &rules, &argv, &variables);
    // Commands that a rule speaks of are hard to come upon: each line is asked for itself.
    for line in file.lines() {
        let words = shlex::split(line).unwrap_or_default();
        judge(file, &rules, &words, &HashMap::new());
    }
}

fn judge(file: &str, rules: &Rules, argv: &[String], variables: &HashMap<String, String>) {
    let allowed = rules.allow(argv, variables);
    let by_line = file.lines().any(|line| {
        let alone = Rules::parse(line).expect("a line of a file that is read");
        alone.allow(argv, variables)
    });
    assert_eq!(allowed, by_line, "{argv:?} {variables:?}");
    if !allowed {
        return;
    }
    assert!(
        rules.allow(argv, &HashMap::new()),
        "more is allowed with variables than without"
    );
    let program = argv.first().expect("no rule allows nothing");
    assert!(!program.split('/').any(|part| part == ".."), "{program:?}");
    let stranger = HashMap::from([("A_NAME_THAT_NO_RULE_HAS".to_owned(), String::new())]);
    assert!(
        file.contains("A_NAME_THAT_NO_RULE_HAS") || !rules.allow(argv, &stranger),
        "a variable that no rule names"
    );
    // No pattern crosses a slash.
    let slashes = |text: &str| text.matches('/').count();
    let deepest = file.lines().map(slashes).max();
    assert!(deepest >= Some(slashes(program)), "{program:?}");
}
