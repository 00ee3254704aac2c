//! Guests for tests: images built once and cached, disks of their own for each test.
//!
//! Nothing here needs a loop device, a mount or a device mapper on this machine.

pub mod debian;
mod disk;
mod edit;
mod keys;
pub mod load;
mod lvm;
mod modules;
mod noise;
mod offline;
mod program;
mod qemu;
pub mod small;
mod ssh;
mod tree;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

pub use disk::{Content, DiskFile};
pub use keys::Keys;
pub use offline::{Witnessed, verify_inside, verify_offline};
pub use program::ledger as ledger_program;
pub use qemu::{Machine, Qemu, Start, Writes};
pub use ssh::{Answer, Ssh};

use crate::Format;
use edit::Edits;

/// For the kernel of every guest: its console, the old names of network cards, and no look at the
/// timer at boot, which panics ("IO-APIC + timer doesn't work") when an emulated CPU gets little of
/// a busy machine. Nor does it test its ciphers, which nothing here uses and an emulated CPU takes long
/// for.
const KERNEL_WORDS: &str = "console=ttyS0 net.ifnames=0 no_timer_check cryptomgr.notests";

/// In any guest's shell: ends the ledger writer and waits until it has ended.
pub const STOP_LEDGER: &str = "if [ -x /etc/init.d/ledger-service ]; \
     then /etc/init.d/ledger-service stop; else systemctl stop ledger; fi";

/// In any guest's shell: lets the ledger writer go on.
pub const START_LEDGER: &str = "if [ -x /etc/init.d/ledger-service ]; \
     then /etc/init.d/ledger-service start; else systemctl start ledger; fi";

/// What makes one guest different from others of its image.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its host name, and what the witness calls it.
    pub name: String,
    pub root_format: Format,
    /// In their order: the guest's second disk, third disk, …
    pub data: Vec<Data>,
    /// Whether the swap partition is used.
    pub swap: bool,
    /// Boots by UEFI as well as by BIOS.
    pub uefi: bool,
    /// Absent: no ledger is written.
    pub ledger: Option<LedgerOptions>,
    /// More files for its root: path (in a directory that exists), permissions, content.
    pub files: Vec<(String, u32, Vec<u8>)>,
}

/// A disk besides the root disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// A multiple of 512.
    pub bytes: u64,
    pub content: Content,
    pub format: Format,
}

/// What the ledger writer in a guest does, on its root and on each data disk.
#[derive(Debug, Clone)]
pub struct LedgerOptions {
    /// Addresses of the one witness, tried in turn.
    pub witnesses: Vec<SocketAddr>,
    /// Records per second and disk; 0 is as fast as the disk.
    pub rate: u32,
    pub random_files: u16,
    /// Bytes of one random file.
    pub random_size: u64,
    /// Bytes of random writes per second and disk.
    pub random_rate: u64,
    pub seed: u64,
}

impl LedgerOptions {
    /// Ten records and 256 KiB of random writes a second on each disk.
    #[must_use]
    pub fn new(witness: SocketAddr) -> Self {
        Self {
            witnesses: vec![witness],
            rate: 10,
            random_files: 2,
            random_size: 2 << 20,
            random_rate: 256 << 10,
            seed: 0,
        }
    }
}

impl GuestOptions {
    /// One raw disk, no swap, no ledger.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            root_format: Format::Raw,
            data: Vec::new(),
            swap: false,
            uefi: false,
            ledger: None,
            files: Vec::new(),
        }
    }

    #[must_use]
    pub fn data(mut self, bytes: u64, content: Content, format: Format) -> Self {
        self.data.push(Data { bytes, content, format });
        self
    }

    #[must_use]
    pub fn ledger(self, ledger: LedgerOptions) -> Self {
        Self { ledger: Some(ledger), ..self }
    }

    #[must_use]
    pub fn with_swap(self) -> Self {
        Self { swap: true, ..self }
    }

    /// The small guest alone.
    #[must_use]
    pub fn with_uefi(self) -> Self {
        Self { uefi: true, ..self }
    }

    #[must_use]
    pub fn root_format(self, root_format: Format) -> Self {
        Self { root_format, ..self }
    }

    /// Makes the data disks, and appends where they are mounted to `fstab`.
    fn make_data(&self, dir: &Path, mounts: &[&str], fstab: &mut String) -> Result<Vec<DiskFile>> {
        let mut disks = Vec::new();
        for (number, data) in self.data.iter().enumerate() {
            anyhow::ensure!(data.bytes % 512 == 0, "a disk of {} bytes", data.bytes);
            let mount = mounts.get(number).context("more data disks than the image has mounts")?;
            let name = format!("{}-data{}", self.name, number + 1);
            let raw = dir.join(format!("{name}.raw"));
            let made = disk::make_data(&raw, &name, data.bytes, data.content)?;
            if let Some(device) = made.device {
                *fstab += &format!("{device} {mount} {} defaults,nofail 0 0\n", made.file_system);
            }
            disks.push(disk::finish(&raw, data.format)?);
        }
        Ok(disks)
    }

    /// What a clone of any image has of its own, but `fstab`.
    fn add_to(&self, edits: &mut Edits, mounts: &[&str]) -> Result<()> {
        edits.file("/etc/hostname", 0o644, format!("{}\n", self.name))?;
        if let Some(ledger) = &self.ledger {
            let mounted = self.data.iter().zip(mounts);
            let data = mounted.filter(|(data, _)| data.content != Content::Blank);
            let dirs = data.map(|(_, mount)| format!(",{mount}/ledger"));
            let dirs = "/var/lib/ledger".to_owned() + &dirs.collect::<String>();
            let text = format!("LEDGER_ARGS=\"{}\"\n", ledger.arguments(&self.name, &dirs));
            edits.file("/etc/ledger.conf", 0o644, text)?;
        }
        self.files.iter().try_for_each(|(path, mode, bytes)| edits.file(path, *mode, bytes))
    }
}

impl LedgerOptions {
    fn arguments(&self, vm: &str, dirs: &str) -> String {
        let witnesses: Vec<_> = self.witnesses.iter().map(ToString::to_string).collect();
        let witness = match witnesses.join(",") {
            none if none.is_empty() => none,
            list => format!(" --witness {list}"),
        };
        format!(
            "--vm {vm} --dir {dirs}{witness} --rate {} --random-files {} --random-size {} \
             --random-rate {} --seed {}",
            self.rate, self.random_files, self.random_size, self.random_rate, self.seed
        )
    }
}

/// Marks a cache entry as used, and removes others of its kind (`KIND-…`) that nobody has used for
/// hours.
fn forget_old(used: &Path, kind: &str) -> Result<()> {
    const UNUSED: Duration = Duration::from_secs(4 * 3600);
    fs::File::open(used)?.set_modified(SystemTime::now())?;
    let parent = used.parent().context("a cache entry has a directory")?;
    for entry in fs::read_dir(parent)?.filter_map(Result::ok) {
        let is_kind = entry.file_name().as_encoded_bytes().starts_with(kind.as_bytes());
        // Another process may be removing it too.
        let modified = entry.metadata().and_then(|seen| seen.modified());
        let unused = modified.is_ok_and(|at| at.elapsed().unwrap_or_default() > UNUSED);
        if is_kind && entry.path() != used && unused {
            let _ = match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            };
        }
    }
    Ok(())
}
