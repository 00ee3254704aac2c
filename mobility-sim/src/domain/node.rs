//! An XML element of our own: read with limits, written with everything escaped.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use roxmltree::{Document, ParsingOptions};
use thiserror::Error;

/// Of a definition, in bytes: what libvirt sends in one string.
pub const XML_MAX: usize = 4 << 20;
/// Elements, texts and comments in one document.
pub const NODES_MAX: u32 = 100_000;
/// Elements within one another. libvirt's own stay below 12.
pub const DEPTH_MAX: usize = 32;

#[derive(Debug, Error)]
pub enum XmlError {
    #[error("{found} bytes of XML, {XML_MAX} are read at most")]
    TooLong { found: usize },
    #[error("not well-formed")]
    Malformed(#[from] roxmltree::Error),
    #[error("elements lie more than {DEPTH_MAX} deep")]
    TooDeep,
    #[error("the root is <{found}>, not <{expected}>")]
    OtherRoot { found: String, expected: &'static str },
}

/// What has a namespace has this prefix in its name.
const FOREIGN: &str = "foreign";

/// Without namespaces, comments and processing instructions: whatever has a namespace is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    /// Of all texts directly in it, without white space around.
    pub text: String,
    pub children: Vec<Self>,
}

impl Element {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.attributes.push((name.to_owned(), value.into()));
        self
    }

    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    pub fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub fn first(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// # Errors
    /// Where it is no XML, has a document type, or is larger than it may be.
    pub fn parse(text: &str, root: &'static str) -> Result<Self, XmlError> {
        if text.len() > XML_MAX {
            return Err(XmlError::TooLong { found: text.len() });
        }
        let options = ParsingOptions {
            allow_dtd: false,
            nodes_limit: NODES_MAX,
            ..ParsingOptions::default()
        };
        let document = Document::parse_with_options(text, options)?;
        let node = document.root_element();
        if node.tag_name().name() != root {
            let found = node.tag_name().name().to_owned();
            return Err(XmlError::OtherRoot { found, expected: root });
        }
        Self::of(node, 0)
    }

    fn of(node: roxmltree::Node<'_, '_>, depth: usize) -> Result<Self, XmlError> {
        if depth > DEPTH_MAX {
            return Err(XmlError::TooDeep);
        }
        let attributes = node
            .attributes()
            .filter(|attribute| attribute.namespace().is_none())
            .map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned()));
        let mut element =
            Self { attributes: attributes.collect(), ..Self::new(node.tag_name().name()) };
        for child in node.children() {
            if child.is_text() {
                element.text.push_str(child.text().unwrap_or_default());
            } else if child.is_element() {
                // `qemu:commandline` and its kind get a name that nothing allows.
                let mut inner = Self::of(child, depth + 1)?;
                if child.tag_name().namespace().is_some() {
                    inner.name = format!("{FOREIGN}:{}", inner.name);
                }
                element.children.push(inner);
            }
        }
        element.text = element.text.trim().to_owned();
        Ok(element)
    }

    /// As a document, indented by two.
    pub fn write(&self) -> String {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        self.write_to(&mut writer).expect("a vector takes all");
        String::from_utf8(writer.into_inner()).expect("names and values are text")
    }

    fn write_to(&self, writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
        let attributes = self.attributes.iter().map(|(name, value)| (&**name, &**value));
        let mut start = BytesStart::new(&*self.name).with_attributes(attributes);
        // Read again it is as foreign as it was.
        if self.name.strip_prefix(FOREIGN).is_some_and(|rest| rest.starts_with(':')) {
            start.push_attribute((&*format!("xmlns:{FOREIGN}"), FOREIGN));
        }
        if self.text.is_empty() && self.children.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        if !self.text.is_empty() {
            writer.write_event(Event::Text(BytesText::new(&self.text)))?;
        }
        for child in &self.children {
            child.write_to(writer)?;
        }
        writer.write_event(Event::End(BytesEnd::new(&*self.name)))
    }
}
