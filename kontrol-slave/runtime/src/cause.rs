//! Why something failed, of errors that wrap others.

use std::error::Error;

/// The innermost cause of an error: the outer ones of a transport say nothing (`transport error`).
pub fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
