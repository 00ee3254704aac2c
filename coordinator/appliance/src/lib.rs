//! Builds what the *helper* boots: a distribution's kernel, and an initramfs that holds the agent
//! as `/init` and the modules that it needs to see disks and ports.
//!
//! ```text
//!  KernelTree (vmlinuz, lib/modules/VERSION, config)
//!     └ modules::select ── in load order, built-in ones left out
//!         └ initramfs ──── /init  /modules/order  /modules/*.ko  /dev/console  /dev/null …
//!             └ helper.vmlinuz  helper.initrd  appliance.json
//! ```
//!
//! The initramfs has no shell, no modprobe and no udev. `/init` loads the files that
//! `/modules/order` lists (one absolute path per line, each after what it depends on) with
//! `finit_module`; a module that finds no hardware may fail with `ENODEV`. Device nodes come from
//! `devtmpfs`, names that udev would make (`/dev/virtio-ports/NAME`) do not: a port's name is in
//! `/sys/class/virtio-ports/vport*/name`.
//!
//! The same input gives the same bytes.

mod debian;
mod error;
mod initramfs;
mod kernel;
mod manifest;
mod modinfo;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use object::{FileKind, Object};
use tracing::info;

pub use error::BuildError;
pub use initramfs::{Compression, ExtraFile};
pub use kernel::{KernelChoice, KernelTree, cache_dir};
pub use manifest::{Appliance, LoadError, Manifest, Part};
pub use modules::{REQUIRED_MODULES, WANTED_MODULES};

/// What to build from, and where to put it.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    pub kernel: KernelChoice,
    /// The static agent, which becomes `/init`.
    pub agent: PathBuf,
    /// Gets `helper.vmlinuz`, `helper.initrd` and `appliance.json`; made if it does not exist.
    pub out: PathBuf,
    /// Modules beyond [`WANTED_MODULES`]; one that the kernel lacks is an error.
    pub extra_modules: Vec<String>,
    /// Files beyond the agent and the modules.
    pub extra_files: Vec<ExtraFile>,
}

/// Builds an appliance, or replaces one by what a newer kernel or agent gives.
///
/// # Errors
/// [`BuildError::hint`] says what to install or to name. A directory that held an appliance holds
/// a whole one still, or one that [`Appliance::load`] refuses.
pub fn build(request: &BuildRequest) -> Result<Appliance, BuildError> {
    let kernel = request.kernel.find()?;
    info!(version = kernel.version, origin = kernel.origin, "kernel found");
    let agent = read(&request.agent)?;
    let machine = check_agent(&request.agent, &agent)?;

    let selection = modules::select(&kernel, &request.extra_modules)?;
    for module in &selection.modules {
        if module.machine != machine {
            return Err(BuildError::WrongMachine {
                agent: format!("{machine:?}"),
                kernel: format!("{:?}", module.machine),
            });
        }
    }
    let compression = kernel.best_compression()?;
    let initrd = initramfs::pack(&agent, &selection, &request.extra_files, compression)?;
    let vmlinuz = read(&kernel.vmlinuz)?;
    manifest::store(&request.out, &vmlinuz, &initrd, |vmlinuz, initrd| Manifest {
        format: manifest::FORMAT,
        kernel_version: kernel.version.clone(),
        kernel_origin: kernel.origin.clone(),
        machine: format!("{machine:?}").to_lowercase(),
        agent_blake3: digest(&agent),
        compression,
        modules: selection.modules.iter().map(|module| module.name.clone()).collect(),
        built_in: selection.built_in.clone(),
        absent: selection.absent.clone(),
        vmlinuz,
        initrd,
    })
}

/// The agent runs where there is no library and no other program, so it must be a static ELF
/// program.
fn check_agent(path: &Path, agent: &[u8]) -> Result<object::Architecture, BuildError> {
    let not_static = || BuildError::AgentNotStatic { path: path.to_owned() };
    match FileKind::parse(agent) {
        Ok(FileKind::Elf64 | FileKind::Elf32) => {}
        Ok(_) | Err(_) => return Err(not_static()),
    }
    let elf = object::File::parse(agent).map_err(|_| not_static())?;
    let runs_by_itself = elf.segments().count() > 0 && !has_interpreter(agent);
    if runs_by_itself { Ok(elf.architecture()) } else { Err(not_static()) }
}

/// Whether a dynamic linker must be there to run it.
fn has_interpreter(elf: &[u8]) -> bool {
    use object::read::elf::{FileHeader, ProgramHeader};
    fn any<H: FileHeader<Endian = object::Endianness>>(elf: &[u8]) -> object::Result<bool> {
        let header = H::parse(elf)?;
        let endian = header.endian()?;
        let mut segments = header.program_headers(endian, elf)?.iter();
        Ok(segments.any(|segment| segment.p_type(endian) == object::elf::PT_INTERP))
    }
    any::<object::elf::FileHeader64<_>>(elf)
        .or_else(|_| any::<object::elf::FileHeader32<_>>(elf))
        .unwrap_or(true)
}

fn digest(bytes: &[u8]) -> units::Digest {
    units::Digest(*blake3::hash(bytes).as_bytes())
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|cause| BuildError::Unreadable { path: path.to_owned(), cause })
}
