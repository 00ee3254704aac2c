//! Reaching a guest over SSH: connect with a pinned host key, look around, install the agent in
//! memory, start it, talk to it, remove it.
//!
//! ```text
//!  SshTarget ── Guest::connect ──> Guest ── probe ──> GuestReport (what stands in the way)
//!                                    │ ── install / start / remove   the agent, under a tmpfs
//!                                    └ ── open ──> ByteStream        stdin and stdout of a command
//! ```
//!
//! # One TCP connection per stream
//!
//! Commands share one control connection; every [`ByteStream`] has a connection of its own. Two
//! reasons. The cryptography of one SSH connection runs on one core, at both ends. And russh
//! 0.65 returns flow-control credit as data *arrives*, not as it is read, so that one slow reader
//! fills its buffer and then stops every other channel of the connection, keepalives included.
//! Alone on its connection a slow reader stops only itself, by TCP's own back-pressure.
//!
//! # Trust
//!
//! A host key is known beforehand or the connection ends before anything is said. Nothing is
//! learnt on first use. Only files and the user's SSH agent authenticate; passwords and
//! passphrases are never asked for.

mod agent;
mod auth;
mod connection;
mod error;
mod exec;
mod guest;
mod host_key;
mod probe;
mod shell;
mod stream;
mod target;

pub use agent::{
    AgentBinary, AgentBinaryError, AgentDir, AgentDirError, Installed, Removed, Started,
};
pub use error::{IdentityProblem, Lost, SeenKey, SshError};
pub use exec::{ExecLimits, Exit, Output};
pub use guest::{Guest, Privilege};
pub use host_key::{HostKeyPolicy, PinnedKey, PinnedKeyError};
pub use probe::{GuestReport, OPTIONAL_TOOLS, Place, REQUIRED_TOOLS};
pub use stream::{ByteStream, StreamError};
pub use target::{Endpoint, SshAuth, SshTarget, Timing, UserAgent};
