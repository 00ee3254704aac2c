//! Errors on their way to the coordinator.

use std::error::Error;

use units::chain;
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
