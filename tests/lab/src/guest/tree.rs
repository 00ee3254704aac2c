//! A file tree in memory: hashed to name what is built from it, written to a directory for
//! `mke2fs -d`, or packed as an initramfs.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::run::run;

/// Absolute paths without the leading slash; parents come before their children.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    /// User and group of what does not belong to root.
    owners: BTreeMap<String, u32>,
}

#[derive(Debug, Clone)]
enum Node {
    Dir { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Link { to: String },
}

impl Tree {
    pub fn dir(&mut self, path: &str, mode: u32) {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Dir { mode });
    }

    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::File { mode, bytes: bytes.into() });
    }

    pub fn link(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Link { to: to.to_owned() });
    }

    /// Gives a path and all that is below it to the user and group `id`.
    pub fn give(&mut self, path: &str, id: u32) {
        let below = |node: &&String| {
            node.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let given = self.nodes.keys().filter(below);
        self.owners.extend(given.map(|path| (path.clone(), id)));
    }

    /// A file of this machine, with its permissions.
    pub fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, bytes);
        Ok(())
    }

    /// A program of this machine, into `bin`, and the shared libraries it needs.
    pub fn program(&mut self, name: &str) -> Result<()> {
        let path = find_program(name)?;
        let file = path.file_name().and_then(|name| name.to_str()).context("odd program name")?;
        self.copy(&format!("bin/{file}"), &path)?;
        // A static program makes ldd fail and needs nothing.
        let listed = run(Command::new("ldd").arg(&path)).unwrap_or_default();
        for library in listed.lines().filter_map(library_of) {
            // Merged or not, /lib is where loaders look.
            let place = library.strip_prefix("/usr").unwrap_or(library);
            self.copy(place.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    /// Names this exact tree.
    #[must_use]
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (path, node) in &self.nodes {
            let (kind, mode, bytes) = node.parts();
            let numbers = [kind, mode, self.owner(path)].map(u32::to_le_bytes).concat();
            for part in [path.as_bytes(), &numbers, bytes] {
                hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
                hasher.update(part);
            }
        }
        hasher.finalize()
    }

    /// Writes the tree into `dir`, which must exist.
    pub fn write_to(&self, dir: &Path) -> Result<()> {
        for (path, node) in &self.nodes {
            let target = dir.join(path);
            let written = match node {
                Node::Dir { .. } => fs::create_dir_all(&target),
                Node::File { bytes, .. } => fs::write(&target, bytes),
                Node::Link { to } => symlink(to, &target),
            };
            let owner = Some(self.owner(path));
            let written = written.and_then(|()| lchown(&target, owner, owner));
            let written = written.and_then(|()| match node {
                Node::Link { .. } => Ok(()),
                Node::Dir { mode } | Node::File { mode, .. } => {
                    fs::set_permissions(&target, fs::Permissions::from_mode(*mode))
                }
            });
            written.with_context(|| format!("cannot write {}", target.display()))?;
        }
        Ok(())
    }

    /// The tree as an uncompressed initramfs (cpio "newc").
    pub fn cpio(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, node)) in (1_u32..).zip(&self.nodes) {
            cpio_entry(&mut out, number, self.owner(path), path, node)?;
        }
        cpio_entry(&mut out, 0, 0, "TRAILER!!!", &Node::Dir { mode: 0 })?;
        out.resize(out.len().next_multiple_of(512), 0);
        Ok(out)
    }

    /// The tree as a compressed initramfs.
    pub fn initrd(&self) -> Result<Vec<u8>> {
        let scratch = tempfile::NamedTempFile::new()?;
        fs::write(scratch.path(), self.cpio()?)?;
        let mut zstd = Command::new("zstd");
        let output = zstd.args(["-q", "-10", "-c"]).arg(scratch.path()).output();
        let output = output.context("cannot run zstd")?;
        if !output.status.success() {
            bail!("zstd: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.stdout)
    }

    fn owner(&self, path: &str) -> u32 {
        self.owners.get(path).copied().unwrap_or(0)
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Dir { mode: 0o755 });
        }
    }
}

impl Node {
    /// Type bits, permissions and content, as cpio has them.
    fn parts(&self) -> (u32, u32, &[u8]) {
        match self {
            Self::Dir { mode } => (0o040_000, *mode, &[]),
            Self::File { mode, bytes } => (0o100_000, *mode, bytes),
            Self::Link { to } => (0o120_000, 0o777, to.as_bytes()),
        }
    }
}

fn cpio_entry(out: &mut Vec<u8>, number: u32, owner: u32, path: &str, node: &Node) -> Result<()> {
    let (kind, mode, bytes) = node.parts();
    let size = u32::try_from(bytes.len()).context("a file of 4 GiB does not fit in a cpio")?;
    let name = u32::try_from(path.len() + 1)?;
    out.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, size, dev, dev, rdev, rdev, name size, check
    for field in [number, kind | mode, owner, owner, 1, 0, size, 0, 0, 0, 0, name, 0] {
        write!(out, "{field:08x}")?;
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

/// The path in a line of `ldd`, if it has one.
fn library_of(line: &str) -> Option<&str> {
    let path = line.split(" => ").last()?.split_whitespace().next()?;
    path.starts_with('/').then_some(path)
}

/// Where `name` (or a path) is on this machine.
pub fn find_program(name: &str) -> Result<PathBuf> {
    for dir in ["", "/usr/bin", "/usr/sbin", "/bin", "/sbin"] {
        let path = Path::new(dir).join(name);
        if path.is_absolute() && path.is_file() {
            return Ok(path);
        }
    }
    bail!("{name} is not installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpio_is_read_by_cpio() {
        let mut tree = Tree::default();
        tree.file("etc/deep/file", 0o640, "content");
        tree.link("etc/link", "deep/file");
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.cpio");
        fs::write(&archive, tree.cpio().unwrap()).unwrap();
        let mut cpio = Command::new("busybox");
        run(cpio.args(["cpio", "-i", "-F"]).arg(&archive).current_dir(dir.path())).unwrap();
        assert_eq!(fs::read(dir.path().join("etc/link")).unwrap(), b"content");
        let mode = fs::metadata(dir.path().join("etc/deep/file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn a_tree_is_named_by_all_that_is_in_it() {
        let mut tree = Tree::default();
        tree.file("a", 0o644, "x");
        let first = tree.hash();
        tree.file("a", 0o755, "x");
        let second = tree.hash();
        tree.file("a", 0o755, "y");
        assert!(first != second && second != tree.hash());
    }

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        assert_eq!(library_of("\tlibz.so.1 => /lib/libz.so.1 (0x7f)"), Some("/lib/libz.so.1"));
        assert_eq!(library_of("\t/lib64/ld.so.2 (0x7f)"), Some("/lib64/ld.so.2"));
        assert_eq!(library_of("\tlinux-vdso.so.1 (0x7f)"), None);
    }
}
