//! Elements with everything escaped.

use std::io;

use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::writer::Writer;
use thiserror::Error;

/// Indentation, because people read definitions.
const INDENT: usize = 2;

#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// XML 1.0 has no way to write it.
    #[error("{place} holds a control character")]
    Control { place: String },

    #[error("cannot write XML")]
    Io(#[from] io::Error),

    #[error("{what}")]
    Unsupported { what: String },
}

pub(crate) type Written = Result<String, WriteError>;

/// Below an open element.
pub(crate) struct Inside<'w> {
    writer: &'w mut Writer<Vec<u8>>,
}

/// A whole document: one element.
pub(crate) fn element(
    name: &str,
    attributes: &[(&str, &str)],
    fill: impl FnOnce(&mut Inside<'_>) -> Result<(), WriteError>,
) -> Written {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', INDENT);
    Inside { writer: &mut writer }.nested(name, attributes, fill)?;
    String::from_utf8(writer.into_inner())
        .map_err(|cause| WriteError::Io(io::Error::new(io::ErrorKind::InvalidData, cause)))
}

impl Inside<'_> {
    pub(crate) fn nested(
        &mut self,
        name: &str,
        attributes: &[(&str, &str)],
        fill: impl FnOnce(&mut Inside<'_>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        self.writer.write_event(Event::Start(start(name, attributes)?))?;
        fill(&mut Inside { writer: self.writer })?;
        self.writer.write_event(Event::End(BytesEnd::new(name)))?;
        Ok(())
    }

    pub(crate) fn empty(
        &mut self,
        name: &str,
        attributes: &[(&str, &str)],
    ) -> Result<(), WriteError> {
        self.writer.write_event(Event::Empty(start(name, attributes)?))?;
        Ok(())
    }

    pub(crate) fn text(&mut self, name: &str, text: &str) -> Result<(), WriteError> {
        self.text_with(name, &[], text)
    }

    pub(crate) fn text_with(
        &mut self,
        name: &str,
        attributes: &[(&str, &str)],
        text: &str,
    ) -> Result<(), WriteError> {
        checked(name, text)?;
        self.writer.write_event(Event::Start(start(name, attributes)?))?;
        self.writer.write_event(Event::Text(BytesText::new(text)))?;
        self.writer.write_event(Event::End(BytesEnd::new(name)))?;
        Ok(())
    }
}

fn start<'n>(name: &'n str, attributes: &[(&str, &str)]) -> Result<BytesStart<'n>, WriteError> {
    let mut start = BytesStart::new(name);
    for (key, value) in attributes {
        checked(key, value)?;
        start.push_attribute((*key, *value));
    }
    Ok(start)
}

fn checked(place: &str, text: &str) -> Result<(), WriteError> {
    if text.chars().any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')) {
        return Err(WriteError::Control { place: place.to_owned() });
    }
    Ok(())
}
