//! Errors on their way to the coordinator.

use std::error::Error;

use wire::control::{ErrorCode, Failure};

/// An error that the coordinator and the operator have to tell apart.
pub trait Blame: Error {
    fn code(&self) -> ErrorCode;

    /// What the operator can do.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// What crosses the wire in place of an error.
pub fn failure(cause: &(impl Blame + 'static)) -> Failure {
    Failure { code: cause.code(), text: chain(cause), hint: cause.hint() }
}

/// An error and its causes, outermost first.
pub fn chain(cause: &dyn Error) -> String {
    let mut text = cause.to_string();
    let mut next = cause.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
