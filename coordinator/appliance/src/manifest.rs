//! The finished appliance in its directory, and the manifest that says what it is.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::Digest;

use crate::digest;
use crate::error::BuildError;
use crate::initramfs::Compression;

/// Of the manifest. A reader refuses any other.
pub(crate) const FORMAT: u32 = 1;

const MANIFEST: &str = "appliance.json";
const VMLINUZ: &str = "helper.vmlinuz";
const INITRD: &str = "helper.initrd";

/// What `appliance.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// As `uname -r` will say.
    pub kernel_version: String,
    /// A package and its version, or the directory that it came from.
    pub kernel_origin: String,
    /// `x86_64`, `aarch64`.
    pub machine: String,
    pub agent_blake3: Digest,
    pub compression: Compression,
    /// In load order.
    pub modules: Vec<String>,
    /// Wanted modules that are in the kernel itself.
    pub built_in: Vec<String>,
    /// Wanted modules that this kernel does not have.
    pub absent: Vec<String>,
    pub vmlinuz: Part,
    pub initrd: Part,
}

/// A file of the appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub bytes: u64,
    pub blake3: Digest,
}

/// An appliance whose files are what its manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    pub vmlinuz: PathBuf,
    pub initrd: PathBuf,
    pub manifest: Manifest,
}

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("no appliance in {}", dir.display())]
    NotBuilt { dir: PathBuf },
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} is not a manifest that this version reads", path.display())]
    BadManifest {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("{} has format {format}, this version reads {FORMAT}", path.display())]
    OtherFormat { path: PathBuf, format: u64 },
    #[error("{} is not the file of the manifest", path.display())]
    Altered { path: PathBuf },
}

impl LoadError {
    /// What the operator can do, in one sentence.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => None,
            Self::NotBuilt { .. }
            | Self::BadManifest { .. }
            | Self::OtherFormat { .. }
            | Self::Altered { .. } => Some("run `causeway appliance build`".to_owned()),
        }
    }
}

impl Appliance {
    /// The appliance in `dir`, each byte of it checked.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Err(LoadError::NotBuilt { dir: dir.to_owned() });
            }
            Err(cause) => return Err(LoadError::Unreadable { path, cause }),
        };
        let manifest = parse(&path, &text)?;
        let part = |name, part: &Part| {
            let path = dir.join(name);
            match fs::read(&path) {
                Ok(bytes) if Part::of(&bytes) == *part => Ok(path),
                Ok(_) => Err(LoadError::Altered { path }),
                Err(cause) => Err(LoadError::Unreadable { path, cause }),
            }
        };
        let vmlinuz = part(VMLINUZ, &manifest.vmlinuz)?;
        let initrd = part(INITRD, &manifest.initrd)?;
        Ok(Self { vmlinuz, initrd, manifest })
    }
}

/// The format is looked at first, so that a newer manifest is called newer and not broken.
fn parse(path: &Path, text: &[u8]) -> Result<Manifest, LoadError> {
    let bad = |cause| LoadError::BadManifest { path: path.to_owned(), cause };
    let value: serde_json::Value = serde_json::from_slice(text).map_err(bad)?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format != u64::from(FORMAT) => {
            Err(LoadError::OtherFormat { path: path.to_owned(), format })
        }
        _ => serde_json::from_value(value).map_err(bad),
    }
}

impl Part {
    fn of(bytes: &[u8]) -> Self {
        let size = u64::try_from(bytes.len()).expect("a length of memory fits in 64 bits");
        Self { bytes: size, blake3: digest(bytes) }
    }
}

/// Writes the files, the manifest last. The old manifest goes first, so that files of two builds
/// are never taken for one appliance.
pub(crate) fn store(
    dir: &Path,
    vmlinuz: &[u8],
    initrd: &[u8],
    describe: impl FnOnce(Part, Part) -> Manifest,
) -> Result<Appliance, BuildError> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |cause| BuildError::Unwritable { path, cause }
    };
    fs::create_dir_all(dir).map_err(unwritable(dir))?;
    let manifest = describe(Part::of(vmlinuz), Part::of(initrd));
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is strings and numbers");
    match fs::remove_file(dir.join(MANIFEST)) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            return Err(BuildError::Unwritable { path: dir.join(MANIFEST), cause });
        }
        _ => {}
    }
    for (name, bytes) in [(VMLINUZ, vmlinuz), (INITRD, initrd), (MANIFEST, &text)] {
        let path = dir.join(name);
        replace(dir, &path, bytes).map_err(unwritable(&path))?;
    }
    Ok(Appliance { vmlinuz: dir.join(VMLINUZ), initrd: dir.join(INITRD), manifest })
}

/// The file as a whole or not at all, also after a loss of power.
fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    // The hypervisor reads them as another user.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(dir: &Path) -> Appliance {
        store(dir, b"kernel", b"initrd", |vmlinuz, initrd| Manifest {
            format: FORMAT,
            kernel_version: "6.1.0".to_owned(),
            kernel_origin: "/".to_owned(),
            machine: "x86_64".to_owned(),
            agent_blake3: digest(b"agent"),
            compression: Compression::Zstd,
            modules: vec!["a".to_owned()],
            built_in: Vec::new(),
            absent: Vec::new(),
            vmlinuz,
            initrd,
        })
        .unwrap()
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let appliance = stored(&dir.path().join("a/b"));
        assert_eq!(Appliance::load(&dir.path().join("a/b")).unwrap(), appliance);
        assert_eq!(fs::read(appliance.initrd).unwrap(), b"initrd");
    }

    #[test]
    fn one_changed_byte_in_either_file_is_noticed() {
        for name in [VMLINUZ, INITRD] {
            let dir = tempfile::tempdir().unwrap();
            stored(dir.path());
            let mut bytes = fs::read(dir.path().join(name)).unwrap();
            bytes[3] ^= 1;
            fs::write(dir.path().join(name), bytes).unwrap();
            let error = Appliance::load(dir.path()).unwrap_err();
            assert!(
                matches!(&error, LoadError::Altered { path } if path.ends_with(name)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_newer_manifest_is_called_newer() {
        let dir = tempfile::tempdir().unwrap();
        stored(dir.path());
        let path = dir.path().join(MANIFEST);
        let newer = fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 2");
        fs::write(&path, newer).unwrap();
        let error = Appliance::load(dir.path()).unwrap_err();
        assert!(matches!(error, LoadError::OtherFormat { format: 2, .. }), "{error}");
    }

    #[test]
    fn an_empty_directory_has_no_appliance() {
        let dir = tempfile::tempdir().unwrap();
        let error = Appliance::load(dir.path()).unwrap_err();
        assert!(matches!(error, LoadError::NotBuilt { .. }), "{error}");
        fs::write(dir.path().join(MANIFEST), "{}").unwrap();
        let error = Appliance::load(dir.path()).unwrap_err();
        assert!(matches!(error, LoadError::BadManifest { .. }), "{error}");
    }
}
