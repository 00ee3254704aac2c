//! Builds an appliance from Debian's cloud kernel and boots it in QEMU without KVM. Needs a
//! network once (apt), qemu-system-x86, busybox-static, xz-utils, zstd and dpkg.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use appliance::{
    Appliance, BuildError, BuildRequest, Compression, ExtraFile, KernelChoice, KernelTree,
    cache_dir,
};
use tempfile::TempDir;

const BUSYBOX: &str = "/bin/busybox";

fn debian() -> KernelChoice {
    KernelChoice::Debian { cache: cache_dir() }
}

fn request(kernel: KernelChoice, out: &Path) -> BuildRequest {
    BuildRequest {
        kernel,
        agent: BUSYBOX.into(),
        out: out.to_owned(),
        extra_modules: Vec::new(),
        extra_files: Vec::new(),
    }
}

/// Does what the agent does as the helper's init, in shell. Busybox as `/init` runs it.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
exec >/dev/ttyS0 2>&1
while read -r module; do
    insmod "$module"
done </modules/order
sleep 2
while read -r name _; do echo "loaded: $name"; done </proc/modules
for device in /dev/vda /dev/sda /dev/nvme0n1; do [ -b "$device" ] && echo "disk: $device"; done
for port in /sys/class/virtio-ports/*; do [ -c "/dev/${port##*/}" ] && echo "port: $(cat "$port/name")"; done
echo "released: $(uname -r)"
poweroff -f
"#;

#[test]
fn the_helper_boots_and_sees_its_disks_and_ports() {
    let dir = tempfile::tempdir().unwrap();
    let file = |path: &str, bytes| ExtraFile { path: path.to_owned(), bytes, executable: true };
    let busybox = fs::read(BUSYBOX).unwrap();
    let mut request = request(debian(), &dir.path().join("out"));
    request.extra_modules = vec!["virtio_balloon".to_owned()];
    request.extra_files =
        vec![file("/etc/init.d/rcS", INIT.as_bytes().to_vec()), file("/bin/busybox", busybox)];
    let built = appliance::build(&request).unwrap();
    assert_eq!(Appliance::load(&request.out).unwrap(), built);
    assert_eq!(built.manifest.compression, Compression::Zstd);

    let console = boot(dir.path(), &built);
    let has = |line: &str| console.lines().any(|seen| seen.trim() == line);
    for module in &built.manifest.modules {
        // Xen's drivers and those for a CPU's special instructions say so where there are none.
        let no_device = format!("insmod: can't insert '/modules/{module}.ko': No such device");
        assert!(has(&format!("loaded: {module}")) || has(&no_device), "{module}\n{console}");
    }
    for file_system in ["ext4", "xfs", "btrfs", "dm_mod"] {
        assert!(!has(&format!("loaded: {file_system}")), "{file_system}, which nothing needs");
    }
    for line in [
        "disk: /dev/vda",
        "disk: /dev/sda",
        "disk: /dev/nvme0n1",
        "port: org.causeway.0",
        &format!("released: {}", built.manifest.kernel_version),
    ] {
        assert!(has(line), "{line}\n{console}");
    }
}

/// What the console said until power-off.
fn boot(dir: &Path, appliance: &Appliance) -> String {
    let disk = |name: &str| {
        let path = dir.join(name);
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        format!("id={name},if=none,format=raw,file={}", path.display())
    };
    let (console, port) = (dir.join("console"), dir.join("port"));
    let status = Command::new("timeout")
        .args(["300", "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "512"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&appliance.vmlinuz)
        .arg("-initrd")
        .arg(&appliance.initrd)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .args(["-serial", &format!("file:{}", console.display())])
        .args(["-drive", &disk("blk"), "-device", "virtio-blk-pci,drive=blk"])
        .args([
            "-drive",
            &disk("scsi"),
            "-device",
            "virtio-scsi-pci",
            "-device",
            "scsi-hd,drive=scsi",
        ])
        .args(["-drive", &disk("nvme"), "-device", "nvme,drive=nvme,serial=1"])
        .args(["-device", "virtio-serial-pci"])
        .args(["-chardev", &format!("socket,id=c,server=on,wait=off,path={}", port.display())])
        .args(["-device", "virtserialport,chardev=c,name=org.causeway.0"])
        .status()
        .expect("timeout is there (coreutils)");
    let text = String::from_utf8_lossy(&fs::read(console).unwrap()).into_owned();
    assert!(status.success(), "{status}\n{text}");
    text
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let first = appliance::build(&request(debian(), &one)).unwrap();
    let second = appliance::build(&request(debian(), &two)).unwrap();
    assert_eq!(first.manifest, second.manifest);
    assert_eq!(fs::read(first.initrd).unwrap(), fs::read(second.initrd).unwrap());
    assert_eq!(
        fs::read(one.join("appliance.json")).unwrap(),
        fs::read(two.join("appliance.json")).unwrap()
    );
}

#[test]
fn compressed_modules_give_the_same_initramfs() {
    let dir = tempfile::tempdir().unwrap();
    let tree = unpacked(dir.path());
    let plain = appliance::build(&request(tree.clone(), &dir.path().join("plain"))).unwrap();
    let KernelChoice::Tree(root) = &tree else { unreachable!() };
    for (tool, folder) in [("xz", "fs"), ("zstd", "drivers/virtio"), ("gzip", "drivers/block")] {
        let compress = format!(
            "find . -path '*kernel/{folder}/*' -name '*.ko' | xargs -P2 -n8 {tool} -q {}",
            if tool == "zstd" { "--rm" } else { "-1" }
        );
        let status = Command::new("sh").args(["-c", &compress]).current_dir(root).status();
        assert!(status.unwrap().success(), "{tool}");
    }
    let packed = appliance::build(&request(tree.clone(), &dir.path().join("packed"))).unwrap();
    assert_eq!(packed.manifest, plain.manifest);
}

#[test]
fn a_kernel_without_what_is_needed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = unpacked(dir.path());
    let KernelChoice::Tree(root) = &tree else { unreachable!() };
    let out = dir.path().join("out");
    let remove = "rm $(find . -name virtio_console.ko -o -name virtio_ring.ko)";
    assert!(Command::new("sh").args(["-c", remove]).current_dir(root).status().unwrap().success());
    let error = appliance::build(&request(tree.clone(), &out)).unwrap_err();
    let BuildError::ModulesMissing { modules, .. } = &error else { panic!("{error}") };
    assert_eq!(*modules, ["virtio_console"]);
    assert!(error.hint().unwrap().contains("linux-image-cloud-amd64"));
    assert!(!out.exists());

    let mut asking = request(debian(), &out);
    asking.extra_modules = vec!["no-such-module".to_owned()];
    let error = appliance::build(&asking).unwrap_err();
    assert!(error.to_string().contains("no_such_module"), "{error}");
}

#[test]
fn an_agent_that_needs_libraries_or_is_no_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = unpacked(dir.path());
    let text = dir.path().join("text");
    fs::write(&text, "#!/bin/sh\n").unwrap();
    for agent in [PathBuf::from("/bin/ls"), text] {
        let mut request = request(tree.clone(), &dir.path().join("out"));
        request.agent = agent;
        let error = appliance::build(&request).unwrap_err();
        assert!(matches!(error, BuildError::AgentNotStatic { .. }), "{error}");
        assert!(error.hint().unwrap().contains("make programs"));
    }
}

#[test]
fn an_agent_of_another_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("agent");
    let mut agent = fs::read(BUSYBOX).unwrap();
    agent[18] = 183;
    fs::write(&other, agent).unwrap();
    let mut request = request(debian(), &dir.path().join("out"));
    request.agent = other;
    let error = appliance::build(&request).unwrap_err();
    assert!(matches!(error, BuildError::WrongMachine { .. }), "{error}");
}

/// A copy of Debian's kernel that a test may spoil.
fn unpacked(dir: &Path) -> KernelChoice {
    let KernelTree { version, vmlinuz, .. } = &debian().find().unwrap();
    let root: TempDir = tempfile::tempdir_in(dir).unwrap();
    let from = vmlinuz.parent().unwrap().parent().unwrap();
    for part in ["boot", "lib"] {
        let copied = Command::new("cp").arg("-a").arg(from.join(part)).arg(root.path()).status();
        assert!(copied.unwrap().success());
    }
    assert!(root.path().join("lib/modules").join(version).is_dir());
    KernelChoice::Tree(root.keep())
}
