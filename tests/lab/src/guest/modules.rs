//! A part of a kernel's modules, as the initramfs and the small guest need it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, bail};

use super::tree::Tree;
use crate::kernel::Kernel;

/// The modules of a kernel by name, with their dependencies.
pub(super) struct Modules<'a> {
    kernel: &'a Kernel,
    /// Path below the modules' directory, and the paths it depends on, by name with `-` as `_`.
    known: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl<'a> Modules<'a> {
    pub fn of(kernel: &'a Kernel) -> Result<Self> {
        let read = |name: &str| {
            let path = kernel.modules_dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut known = BTreeMap::new();
        for line in read("modules.dep")?.lines() {
            let (path, needs) = line.split_once(':').context("modules.dep is malformed")?;
            let needs = needs.split_whitespace().map(ToOwned::to_owned).collect();
            known.insert(name_of(path), (path.to_owned(), needs));
        }
        let built_in = read("modules.builtin")?.lines().map(name_of).collect();
        Ok(Self { kernel, known, built_in })
    }

    /// Puts the wanted modules, and what they depend on, into a tree, with an index for `modprobe`.
    /// Those that are built into the kernel are there already.
    pub fn add_to(&self, tree: &mut Tree, wanted: &[&str]) -> Result<()> {
        let mut chosen = BTreeSet::new();
        for name in wanted {
            self.choose(&name_of(name), &mut chosen)?;
        }
        let place = format!("lib/modules/{}", self.kernel.version);
        let mut index = String::new();
        for name in &chosen {
            let (path, needs) = &self.known[name];
            tree.copy(&format!("{place}/{path}"), &self.kernel.modules_dir.join(path))?;
            index += &format!("{path}: {}\n", needs.join(" "));
        }
        tree.file(&format!("{place}/modules.dep"), 0o644, index);
        let aliases = fs::read_to_string(self.kernel.modules_dir.join("modules.alias"))?;
        let of_chosen = |line: &&str| {
            line.rsplit(' ').next().is_some_and(|name| chosen.contains(&name_of(name)))
        };
        let aliases: Vec<_> = aliases.lines().filter(of_chosen).collect();
        tree.file(&format!("{place}/modules.alias"), 0o644, aliases.join("\n") + "\n");
        for name in ["modules.builtin", "modules.order"] {
            tree.copy(&format!("{place}/{name}"), &self.kernel.modules_dir.join(name))?;
        }
        Ok(())
    }

    fn choose(&self, name: &str, chosen: &mut BTreeSet<String>) -> Result<()> {
        if self.built_in.contains(name) || !chosen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some((_, needs)) = self.known.get(name) else {
            bail!("kernel {} has no module {name}", self.kernel.version);
        };
        needs.iter().try_for_each(|path| self.choose(&name_of(path), chosen))
    }
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.trim_end_matches(".ko").replace('-', "_")
}
