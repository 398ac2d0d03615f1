//! What a keepalive says, and what it says instead once masters refuse that: for as long as a pod lives it is heard,
//! whatever it has to say. PURE.
//!
//! A master tells why it refuses, not what it would take. So the two parts (who the pod is, and its payload) fall back
//! one at a time on what was accepted last, or, before anything was, on the least that a pod can say. What is found so goes
//! on being said until there is something new to say, or another master to say it to.

use crate::identity::{Identity, Labels};
use serde_json::Value;
use std::sync::Arc;

/// What a keepalive says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    pub(super) identity: Arc<Identity>,
    pub(super) payload: Arc<Value>,
}

/// What to say now.
#[derive(Debug)]
pub(super) struct Contents {
    /// What was accepted last.
    good: Option<Content>,
    /// What is to be said, and behind it what may be said instead, in this order. Never empty.
    choices: Vec<Content>,
    /// Which of them is said.
    at: usize,
}

impl Contents {
    pub(super) fn new(latest: Content) -> Self {
        Self {
            good: None,
            choices: vec![latest],
            at: 0,
        }
    }

    /// There may be something new to say.
    pub(super) fn offer(&mut self, latest: Content) {
        if self.choices[0] != latest {
            self.choices = vec![latest];
            self.at = 0;
        }
    }

    /// Whoever listens now may take what another refused.
    pub(super) fn again(&mut self) {
        self.choices.truncate(1);
        self.at = 0;
    }

    pub(super) fn current(&self) -> &Content {
        &self.choices[self.at]
    }

    /// What to say goodbye with: a goodbye must not be refused.
    pub(super) fn safest(&self) -> &Content {
        self.good.as_ref().unwrap_or_else(|| self.current())
    }

    /// Whether something else is said than what is to be said.
    pub(super) fn fallen_back(&self) -> bool {
        self.at > 0
    }

    /// A master took what is said.
    pub(super) fn accepted(&mut self) {
        if self.good.as_ref() != Some(self.current()) {
            self.good = Some(self.current().clone());
        }
    }

    /// A master refused what is said. False when there is nothing else to say; then it starts over.
    pub(super) fn refused(&mut self) -> bool {
        if self.at == 0 {
            self.choices = self.choices_now();
        }
        self.at += 1;
        if self.at < self.choices.len() {
            return true;
        }
        self.again();
        false
    }

    fn choices_now(&self) -> Vec<Content> {
        let latest = &self.choices[0];
        let (identity, payload) = match &self.good {
            Some(good) => (good.identity.clone(), good.payload.clone()),
            None => (
                Arc::new(least(&latest.identity)),
                Arc::new(Value::String(String::new())),
            ),
        };
        let mut choices = Vec::with_capacity(4);
        for identity in [&latest.identity, &identity] {
            for payload in [&latest.payload, &payload] {
                let choice = Content {
                    identity: identity.clone(),
                    payload: payload.clone(),
                };
                if !choices.contains(&choice) {
                    choices.push(choice);
                }
            }
        }
        choices
    }
}

/// The least that says who a pod is.
fn least(identity: &Identity) -> Identity {
    let mut labels = identity.labels.clone();
    labels.retain(|name, _| name == "app" || name == "role");
    Identity {
        labels,
        annotations: Labels::new(),
        node: String::new(),
        ..identity.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Who is `zone` and says `payload`; a master refuses what is above 9.
    fn content(zone: u8, payload: u8) -> Content {
        Content {
            identity: Arc::new(Identity {
                app: "web".into(),
                id: "web-1".into(),
                ip: None,
                role: "front".into(),
                labels: Labels::from([
                    ("app".into(), "web".into()),
                    ("zone".into(), zone.to_string()),
                ]),
                annotations: Labels::new(),
                node: String::new(),
            }),
            payload: Arc::new(json!(payload)),
        }
    }

    fn is_good(content: &Content) -> bool {
        let zone = content.identity.labels.get("zone");
        zone.is_none_or(|zone| zone.len() == 1) && content.payload.as_u64().is_none_or(|n| n < 10)
    }

    /// One keepalive: how often it was refused, and what was accepted.
    fn say(contents: &mut Contents) -> (usize, Option<Content>) {
        let mut refused = 0;
        loop {
            if is_good(contents.current()) {
                contents.accepted();
                return (refused, Some(contents.current().clone()));
            }
            refused += 1;
            if !contents.refused() {
                return (refused, None);
            }
        }
    }

    #[test]
    fn only_the_part_that_is_refused_falls_back_and_only_once() {
        let mut contents = Contents::new(content(1, 1));
        assert_eq!(say(&mut contents), (0, Some(content(1, 1))));
        contents.offer(content(2, 99));
        assert_eq!(
            say(&mut contents),
            (1, Some(content(2, 1))),
            "a bad payload"
        );
        assert_eq!(
            say(&mut contents),
            (0, Some(content(2, 1))),
            "not tried again"
        );
        contents.offer(content(2, 99));
        assert_eq!(say(&mut contents), (0, Some(content(2, 1))), "no news");
        assert!(contents.fallen_back());
        contents.again();
        assert_eq!(
            say(&mut contents),
            (1, Some(content(2, 1))),
            "another master is asked"
        );
        contents.offer(content(22, 3));
        assert_eq!(say(&mut contents), (2, Some(content(2, 3))), "bad labels");
        contents.offer(content(33, 99));
        assert_eq!(say(&mut contents), (3, Some(content(2, 3))), "both");
        assert_eq!(*contents.safest(), content(2, 3));
        contents.offer(content(4, 4));
        assert_eq!(say(&mut contents), (0, Some(content(4, 4))));
        assert!(!contents.fallen_back());
    }

    #[test]
    fn before_anything_was_accepted_the_least_is_said() {
        let mut contents = Contents::new(content(1, 99));
        let (_, said) = say(&mut contents);
        assert_eq!(said.map(|said| said.payload), Some(Arc::new(json!(""))));
        let mut contents = Contents::new(content(99, 1));
        let (_, said) = say(&mut contents);
        let said = said.unwrap();
        assert_eq!(
            (said.identity.labels.len(), said.payload),
            (1, Arc::new(json!(1)))
        );
    }

    #[test]
    fn where_nothing_helps_it_starts_over() {
        let mut contents = Contents::new(content(1, 1));
        let refused = std::iter::from_fn(|| contents.refused().then_some(()));
        assert_eq!(refused.count(), 3);
        assert!(!contents.fallen_back());
        assert_eq!(*contents.current(), content(1, 1));
    }

    proptest! {
        #[test]
        fn a_pod_that_was_accepted_once_is_always_heard(news in prop::collection::vec((0..20_u8, 0..20_u8), 1..20)) {
            let mut contents = Contents::new(content(1, 1));
            say(&mut contents);
            for (zone, payload) in news {
                let latest = content(zone, payload);
                contents.offer(latest.clone());
                let (refused, said) = say(&mut contents);
                let said = said.unwrap();
                prop_assert!(refused <= 3);
                // Each part that is good by itself is said.
                prop_assert!(zone >= 10 || said.identity == latest.identity);
                prop_assert!(payload >= 10 || said.payload == latest.payload);
            }
        }
    }
}
