//! A made-up system in a temporary folder.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::tree::Tree;

pub struct FakeSystem {
    dir: TempDir,
}

impl Default for FakeSystem {
    fn default() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

impl FakeSystem {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn tree(&self) -> Tree {
        Tree::at(self.dir.path())
    }

    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    pub fn mountinfo(&self, text: &str) -> &Self {
        self.file("proc/self/mountinfo", text)
    }

    /// A virtio disk of `sectors` times 512 bytes.
    pub fn disk(&self, name: &str, number: &str, sectors: u64) -> &Self {
        self.disk_at(name, number, sectors, "pci0000:00/0000:00:04.0/virtio1")
    }

    pub fn disk_at(&self, name: &str, number: &str, sectors: u64, at: &str) -> &Self {
        let home = format!("sys/devices/{at}/block/{name}");
        self.file(&format!("{home}/size"), sectors.to_string());
        self.file(&format!("{home}/dev"), number);
        self.file(&format!("{home}/ro"), "0");
        self.file(&format!("{home}/removable"), "0");
        self.file(&format!("{home}/queue/logical_block_size"), "512");
        self.link(&format!("sys/block/{name}"), &format!("../devices/{at}/block/{name}"));
        self.class(name, number, &format!("{at}/block/{name}"))
    }

    pub fn partition(&self, disk: &str, name: &str, number: &str) -> &Self {
        let at = fs::read_link(self.dir.path().join(format!("sys/class/block/{disk}"))).unwrap();
        let at = at.to_string_lossy().strip_prefix("../../devices/").unwrap().to_owned();
        self.file(&format!("sys/devices/{at}/{name}/partition"), "1");
        self.file(&format!("sys/devices/{at}/{name}/dev"), number);
        self.class(name, number, &format!("{at}/{name}"))
    }

    /// A device-mapper or RAID device on others.
    pub fn stacked(&self, name: &str, number: &str, on: &[&str]) -> &Self {
        self.file(&format!("sys/devices/virtual/block/{name}/dev"), number);
        self.class(name, number, &format!("virtual/block/{name}"));
        for slave in on {
            self.file(&format!("sys/devices/virtual/block/{name}/slaves/{slave}"), "");
            self.file(&format!("sys/class/block/{slave}/holders/{name}"), "");
        }
        self
    }

    pub fn mapper(&self, name: &str, title: &str) -> &Self {
        self.file(&format!("sys/class/block/{name}/dm/name"), title)
    }

    pub fn looped(&self, name: &str, number: &str, file: &str) -> &Self {
        self.file(&format!("sys/devices/virtual/block/{name}/loop/backing_file"), file);
        self.file(&format!("sys/devices/virtual/block/{name}/dev"), number);
        self.class(name, number, &format!("virtual/block/{name}"))
    }

    fn class(&self, name: &str, number: &str, at: &str) -> &Self {
        self.link(&format!("sys/class/block/{name}"), &format!("../../devices/{at}"));
        self.link(&format!("sys/dev/block/{number}"), &format!("../../devices/{at}"))
    }
}
