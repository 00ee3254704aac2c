//! Where a kernel comes from.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::debian;
use crate::error::BuildError;
use crate::initramfs::Compression;

/// Which kernel to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelChoice {
    /// This machine's own if it is in `/boot`, else Debian's cloud kernel.
    Any,
    /// What runs here, from `/boot` and `/lib/modules`.
    Running,
    /// Debian's cloud kernel, by `apt-get download` into the cache directory.
    Debian { cache: PathBuf },
    /// `boot/vmlinuz-VERSION` and `lib/modules/VERSION` under this directory, as a kernel package
    /// has them; of several versions the one with the greatest name.
    Tree(PathBuf),
}

/// A kernel that lies unpacked.
#[derive(Debug)]
pub struct KernelTree {
    /// As `uname -r` has it.
    pub version: String,
    /// Where it comes from, for the manifest: a package and its version, or a path.
    pub origin: String,
    pub vmlinuz: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
    /// The kernel's configuration, if it is there.
    pub config: Option<PathBuf>,
    /// Deleted with this.
    pub(crate) unpacked: Option<TempDir>,
}

/// `$CAUSEWAY_CACHE`, or `causeway` in the user's cache directory.
pub fn cache_dir() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CAUSEWAY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("causeway")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/causeway")))
        .unwrap_or_else(|| env::temp_dir().join("causeway-cache"))
}

impl KernelChoice {
    /// The kernel, unpacked.
    pub fn find(&self) -> Result<KernelTree, BuildError> {
        match self {
            Self::Any => Self::Running.find().or_else(|running| {
                debian::cloud_kernel(&cache_dir()).map_err(|debian| match debian {
                    // Neither: say both.
                    BuildError::NoTool { command, .. } | BuildError::Tool { command, .. } => {
                        let looked_at = vec![running.to_string(), format!("`{command}` failed")];
                        BuildError::NoKernel { looked_at }
                    }
                    other => other,
                })
            }),
            Self::Running => {
                let version = rustix::system::uname().release().to_string_lossy().into_owned();
                KernelTree::at(Path::new("/"), Some(&version))
            }
            Self::Debian { cache } => debian::cloud_kernel(cache),
            Self::Tree(root) => KernelTree::at(root, None),
        }
    }
}

impl KernelTree {
    pub(crate) fn at(root: &Path, version: Option<&str>) -> Result<Self, BuildError> {
        let lacks = |lacks| BuildError::NotAKernelTree { tree: root.to_owned(), lacks };
        let version = match version {
            Some(version) => version.to_owned(),
            None => greatest_version(&root.join("boot")).ok_or_else(|| lacks("boot/vmlinuz-*"))?,
        };
        let vmlinuz = root.join("boot").join(format!("vmlinuz-{version}"));
        if !vmlinuz.is_file() {
            return Err(lacks("boot/vmlinuz-VERSION"));
        }
        // Ubuntu lets only root read it.
        if let Err(cause) = fs::File::open(&vmlinuz) {
            return Err(BuildError::Unreadable { path: vmlinuz, cause });
        }
        let modules = [root.join("lib/modules"), root.join("usr/lib/modules")]
            .map(|directory| directory.join(&version))
            .into_iter()
            .find(|directory| directory.is_dir())
            .ok_or_else(|| lacks("lib/modules/VERSION"))?;
        let config = [root.join("boot").join(format!("config-{version}")), modules.join("config")]
            .into_iter()
            .find(|path| path.is_file());
        let origin = root.display().to_string();
        Ok(Self { version, origin, vmlinuz, modules, config, unpacked: None })
    }

    /// The best compression that this kernel says it can undo; gzip if it says nothing, which
    /// every distribution's kernel can.
    pub(crate) fn best_compression(&self) -> Result<Compression, BuildError> {
        let Some(path) = &self.config else { return Ok(Compression::Gzip) };
        let config = fs::read_to_string(path)
            .map_err(|cause| BuildError::Unreadable { path: path.clone(), cause })?;
        let has = |option: &str| config.lines().any(|line| line == format!("{option}=y"));
        if !has("CONFIG_BLK_DEV_INITRD") {
            return Err(BuildError::NoInitramfs { kernel: self.version.clone() });
        }
        Ok(if has("CONFIG_RD_ZSTD") {
            Compression::Zstd
        } else if has("CONFIG_RD_GZIP") {
            Compression::Gzip
        } else {
            Compression::None
        })
    }
}

fn greatest_version(boot: &Path) -> Option<String> {
    let names =
        fs::read_dir(boot).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(config: Option<&str>) -> (TempDir, KernelTree) {
        let dir = tempfile::tempdir().unwrap();
        for version in ["6.1.0-5", "6.1.0-50"] {
            fs::create_dir_all(dir.path().join("lib/modules").join(version)).unwrap();
            fs::create_dir_all(dir.path().join("boot")).unwrap();
            fs::write(dir.path().join("boot").join(format!("vmlinuz-{version}")), "k").unwrap();
        }
        if let Some(config) = config {
            fs::write(dir.path().join("boot/config-6.1.0-50"), config).unwrap();
        }
        let tree = KernelChoice::Tree(dir.path().to_owned()).find().unwrap();
        (dir, tree)
    }

    #[test]
    fn compression_is_what_the_kernel_can_undo() {
        for (config, expected) in [
            (None, Compression::Gzip),
            (
                Some("CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y"),
                Compression::Zstd,
            ),
            (
                Some("CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_GZIP=y\n# CONFIG_RD_ZSTD is not set"),
                Compression::Gzip,
            ),
            (Some("CONFIG_BLK_DEV_INITRD=y"), Compression::None),
        ] {
            let (_dir, tree) = tree(config);
            assert_eq!(tree.version, "6.1.0-50");
            assert_eq!(tree.best_compression().unwrap(), expected, "{config:?}");
        }
    }

    #[test]
    fn a_kernel_without_initramfs_is_refused() {
        let (_dir, tree) = tree(Some("CONFIG_RD_GZIP=y"));
        assert!(matches!(tree.best_compression(), Err(BuildError::NoInitramfs { .. })));
    }

    #[test]
    fn a_directory_that_is_no_kernel_tree_says_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let choice = KernelChoice::Tree(dir.path().to_owned());
        let error = choice.find().unwrap_err();
        assert!(error.to_string().contains("boot/vmlinuz-*"), "{error}");
        fs::create_dir(dir.path().join("boot")).unwrap();
        fs::write(dir.path().join("boot/vmlinuz-1"), "k").unwrap();
        let error = choice.find().unwrap_err();
        assert!(error.to_string().contains("lib/modules"), "{error}");
        assert!(error.hint().is_some());
    }
}
