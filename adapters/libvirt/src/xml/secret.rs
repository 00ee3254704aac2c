//! `<secret>`.

use uuid::Uuid;

use super::node::{Xml, text_at};
use super::write::{Written, element};
use crate::fault::Fault;

/// A secret, without its value: that is never in XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretXml {
    pub description: Option<String>,
}

impl SecretXml {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let xml = Xml::parse(text)?;
        Ok(Self { description: text_at(xml.root("secret")?, "description") })
    }
}

/// A secret to be made: kept on the host's disk, and readable by those who may read secrets.
pub(crate) fn new_secret(uuid: Uuid, description: &str) -> Written {
    element("secret", &[("ephemeral", "no"), ("private", "no")], |secret| {
        secret.text("uuid", &uuid.to_string())?;
        secret.text("description", description)
    })
}
