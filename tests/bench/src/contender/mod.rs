//! Who competes, and how each is called.

mod causeway;
mod nbd;
mod ssh;

use anyhow::Result;

use crate::child::Running;
use crate::cli::Section;
use crate::disks::{Disks, Target};
use crate::ground::Line;

pub use nbd::Security;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub name: &'static str,
    tool: Tool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Causeway { level: i32 },
    Nbdcopy(Security),
    Zstd,
    Rsync,
}

const CAUSEWAY_0: Contender = Contender::new("causeway-0", Tool::Causeway { level: 0 });
const CAUSEWAY_1: Contender = Contender::new("causeway-1", Tool::Causeway { level: 1 });
const CAUSEWAY_3: Contender = Contender::new("causeway-3", Tool::Causeway { level: 3 });
const PLAIN: Contender = Contender::new("nbdcopy", Tool::Nbdcopy(Security::None));
const TLS: Contender = Contender::new("nbdcopy-tls", Tool::Nbdcopy(Security::Tls));
const TLS_AES: Contender = Contender::new("nbdcopy-tls-aes", Tool::Nbdcopy(Security::TlsAes));
const ZSTD: Contender = Contender::new("zstd-ssh", Tool::Zstd);
const RSYNC: Contender = Contender::new("rsync-z", Tool::Rsync);

pub const fn of(section: Section) -> &'static [Contender] {
    match section {
        Section::Loopback => &[CAUSEWAY_0, CAUSEWAY_1, PLAIN, TLS, TLS_AES],
        Section::Gigabit => &[CAUSEWAY_1, CAUSEWAY_3, PLAIN, TLS, TLS_AES, ZSTD, RSYNC],
    }
}

impl Contender {
    const fn new(name: &'static str, tool: Tool) -> Self {
        Self { name, tool }
    }

    pub const fn is_ours(&self) -> bool {
        matches!(self.tool, Tool::Causeway { .. })
    }

    pub const fn wants(&self) -> Target {
        match self.tool {
            Tool::Causeway { .. } => Target::Empty,
            // nbdcopy truncates what it finds, rsync would look for differences in it.
            Tool::Nbdcopy(_) | Tool::Zstd | Tool::Rsync => Target::Absent,
        }
    }

    /// What protects the data on its way, as the tool itself reports it if it does.
    pub fn cipher(&self, line: &Line<'_>, disks: &Disks) -> Result<String> {
        match self.tool {
            Tool::Causeway { .. } => Ok(causeway::CIPHER.to_owned()),
            Tool::Nbdcopy(security) => nbd::cipher(security, line, disks),
            Tool::Zstd | Tool::Rsync => Ok(ssh::CIPHER.to_owned()),
        }
    }

    /// Starts what a user would have running already. The SSH server always runs.
    pub fn serve(&self, line: &Line<'_>, disks: &Disks) -> Result<Option<Running>> {
        match self.tool {
            Tool::Nbdcopy(security) => nbd::serve(security, line, disks).map(Some),
            Tool::Causeway { .. } | Tool::Zstd | Tool::Rsync => Ok(None),
        }
    }

    pub fn copy(&self, line: &Line<'_>, disks: &Disks) -> Result<()> {
        match self.tool {
            Tool::Causeway { level } => causeway::copy(level, line, disks),
            Tool::Nbdcopy(security) => nbd::copy(security, line, disks),
            Tool::Zstd => ssh::zstd(line, disks),
            Tool::Rsync => ssh::rsync(line, disks),
        }
    }
}
