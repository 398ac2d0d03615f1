//! Path templates of `google.api.http`: `/v1/pods/{key}:explain`.
//!
//! Literals, variables of one segment (`{field}`, `{field=*}`, `{a.b}`) and a verb. What spans several segments (`**`,
//! `{name=shelves/*}`) is refused at start-up. The router underneath knows no verbs, so that templates which differ only
//! in their verb, or in the names of their variables, share one pattern; the verb is told apart here. Variables are read
//! from the path as it was sent and decoded last: an encoded `/` or `:` is data, never structure.

use percent_encoding::percent_decode_str;
use std::{borrow::Cow, fmt};

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    segments: Vec<Segment>,
    verb: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// Dotted path of the field that takes the segment.
    Variable(String),
}

impl Template {
    /// Parses a template, or tells what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("the path {text:?} doesn't start with /"));
        };
        let (rest, verb) = split_verb(rest);
        let segments = rest
            .split('/')
            .map(|segment| Segment::parse(segment).map_err(|reason| format!("{text:?}: {reason}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            segments,
            verb: verb.map(str::to_owned),
        })
    }

    /// The path for the router underneath. A verb behind a literal is part of it; one behind a variable is left out.
    pub(super) fn pattern(&self) -> String {
        let mut pattern = String::new();
        for (position, segment) in self.segments.iter().enumerate() {
            match segment {
                Segment::Literal(literal) => pattern.extend(["/", literal]),
                Segment::Variable(_) => pattern.push_str(&format!("/{{p{position}}}")),
            }
        }
        if let (Some(Segment::Literal(_)), Some(verb)) = (self.segments.last(), &self.verb) {
            pattern.extend([":", verb]);
        }
        pattern
    }

    /// The verb that a path must end with for this template, if its pattern doesn't ask for it already.
    pub(super) fn verb(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Variable(_)) => self.verb.as_deref(),
            Some(Segment::Literal(_)) | None => None,
        }
    }

    /// The dotted field paths of the variables, in order.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Variable(field) => Some(field.as_str()),
        })
    }

    /// The decoded values of the variables in a path that matched; `None`: not UTF-8.
    pub(super) fn capture<'p>(&self, path: &'p str) -> Option<Vec<Cow<'p, str>>> {
        let mut rest = path.strip_prefix('/').unwrap_or(path);
        if let Some(verb) = self.verb() {
            rest = rest
                .strip_suffix(verb)
                .and_then(|rest| rest.strip_suffix(':'))
                .unwrap_or(rest);
        }
        self.segments
            .iter()
            .zip(rest.split('/'))
            .filter(|(segment, _)| matches!(segment, Segment::Variable(_)))
            .map(|(_, raw)| percent_decode_str(raw).decode_utf8().ok())
            .collect()
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('{') else {
            return match text {
                "" => Err("has an empty segment".into()),
                _ if text.contains(['{', '}', '*', '%', ':']) => {
                    Err(format!("the segment {text:?} is not supported"))
                }
                _ => Ok(Self::Literal(text.into())),
            };
        };
        let field = inner
            .strip_suffix('}')
            .map(|field| field.strip_suffix("=*").unwrap_or(field))
            .filter(|field| !field.is_empty() && !field.contains(['{', '}', '=', '*']))
            .ok_or_else(|| format!("the segment {text:?} is not one variable"))?;
        Ok(Self::Variable(field.into()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Literal(literal) => write!(f, "/{literal}")?,
                Segment::Variable(field) => write!(f, "/{{{field}}}")?,
            }
        }
        match &self.verb {
            Some(verb) => write!(f, ":{verb}"),
            None => Ok(()),
        }
    }
}

/// Splits what follows the last `:` of the last segment from a path.
pub(super) fn split_verb(path: &str) -> (&str, Option<&str>) {
    match path.rsplit_once(':') {
        Some((rest, verb)) if !verb.contains(['/', '}']) => (rest, Some(verb)),
        _ => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    #[test]
    fn verbs_behind_a_variable_share_its_pattern() {
        let plain = template("/v1/pods/{key}");
        let explain = template("/v1/pods/{pod.key=*}:explain");
        assert_eq!(plain.pattern(), "/v1/pods/{p2}");
        assert_eq!(explain.pattern(), "/v1/pods/{p2}");
        assert_eq!((plain.verb(), explain.verb()), (None, Some("explain")));
        assert_eq!(explain.variables().collect::<Vec<_>>(), ["pod.key"]);
        assert_eq!(explain.to_string(), "/v1/pods/{pod.key}:explain");
    }

    #[test]
    fn a_verb_behind_a_literal_is_part_of_the_pattern() {
        let purge = template("/v1/pods:purge");
        assert_eq!(
            (purge.pattern().as_str(), purge.verb()),
            ("/v1/pods:purge", None)
        );
    }

    #[test]
    fn variables_are_decoded_after_the_path_is_split() {
        let explain = template("/v1/pods/{key}:explain");
        let captured = explain
            .capture("/v1/pods/a%2Fb%3Ac%20%C3%A9:explain")
            .unwrap();
        assert_eq!(captured, ["a/b:c é"]);
        assert_eq!(
            template("/a/{x}/b/{y}").capture("/a/1/b/2").unwrap(),
            ["1", "2"]
        );
        assert_eq!(template("/a/{x}").capture("/a/%FF"), None);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for text in [
            "v1", "/", "/a//b", "/{a}b", "/{a=**}", "/{a=b/*}", "/*", "/{}", "/a{b}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
