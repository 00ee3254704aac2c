//! What agents say to each other and to the coordinator. Bytes and values only: no I/O.
//!
//! * [`control`]: requests, replies and events between the coordinator and one agent, as JSON in
//!   length-prefixed frames.

pub mod control;
