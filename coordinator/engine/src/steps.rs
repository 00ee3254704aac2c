//! One file per phase: what is left of it to do, and what to make of a failure there.

mod begin;
mod copy;
mod decide;
mod drain;
mod failure;
mod fence;
mod prepare;
mod retire;
mod roll_back;
mod start;

pub(crate) use begin::begin;
pub(crate) use copy::{copy, hold};
pub(crate) use decide::decide;
pub(crate) use drain::drain;
pub(crate) use failure::{after_failure, halt};
pub(crate) use fence::fence;
pub(crate) use prepare::prepare;
pub(crate) use retire::retire;
pub(crate) use roll_back::roll_back;
pub use roll_back::{Cleared, clear_up};
pub(crate) use start::start;
