//! White space of JSON that was checked before. PURE.

/// The text without white space between its parts.
pub fn compact(json: &str) -> String {
    lay_out(json, None)
}

/// The text with each item and member on a line of its own, for a person.
pub fn indented(json: &str) -> String {
    lay_out(json, Some("  "))
}

fn lay_out(json: &str, indent: Option<&str>) -> String {
    let mut out = String::with_capacity(json.len());
    let mut depth = 0_usize;
    let mut rest = json;
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    while let Some(first) = rest.chars().next() {
        let mut length = first.len_utf8();
        match first {
            ' ' | '\t' | '\r' | '\n' => {}
            '"' => {
                length = string_length(rest);
                out.push_str(&rest[..length]);
            }
            '{' | '[' => {
                out.push(first);
                let inner = rest[length..].trim_start();
                if inner.starts_with(['}', ']']) {
                    // Nothing is in it: its end follows at once.
                    out.extend(inner.chars().next());
                    length = rest.len() - inner.len() + 1;
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(first);
            }
            ',' => {
                out.push(first);
                new_line(&mut out, depth);
            }
            ':' => {
                out.push(first);
                if indent.is_some() {
                    out.push(' ');
                }
            }
            _ => out.push(first),
        }
        rest = &rest[length..];
    }
    out
}

/// How many bytes a string has that a text begins with, its quotes included.
pub(super) fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}
