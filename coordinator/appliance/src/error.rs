//! Why no appliance could be built, and what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

#[derive(Debug, Error)]
pub enum BuildError {
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },

    #[error("cannot write {}", path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },

    #[error("no kernel found: {}", looked_at.join("; "))]
    NoKernel { looked_at: Vec<String> },

    #[error("{} is not a kernel tree: {lacks}", tree.display())]
    NotAKernelTree { tree: PathBuf, lacks: &'static str },

    #[error("`{command}` failed: {stderr}")]
    Tool { command: String, stderr: String },

    #[error("`{command}` could not be run")]
    NoTool {
        command: String,
        #[source]
        cause: io::Error,
    },

    #[error("kernel {kernel} lacks modules: {}", modules.join(", "))]
    ModulesMissing { kernel: String, modules: Vec<String> },

    #[error("modules depend on each other in a circle: {}", modules.join(" -> "))]
    ModulesInACircle { modules: Vec<String> },

    #[error("{} is not a kernel module", path.display())]
    NotAModule {
        path: PathBuf,
        #[source]
        cause: Option<object::Error>,
    },

    #[error("cannot decompress {}", path.display())]
    Compressed {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },

    #[error("{} is not a static program", path.display())]
    AgentNotStatic { path: PathBuf },

    #[error("the agent is built for {agent}, the kernel for {kernel}")]
    WrongMachine { agent: String, kernel: String },

    #[error("kernel {kernel} cannot unpack an initramfs")]
    NoInitramfs { kernel: String },

    #[error("not a path for a file of the initramfs: {path:?}")]
    BadExtraFile { path: String },

    #[error("the initramfs would be larger than it can be")]
    TooLarge {
        #[source]
        cause: io::Error,
    },
}

impl BuildError {
    /// What the operator can do, in one sentence.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoKernel { .. } => "on Debian run `apt-get update`; elsewhere name a directory \
                 with `boot/vmlinuz-VERSION` and `lib/modules/VERSION`"
                .to_owned(),
            Self::NotAKernelTree { .. } => {
                "name the directory that holds `boot` and `lib/modules`, as a kernel package has \
                 them"
                    .to_owned()
            }
            Self::Tool { command, .. } if command.starts_with("apt") => {
                "run `apt-get update`, or name a kernel tree".to_owned()
            }
            Self::ModulesMissing { .. } | Self::NoInitramfs { .. } => {
                "take another kernel, for example Debian's linux-image-cloud-amd64".to_owned()
            }
            Self::AgentNotStatic { .. } => {
                "build it by `make programs`, which links it statically".to_owned()
            }
            Self::WrongMachine { .. } => "take the kernel of the agent's machine".to_owned(),
            Self::Unreadable { .. }
            | Self::Unwritable { .. }
            | Self::Tool { .. }
            | Self::NoTool { .. }
            | Self::ModulesInACircle { .. }
            | Self::NotAModule { .. }
            | Self::Compressed { .. }
            | Self::BadExtraFile { .. }
            | Self::TooLarge { .. } => return None,
        })
    }
}
