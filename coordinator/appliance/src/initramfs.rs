//! The initramfs: an archive in the kernel's `newc` format, compressed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc::{Builder, trailer};
use serde::{Deserialize, Serialize};

use crate::error::BuildError;
use crate::modules::Selection;

/// A file of the initramfs beyond what it always has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraFile {
    /// Absolute, without `.` and `..`. Directories above it are made.
    pub path: String,
    pub bytes: Vec<u8>,
    pub executable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Paths without the leading `/` to what is there. Sorted, so that a directory comes before what
/// is in it.
type Tree<'a> = BTreeMap<String, Node<'a>>;

enum Node<'a> {
    Directory,
    File {
        bytes: &'a [u8],
        executable: bool,
    },
    /// Major and minor number.
    CharDevice(u32, u32),
}

pub(crate) fn pack(
    agent: &[u8],
    selection: &Selection,
    extra: &[ExtraFile],
    compression: Compression,
) -> Result<Vec<u8>, BuildError> {
    let order: String =
        selection.modules.iter().map(|module| format!("/modules/{}.ko\n", module.name)).collect();
    let mut tree = Tree::new();
    for directory in ["dev", "modules", "mnt", "proc", "run", "sys", "tmp"] {
        tree.insert(directory.to_owned(), Node::Directory);
    }
    // The kernel opens the console for the first process before anything is mounted.
    tree.insert("dev/console".to_owned(), Node::CharDevice(5, 1));
    tree.insert("dev/null".to_owned(), Node::CharDevice(1, 3));
    tree.insert("init".to_owned(), Node::File { bytes: agent, executable: true });
    tree.insert(
        "modules/order".to_owned(),
        Node::File { bytes: order.as_bytes(), executable: false },
    );
    for module in &selection.modules {
        let file = Node::File { bytes: &module.bytes, executable: false };
        tree.insert(format!("modules/{}.ko", module.name), file);
    }
    for file in extra {
        let path = path_in_tree(&file.path)?;
        for (at, _) in path.match_indices('/') {
            tree.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
        let node = Node::File { bytes: &file.bytes, executable: file.executable };
        if tree.insert(path.to_owned(), node).is_some() {
            return Err(BuildError::BadExtraFile { path: file.path.clone() });
        }
    }
    compress(&archive(&tree)?, compression).map_err(|cause| BuildError::TooLarge { cause })
}

fn path_in_tree(path: &str) -> Result<&str, BuildError> {
    let inside = path.strip_prefix('/').filter(|inside| {
        inside.split('/').all(|part| !["", ".", ".."].contains(&part) && !part.contains('\0'))
    });
    inside.ok_or_else(|| BuildError::BadExtraFile { path: path.to_owned() })
}

fn archive(tree: &Tree<'_>) -> Result<Vec<u8>, BuildError> {
    let too_large = |cause| BuildError::TooLarge { cause };
    let mut archive = Vec::new();
    for (inode, (path, node)) in (1_u32..).zip(tree) {
        let (mode, bytes, device): (u32, &[u8], _) = match node {
            Node::Directory => (0o040_755, &[], (0, 0)),
            Node::File { bytes, executable: true } => (0o100_755, bytes, (0, 0)),
            Node::File { bytes, executable: false } => (0o100_644, bytes, (0, 0)),
            Node::CharDevice(major, minor) => (0o020_600, &[], (*major, *minor)),
        };
        let links = if matches!(node, Node::Directory) { 2 } else { 1 };
        let length = u32::try_from(bytes.len())
            .map_err(|_| too_large(io::Error::from(io::ErrorKind::FileTooLarge)))?;
        let header = Builder::new(path)
            .ino(inode)
            .mode(mode)
            .nlink(links)
            .mtime(0)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let mut entry = header.write(&mut archive, length);
        entry.write_all(bytes).and_then(|()| entry.finish().map(drop)).map_err(too_large)?;
    }
    trailer(&mut archive).map_err(too_large)?;
    Ok(archive)
}

/// The helper boots once per migration, and its kernel unpacks this on one core, perhaps an
/// emulated one: a fast decoder matters, the last per cent of size does not.
fn compress(archive: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(archive.to_vec()),
        Compression::Gzip => {
            let mut encoder =
                flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(archive)?;
            encoder.finish()
        }
        Compression::Zstd => {
            // The kernel wants the checksum off or right, and a window of at most 128 MiB; level
            // 9 uses 4 MiB.
            zstd::bulk::compress(archive, 9)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use crate::modules::Module;

    fn selection() -> Selection {
        let module = |name: &str| Module {
            name: name.to_owned(),
            bytes: name.as_bytes().to_vec(),
            machine: object::Architecture::X86_64,
        };
        Selection {
            modules: vec![module("zlib"), module("btrfs")],
            built_in: Vec::new(),
            absent: Vec::new(),
        }
    }

    fn file(path: &str) -> ExtraFile {
        ExtraFile { path: path.to_owned(), bytes: b"x".to_vec(), executable: true }
    }

    #[test]
    fn the_archive_holds_agent_order_modules_and_devices() {
        let packed = pack(b"agent", &selection(), &[file("/a/b/c")], Compression::None).unwrap();
        let mut rest: Box<dyn Read> = Box::new(io::Cursor::new(packed));
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            let entry = reader.entry();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
            let device = (entry.rdev_major(), entry.rdev_minor());
            seen.push((entry.name().to_owned(), entry.mode(), device, bytes));
            rest = reader.finish().unwrap();
        }
        let find = |name: &str| seen.iter().find(|(seen, ..)| seen == name).unwrap();
        assert_eq!(*find("init"), ("init".to_owned(), 0o100_755, (0, 0), b"agent".to_vec()));
        assert_eq!(find("modules/order").3, b"/modules/zlib.ko\n/modules/btrfs.ko\n");
        assert_eq!(find("modules/btrfs.ko").3, b"btrfs");
        assert_eq!((find("dev/console").1, find("dev/console").2), (0o020_600, (5, 1)));
        assert_eq!(find("dev/null").2, (1, 3));
        assert_eq!((find("a/b").1, find("a/b/c").1), (0o040_755, 0o100_755));
        let names: Vec<_> = seen.iter().map(|(name, ..)| name.clone()).collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn a_file_that_would_leave_the_tree_or_replace_another_is_refused() {
        for path in ["", "/", "a", "/../a", "/a/./b", "/a//b", "/init", "/modules/zlib.ko", "/a\0b"]
        {
            let packed = pack(b"agent", &selection(), &[file(path)], Compression::None);
            assert!(matches!(packed, Err(BuildError::BadExtraFile { .. })), "{path:?}");
        }
    }

    #[test]
    fn every_compression_gives_the_archive_back() {
        let plain = pack(b"agent", &selection(), &[], Compression::None).unwrap();
        let gzip = pack(b"agent", &selection(), &[], Compression::Gzip).unwrap();
        let zstd = pack(b"agent", &selection(), &[], Compression::Zstd).unwrap();
        let mut unzipped = Vec::new();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut unzipped).unwrap();
        assert_eq!(unzipped, plain);
        assert_eq!(zstd::decode_all(&zstd[..]).unwrap(), plain);
    }
}
