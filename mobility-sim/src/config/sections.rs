//! A configuration section by section: what is wrong in one hides nothing of the next.

use std::path::Path;

use serde::Deserialize;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

pub struct Sections<'a> {
    text: &'a str,
    left: DeTable<'a>,
    mistakes: Vec<String>,
}

impl<'a> Sections<'a> {
    pub fn of(text: &'a str, path: &Path) -> Result<Self, ConfigError> {
        let left = DeTable::parse(text).map_err(|source| ConfigError::Text {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self { text, left: left.into_inner(), mistakes: Vec::new() })
    }

    /// `None` is a mistake, which is kept; `needs` is said of one that is not there.
    pub fn take<T: Deserialize<'a>>(&mut self, name: &str, needs: &str) -> Option<T> {
        match self.left.remove(name) {
            Some(section) => self.read(section),
            None => {
                self.mistakes.push(format!("section [{name}] is missing: {needs}"));
                None
            }
        }
    }

    pub fn take_if_there<T: Deserialize<'a>>(&mut self, name: &str) -> Option<T> {
        self.left.remove(name).and_then(|section| self.read(section))
    }

    fn read<T: Deserialize<'a>>(&mut self, section: Spanned<DeValue<'a>>) -> Option<T> {
        let read = T::deserialize(section.into_deserializer());
        read.map_err(|mut error| {
            error.set_input(Some(self.text));
            self.mistakes.push(error.to_string());
        })
        .ok()
    }

    /// All mistakes, with whatever was not taken.
    pub fn rest(self) -> Vec<String> {
        let unknown = self.left.keys().map(|name| {
            format!("[{}] is no section of a configuration: is it misspelt?", name.get_ref())
        });
        self.mistakes.into_iter().chain(unknown).collect()
    }

    /// Those of what was taken.
    pub fn mistakes(self) -> Vec<String> {
        self.mistakes
    }
}
