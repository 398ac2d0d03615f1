//! The comments of the .proto files, as text for people: the one source of every description.

use prost_reflect::DescriptorPool;
use std::collections::HashMap;
use tonic::Code;

/// What stands above each thing of the descriptors.
#[derive(Debug)]
pub(super) struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    pub(super) fn of(pool: &DescriptorPool) -> Self {
        let mut comments = HashMap::new();
        for file in pool.files() {
            let source = file.file_descriptor_proto().source_code_info.as_ref();
            for location in source.iter().flat_map(|source| &source.location) {
                if let Some(comment) = &location.leading_comments {
                    let key = (file.name().to_owned(), location.path.clone());
                    comments.insert(key, paragraphs(comment));
                }
            }
        }
        Self(comments)
    }

    /// The comment of what has this path in this file; empty where there is none.
    pub(super) fn at(&self, file: &str, path: &[i32]) -> &str {
        let found = self.0.get(&(file.to_owned(), path.to_vec()));
        found.map_or("", String::as_str)
    }
}

/// Lines are broken to fit a screen, and mean nothing but where one is empty.
fn paragraphs(comment: &str) -> String {
    let mut text = String::new();
    let mut fresh = true;
    for line in comment.lines().map(str::trim) {
        if line.is_empty() {
            fresh = true;
            continue;
        }
        if !text.is_empty() {
            text.push_str(if fresh { "\n\n" } else { " " });
        }
        text.push_str(line);
        fresh = false;
    }
    text
}

/// The first sentence of a comment, without its full stop: as far as its colon, for a line of a list.
pub(super) fn summary(comment: &str) -> &str {
    let line = comment.lines().next().unwrap_or_default();
    let ends = [". ", ": "].map(|end| line.find(end));
    let end = ends.into_iter().flatten().min().unwrap_or(line.len());
    line[..end].trim_end_matches('.')
}

/// The codes of gRPC that a comment names, in the order of their numbers: what may go wrong is told there.
pub(super) fn codes(comment: &str) -> Vec<Code> {
    let is_part = |letter: char| letter.is_ascii_uppercase() || letter == '_';
    let words: Vec<&str> = comment.split(|letter| !is_part(letter)).collect();
    (1..=16)
        .map(Code::from_i32)
        .filter(|code| words.contains(&name(*code).as_str()))
        .collect()
}

/// A code as .proto files write it: `NotFound` is NOT_FOUND.
pub(super) fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_paragraphs_and_the_first_sentence_is_the_summary() {
        let text = paragraphs(" Tells one\n pod. Errors: NOT_FOUND.\n\n More.\n");
        assert_eq!(text, "Tells one pod. Errors: NOT_FOUND.\n\nMore.");
        assert_eq!(summary(&text), "Tells one pod");
        assert_eq!(summary("Follows it: a snapshot. More."), "Follows it");
        assert_eq!(summary("The pods."), "The pods");
        assert_eq!(summary(""), "");
    }

    #[test]
    fn codes_are_whole_words() {
        assert_eq!(
            codes("UNAVAILABLE: no; NOT_FOUND. UNREACHABLE, NOT_FOUND_AT_ALL, Aborted"),
            [Code::NotFound, Code::Unavailable]
        );
        assert_eq!(name(Code::DeadlineExceeded), "DEADLINE_EXCEEDED");
    }
}
