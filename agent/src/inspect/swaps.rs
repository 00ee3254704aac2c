//! Swap areas, from `/proc/swaps`.

use units::Bytes;
use wire::control::SwapArea;

use super::mounts::unescape;
use super::stack::Stack;
use super::tree::Tree;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    pub path: String,
    pub size: Bytes,
    pub used: Bytes,
    /// Negative: chosen by the kernel.
    pub priority: i32,
    pub kind: SwapKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapKind {
    Partition,
    File,
}

pub fn swaps(tree: &Tree) -> Vec<Swap> {
    let text = tree.text("proc/swaps").unwrap_or_default();
    text.lines().skip(1).filter_map(parse).collect()
}

/// `/dev/vda2  partition  999420  0  -2`; sizes in KiB.
fn parse(line: &str) -> Option<Swap> {
    let mut words = line.split_whitespace();
    let path = unescape(words.next()?);
    let kind = match words.next()? {
        "partition" => SwapKind::Partition,
        _ => SwapKind::File,
    };
    let mut kib = || words.next()?.parse::<u64>().ok().map(|kib| Bytes(kib * 1024));
    let (size, used) = (kib()?, kib()?);
    let priority = words.next()?.parse().ok()?;
    Some(Swap { path, size, used, priority, kind })
}

/// The whole disks that a swap area lies on; none for zram.
pub fn disks(stack: &Stack<'_>, swap: &Swap) -> Vec<String> {
    let ground = match swap.kind {
        SwapKind::Partition => match stack.by_path(&swap.path) {
            Some(name) => stack.ground(&name),
            None => return Vec::new(),
        },
        SwapKind::File => stack.ground_of_file(&swap.path),
    };
    ground.disks.into_iter().collect()
}

pub fn report(stack: &Stack<'_>, swaps: &[Swap]) -> Vec<SwapArea> {
    let area = |swap: &Swap| SwapArea {
        path: swap.path.clone(),
        used: swap.used,
        size: swap.size,
        disks: disks(stack, swap),
    };
    swaps.iter().map(area).collect()
}

#[cfg(test)]
mod tests {
    use super::super::mounts;
    use super::super::testing::FakeSystem;
    use super::*;

    #[test]
    fn swap_partitions_and_files_are_found_on_their_disks() {
        let system = FakeSystem::new();
        system
            .disk("vda", "254:0", 8)
            .partition("vda", "vda1", "254:1")
            .partition("vda", "vda2", "254:2");
        system.file(
            "proc/swaps",
            "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
             /dev/vda2                               partition\t1000\t\t8\t\t-2\n\
             /swap\\040file                           file\t\t2000\t\t0\t\t5\n",
        );
        system.mountinfo("20 1 254:1 / / rw - ext4 /dev/vda1 rw\n");
        let tree = system.tree();
        let mounts = mounts::own(&tree);
        let found = swaps(&tree);
        let areas = report(&Stack::new(&tree, &mounts), &found);
        assert_eq!(areas[0].used, Bytes(8192));
        assert_eq!(areas[0].disks, ["vda"]);
        assert_eq!(areas[1].path, "/swap file");
        assert_eq!(areas[1].disks, ["vda"]);
        assert_eq!((found[0].priority, found[1].priority), (-2, 5));
    }
}
