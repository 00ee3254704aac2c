//! What a kernel module says of itself: its section `.modinfo`, written by the kernel's build.
//! `depmod` reads the same, so a package that was only unpacked needs no `depmod`.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use object::{Object, ObjectSection};

use crate::error::BuildError;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModInfo {
    /// With `_`, as the kernel has it.
    pub name: String,
    /// Modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Names or aliases to load first if they exist.
    pub soft_before: Vec<String>,
    /// Names by which others ask for it; patterns left out.
    pub aliases: Vec<String>,
    pub machine: Option<object::Architecture>,
}

/// Modules are at most a few MiB; the largest graphics drivers some 20.
const MAX_MODULE: u32 = 256 * 1024 * 1024;

/// The module as the kernel takes it: not compressed.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    let bytes =
        fs::read(path).map_err(|cause| BuildError::Unreadable { path: path.to_owned(), cause })?;
    decompress(path, bytes).map_err(|cause| BuildError::Compressed { path: path.to_owned(), cause })
}

fn decompress(path: &Path, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let reader: Box<dyn Read + '_> = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new(bytes.as_slice(), true)),
        Some("zst") => Box::new(zstd::Decoder::new(bytes.as_slice())?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(bytes.as_slice())),
        _ => return Ok(bytes),
    };
    reader.take(u64::from(MAX_MODULE)).read_to_end(&mut plain)?;
    if u32::try_from(plain.len()).is_ok_and(|length| length >= MAX_MODULE) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than any module"));
    }
    Ok(plain)
}

pub(crate) fn parse(path: &Path, module: &[u8]) -> Result<ModInfo, BuildError> {
    let not_a_module = |cause| BuildError::NotAModule { path: path.to_owned(), cause };
    let elf = object::File::parse(module).map_err(|cause| not_a_module(Some(cause)))?;
    let section = elf.section_by_name(".modinfo").ok_or_else(|| not_a_module(None))?;
    let data = section.data().map_err(|cause| not_a_module(Some(cause)))?;
    let mut info = ModInfo { machine: Some(elf.architecture()), ..ModInfo::default() };
    for field in data.split(|&byte| byte == 0) {
        let text = String::from_utf8_lossy(field);
        let Some((key, value)) = text.split_once('=') else { continue };
        match key {
            "name" => info.name = underscored(value),
            "depends" => {
                info.depends.extend(value.split(',').filter(|n| !n.is_empty()).map(underscored));
            }
            "softdep" => info.soft_before.extend(before(value)),
            "alias" if !value.contains(['*', '?', '[']) => info.aliases.push(underscored(value)),
            _ => {}
        }
    }
    if info.name.is_empty() {
        // Before Linux 4.13 modules did not say their name.
        info.name = name_of(path);
    }
    Ok(info)
}

/// `pre: a b post: c` gives `a` and `b`.
fn before(softdep: &str) -> Vec<String> {
    softdep
        .split_whitespace()
        .skip_while(|&word| word != "pre:")
        .skip(1)
        .take_while(|&word| word != "post:")
        .map(underscored)
        .collect()
}

/// The kernel takes `-` and `_` in names for the same.
pub(crate) fn underscored(name: &str) -> String {
    name.trim().replace('-', "_")
}

/// The name of the module in a file `dm-mod.ko.xz`.
pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    underscored(name.split(".ko").next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_come_before_is_taken_of_a_soft_dependency() {
        assert_eq!(before("pre: crc32c blake2b-256"), ["crc32c", "blake2b_256"]);
        assert_eq!(before("pre: a post: b"), ["a"]);
        assert_eq!(before("post: b pre: a"), ["a"]);
        assert_eq!(before("post: b"), Vec::<String>::new());
    }

    #[test]
    fn a_file_name_gives_the_modules_name() {
        for (file, name) in [("dm-mod.ko", "dm_mod"), ("x/ext4.ko.zst", "ext4"), ("a.ko.xz", "a")] {
            assert_eq!(name_of(Path::new(file)), name);
        }
    }

    #[test]
    fn what_is_no_module_is_refused() {
        for bytes in [&b""[..], b"not elf", b"\x7fELF\x02\x01\x01"] {
            assert!(parse(Path::new("x.ko"), bytes).is_err());
        }
    }
}
