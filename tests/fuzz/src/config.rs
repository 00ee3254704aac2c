//! The configuration file: TOML that an operator wrote, or something wrote for them.

use std::error::Error;

use crate::causeway::config::Config;
use crate::memory::{self, bounded};

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let read = || toml::from_str::<Config>(text);
    match bounded(memory::toml(text.len()), read) {
        Ok(config) => {
            assert_eq!(format!("{config:?}"), format!("{:?}", read().expect("as before")));
            for site in config.sites() {
                // A name that is none would have to be refused here, and not where it is used.
                assert!(site.name.as_str().parse::<model::SiteName>().is_ok());
            }
            unknown_keys_are_refused(text);
        }
        Err(error) => {
            assert!(!error.message().is_empty());
            assert!(error.span().is_none_or(|span| span.end <= text.len()), "past the end");
            assert!(error.source().is_none(), "it would not be shown");
        }
    }
}

/// Before everything else, where it belongs to no table.
fn unknown_keys_are_refused(text: &str) {
    let with_more = format!("nobody_knows_this = 1\n{text}");
    assert!(toml::from_str::<Config>(&with_more).is_err());
}
