//! Joins standard input and output with the agent's socket: what the coordinator runs over SSH,
//! once for each stream.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use thiserror::Error;

use super::place::Place;
use crate::sandbox::{self, Needs};

/// What one read takes at most: the largest packet of SSH is 32 KiB, several of them wait often.
const BUFFER: usize = 128 << 10;

#[derive(Debug, Error)]
pub enum PipeError {
    #[error("no agent runs in {}", dir.display())]
    NoAgent { dir: PathBuf },

    #[error("cannot connect to the agent in {}", dir.display())]
    Connect { dir: PathBuf, source: io::Error },

    #[error("the agent's stream broke")]
    Broken { source: io::Error },
}

impl PipeError {
    /// For the coordinator, which sees nothing but the exit code and what was said.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoAgent { .. } => 10,
            Self::Connect { .. } => 11,
            Self::Broken { .. } => 12,
        }
    }
}

/// Ends when the agent closes the stream; when standard input ends, the agent is told.
pub fn run(place: &Place) -> Result<(), PipeError> {
    let dir = || place.dir().to_owned();
    let socket = UnixStream::connect(place.socket()).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            PipeError::NoAgent { dir: dir() }
        }
        _ => PipeError::Connect { dir: dir(), source },
    })?;
    let broken = |source| PipeError::Broken { source };
    // What comes from either side is never looked at; it needs no more than these two.
    sandbox::confine(&Needs::NONE);
    let upstream = socket.try_clone().map_err(broken)?;
    // Ends with the process: a read of standard input cannot be called off.
    thread::spawn(move || {
        let copied = pump(&mut io::stdin().lock(), &mut &upstream);
        let how = if copied.is_ok() { Shutdown::Write } else { Shutdown::Both };
        // Shut already: the agent closed it.
        let _shut = upstream.shutdown(how);
    });
    pump(&mut &socket, &mut io::stdout().lock()).map_err(broken)
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..len])?;
        to.flush()?;
    }
}
