//! What agents say to each other and to the coordinator. Bytes and values only: no I/O, no clock,
//! no randomness. `PROTOCOL.md` tells the whole of it, with the reasons.
//!
//! * [`preamble`]: how two ends find each other on a pipe that may still hold bytes of a session
//!   that died, and [`purpose`]: what the session that follows is for.
//! * [`control`]: requests, replies and events between the coordinator and one agent, as JSON in
//!   length-prefixed frames.
//! * [`data`]: blocks, acknowledgements and tables between two agents, in binary frames.

pub mod control;
pub mod data;
pub mod preamble;
pub mod purpose;
