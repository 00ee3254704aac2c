//! Which modules the helper needs, and in which order they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::BuildError;
use crate::kernel::KernelTree;
use crate::modinfo::{self, ModInfo, name_of, underscored};

/// Without these (as modules or built in) there is no helper: its disks, its channel to the
/// coordinator.
pub const REQUIRED_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console"];

/// What a guest of some cloud may have its disks or its network on. Taken where the kernel has it.
///
/// No file system and no layer such as LVM: the helper mounts nothing, and what it says about a copy
/// it reads itself. Their code would see a stranger's disk, and an emulated CPU needs seconds to load
/// it.
pub const WANTED_MODULES: &[&str] = &[
    // disks
    "virtio_scsi",
    "nvme",
    "ahci",
    "ata_piix",
    "sd_mod",
    "xen_blkfront",
    // network
    "virtio_net",
    "ena",
    "e1000e",
    // entropy at boot
    "virtio_rng",
];

/// What goes into the initramfs.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Each after what it needs.
    pub modules: Vec<Module>,
    /// Asked for and in the kernel itself.
    pub built_in: Vec<String>,
    /// Wanted, and the kernel has none.
    pub absent: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Module {
    pub name: String,
    /// Not compressed.
    pub bytes: Vec<u8>,
    pub machine: object::Architecture,
}

pub(crate) fn select(kernel: &KernelTree, extra: &[String]) -> Result<Selection, BuildError> {
    let index = Index::of(&kernel.modules)?;
    let extra: Vec<String> = extra.iter().map(|name| underscored(name)).collect();
    let needed: Vec<&str> =
        REQUIRED_MODULES.iter().copied().chain(extra.iter().map(String::as_str)).collect();
    let missing: Vec<String> =
        needed.iter().filter(|name| !index.has(name)).map(|name| (*name).to_owned()).collect();
    if !missing.is_empty() {
        let kernel = kernel.version.clone();
        return Err(BuildError::ModulesMissing { kernel, modules: missing });
    }
    let (present, absent): (Vec<&str>, Vec<&str>) =
        needed.iter().chain(WANTED_MODULES).copied().partition(|name| index.has(name));
    let (built_in, loadable): (Vec<&str>, Vec<&str>) =
        present.into_iter().partition(|name| index.built_in.contains(*name));

    let mut order = Order { index: &index, done: Vec::new(), open: Vec::new() };
    for name in loadable {
        order.add(name)?;
    }
    let modules = order.done.iter().map(|name| index.module(name)).collect::<Result<_, _>>()?;
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    Ok(Selection { modules, built_in: owned(built_in), absent: owned(absent) })
}

/// All modules of a kernel.
struct Index {
    by_name: BTreeMap<String, (PathBuf, ModInfo)>,
    /// Alias to names: several modules may do the same work, one in general and one fast.
    by_alias: BTreeMap<String, BTreeSet<String>>,
    built_in: BTreeSet<String>,
}

impl Index {
    fn of(modules: &Path) -> Result<Self, BuildError> {
        let mut paths = Vec::new();
        for folder in ["kernel", "updates", "extra"] {
            find_modules(&modules.join(folder), &mut paths)?;
        }
        paths.sort();
        let (mut by_name, mut by_alias) = (BTreeMap::new(), BTreeMap::<_, BTreeSet<_>>::new());
        for path in paths {
            let info = modinfo::parse(&path, &modinfo::read(&path)?)?;
            for alias in &info.aliases {
                by_alias.entry(alias.clone()).or_default().insert(info.name.clone());
            }
            by_name.insert(info.name.clone(), (path, info));
        }
        let path = modules.join("modules.builtin");
        let built_in = fs::read_to_string(&path)
            .map_err(|cause| BuildError::Unreadable { path, cause })?
            .lines()
            .map(|line| name_of(Path::new(line)))
            .collect();
        Ok(Self { by_name, by_alias, built_in })
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name) || self.built_in.contains(name)
    }

    /// The modules that go by this name or alias.
    fn providers(&self, name: &str) -> Vec<&str> {
        match self.by_name.get_key_value(name) {
            Some((name, _)) => vec![name],
            None => self.by_alias.get(name).into_iter().flatten().map(String::as_str).collect(),
        }
    }

    fn module(&self, name: &str) -> Result<Module, BuildError> {
        let (path, info) = &self.by_name[name];
        let machine = info.machine.expect("every module was parsed from an ELF file");
        Ok(Module { name: name.to_owned(), bytes: modinfo::read(path)?, machine })
    }
}

fn find_modules(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<(), BuildError> {
    let unreadable = |cause| BuildError::Unreadable { path: directory.to_owned(), cause };
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(unreadable)?.is_dir() {
            find_modules(&entry.path(), paths)?;
        } else if [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| name.ends_with(end)) {
            paths.push(entry.path());
        }
    }
    Ok(())
}

/// A depth-first walk: what a module needs comes before it.
struct Order<'a> {
    index: &'a Index,
    done: Vec<String>,
    /// From the module that was asked for down to this one.
    open: Vec<String>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), BuildError> {
        if self.done.iter().any(|done| done == name) || self.index.built_in.contains(name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            let mut modules = self.open.clone();
            modules.push(name.to_owned());
            return Err(BuildError::ModulesInACircle { modules });
        }
        let Some((_, info)) = self.index.by_name.get(name) else {
            let kernel = "in this tree".to_owned();
            return Err(BuildError::ModulesMissing { kernel, modules: vec![name.to_owned()] });
        };
        self.open.push(name.to_owned());
        // Asked for at run time, by a name: there will be no modprobe to look for it then.
        for wish in &info.soft_before {
            for provider in self.index.providers(wish) {
                if !self.open.iter().any(|open| open == provider) {
                    self.add(provider)?;
                }
            }
        }
        for dependency in &info.depends {
            self.add(dependency)?;
        }
        self.open.pop();
        self.done.push(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names = &'static [&'static str];

    /// Of each module: name, depends, soft_before, aliases.
    fn index(modules: &[(&str, Names, Names, Names)], built_in: Names) -> Index {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut index = Index {
            by_name: BTreeMap::new(),
            by_alias: BTreeMap::new(),
            built_in: built_in.iter().map(|&name| name.to_owned()).collect(),
        };
        for (name, depends, soft_before, aliases) in modules {
            let info = ModInfo {
                name: (*name).to_owned(),
                depends: owned(depends),
                soft_before: owned(soft_before),
                aliases: owned(aliases),
                machine: None,
            };
            for &alias in *aliases {
                index.by_alias.entry(alias.to_owned()).or_default().insert((*name).to_owned());
            }
            index.by_name.insert((*name).to_owned(), (PathBuf::new(), info));
        }
        index
    }

    fn order(index: &Index, names: &[&str]) -> Result<Vec<String>, BuildError> {
        let mut order = Order { index, done: Vec::new(), open: Vec::new() };
        for name in names {
            order.add(name)?;
        }
        Ok(order.done)
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let index = index(
            &[
                ("xfs", &["libcrc32c"], &[], &[]),
                ("btrfs", &["xor", "libcrc32c"], &[], &[]),
                ("libcrc32c", &[], &["crc32c"], &[]),
                ("crc32c_intel", &[], &[], &["crc32c"]),
                ("crc32c_generic", &[], &[], &["crc32c"]),
                ("xor", &[], &[], &[]),
            ],
            &[],
        );
        assert_eq!(
            order(&index, &["xfs", "btrfs"]).unwrap(),
            ["crc32c_generic", "crc32c_intel", "libcrc32c", "xfs", "xor", "btrfs"]
        );
    }

    #[test]
    fn what_is_built_in_or_softly_missing_is_left_out() {
        let index = index(&[("a", &["b"], &["nothing_like_it"], &[])], &["b"]);
        assert_eq!(order(&index, &["a"]).unwrap(), ["a"]);
    }

    #[test]
    fn a_circle_is_refused_unless_soft() {
        let hard = index(&[("a", &["b"], &[], &[]), ("b", &["a"], &[], &[])], &[]);
        assert!(matches!(order(&hard, &["a"]), Err(BuildError::ModulesInACircle { .. })));
        let soft = index(&[("a", &["b"], &[], &[]), ("b", &[], &["a"], &[])], &[]);
        assert_eq!(order(&soft, &["a"]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn a_module_that_needs_a_missing_one_is_refused() {
        let index = index(&[("a", &["gone"], &[], &[])], &[]);
        assert!(matches!(order(&index, &["a"]), Err(BuildError::ModulesMissing { .. })));
    }
}
