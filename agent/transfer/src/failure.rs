//! Errors as the control protocol carries them.

use std::error::Error;

/// The whole chain of causes, outermost first. A cause whose text the error before it repeats
/// (transparent errors do) is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
