//! Errors as people read them.

use std::error::Error;

/// An error and its causes in one line, outermost first. A cause that says the same again
/// (transparent errors do) is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        let more = more.trim();
        if !text.contains(more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Self>>);

    #[test]
    fn every_cause_is_said_once() {
        let cause = |text, cause| Some(Box::new(Said(text, cause)));
        let error =
            Said("no agent", cause("lost the line", cause("lost the line", cause("reset", None))));
        assert_eq!(chain(&error), "no agent: lost the line: reset");
    }

    #[test]
    fn a_cause_whose_blanks_were_cut_is_said_once() {
        let error = Said("it is not right: line 1", Some(Box::new(Said(" line 1\n", None))));
        assert_eq!(chain(&error), "it is not right: line 1");
    }
}
