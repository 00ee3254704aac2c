//! The agent as a daemon inside a guest.

pub mod pipe;
pub mod place;
pub mod remove;
mod serve;

pub use serve::{
    Parent, Serve, ServeError, end_after_bug, end_on_panic, make_modest, serve, start_detached,
};
