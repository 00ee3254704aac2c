//! Definitions, written anew from values of ours alone: nothing that a site said is passed on as
//! text, and what is not listed here cannot get in.

mod cpu;
mod element;
mod fence;
mod placeholder;

pub(crate) use element::{WriteError, Written, element};
pub(crate) use fence::{Fenced, NOWHERE, fenced};
pub(crate) use placeholder::{CACHED, DIRECT, Form, Host, Located, metadata_text, placeholder};
