//! A helper that does what it is told over its first channel: bytes to and from its first disk.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use model::{Cpu, DiskBus, DiskFormat, Firmware, NetworkRef, VmId};
use site::{ApplianceFiles, ApplianceRef, NewDisk, NewNic, PlaceholderSpec, Site as _};
use site_libvirt::LibvirtSite;
use units::{Bytes, Digest, DiskNo, Epoch};
use uuid::Uuid;

/// `send N` and `take N` move N blocks of 64 KiB of the first disk; every answer is one line.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
# Which one needs which differs between kernels: what cannot go in yet goes in later.
for round in 1 2 3 4 5 6; do
    for module in /modules/*.ko; do /bin/busybox insmod "$module" 2>/dev/null; done
done
until port=$(/bin/busybox grep -lx org.causeway.0 /sys/class/virtio-ports/*/name 2>/dev/null); do
    /bin/busybox sleep 0.1
done
port=/dev/$(/bin/busybox basename "$(/bin/busybox dirname "$port")")
echo "helper ready on $port: $(cat /sys/block/vda/serial)"
exec 3<>"$port"
while :; do
    # Nothing to read while no host is connected.
    if ! read -r verb blocks <&3; then /bin/busybox sleep 0.1; continue; fi
    echo "told to $verb $blocks"
    case $verb in
        hello) echo "serials $(for serial in /sys/block/vd*/serial; do echo "$(cat "$serial")"; done | /bin/busybox tr '\n' ' ')" >&3 ;;
        send) /bin/busybox dd if=/dev/vda bs=65536 count="$blocks" 2>/dev/null >&3 ;;
        take) /bin/busybox dd of=/dev/vda bs=65536 count="$blocks" iflag=fullblock conv=fsync 2>/dev/null <&3
              echo took >&3 ;;
    esac
done
"#;

const MODULES: &[&str] = &[
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "drivers/char/virtio_console",
];

/// Kernel and initramfs, made once for all tests.
pub fn appliance() -> ApplianceFiles {
    static MADE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    let (kernel, initrd) = MADE.get_or_init(|| {
        let kernel = kernel();
        let initrd = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-helper.initrd");
        // Another run of these tests may be reading it.
        let unfinished = initrd.with_extension(std::process::id().to_string());
        make_initrd(&kernel, &unfinished);
        fs::rename(unfinished, &initrd).unwrap();
        (kernel.vmlinuz, initrd)
    });
    let mut hasher = blake3::Hasher::new();
    for file in [kernel, initrd] {
        hasher.update(&fs::read(file).unwrap());
    }
    ApplianceFiles {
        kernel: kernel.clone(),
        initrd: initrd.clone(),
        digest: Digest(*hasher.finalize().as_bytes()),
        pool: "images".to_owned(),
    }
}

struct Kernel {
    vmlinuz: PathBuf,
    modules: PathBuf,
}

/// Debian's cloud kernel: where the lab keeps it, or else from apt.
fn kernel() -> Kernel {
    let cache = std::env::var_os("CAUSEWAY_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/causeway-lab"),
        PathBuf::from,
    );
    let own = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-kernel");
    let found =
        [&cache.join("kernel/debian-cloud"), &own].into_iter().find_map(|dir| found_in(dir));
    found.unwrap_or_else(|| {
        let script = r#"set -eu
            rm -rf "$OWN"; mkdir -p "$OWN"; cd "$OWN"
            package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -1)
            apt-get -qq download "$package"
            dpkg-deb -x ./*.deb . && rm ./*.deb"#;
        let status = Command::new("sh").args(["-c", script]).env("OWN", &own).status().unwrap();
        assert!(status.success(), "no kernel from apt: run `apt-get update`");
        found_in(&own).expect("the package holds a kernel")
    })
}

fn found_in(dir: &Path) -> Option<Kernel> {
    let boot = fs::read_dir(dir.join("boot")).ok()?.flatten();
    let vmlinuz = boot.map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    })?;
    let version = vmlinuz.file_name()?.to_string_lossy().strip_prefix("vmlinuz-")?.to_owned();
    Some(Kernel { modules: dir.join("lib/modules").join(version).join("kernel"), vmlinuz })
}

fn make_initrd(kernel: &Kernel, initrd: &Path) {
    let tree = tempfile::tempdir().unwrap();
    for below in ["bin", "modules"] {
        fs::create_dir(tree.path().join(below)).unwrap();
    }
    fs::copy("/bin/busybox", tree.path().join("bin/busybox")).expect("busybox-static");
    for name in ["sh", "cat"] {
        std::os::unix::fs::symlink("busybox", tree.path().join("bin").join(name)).unwrap();
    }
    fs::write(tree.path().join("init"), INIT).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(tree.path().join("init"), mode).unwrap();
    for module in MODULES {
        let name = Path::new(module).file_name().unwrap().to_string_lossy().into_owned();
        let to = tree.path().join("modules").join(format!("{name}.ko"));
        fs::copy(kernel.modules.join(format!("{module}.ko")), to).unwrap();
    }
    let names = "init\nbin\nbin/busybox\nbin/sh\nbin/cat\nmodules\n".to_owned();
    let modules = fs::read_dir(tree.path().join("modules")).unwrap().flatten();
    let names = modules.fold(names, |names, entry| {
        format!("{names}modules/{}\n", entry.file_name().to_string_lossy())
    });
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(tree.path())
        .stdin(Stdio::piped())
        .stdout(fs::File::create(initrd).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cpio.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    assert!(cpio.wait().unwrap().success());
}

/// A helper that runs.
pub async fn start(site: &LibvirtSite, name: &str) -> PlaceholderSpec {
    let mut spec = spec(name);
    spec.appliance = site.put_appliance(&appliance()).await.unwrap();
    for disk in &spec.disks {
        site.create_disk(&spec.migration, disk).await.unwrap();
    }
    site.define_placeholder(&spec).await.unwrap();
    site.start_helper(spec.vm).await.unwrap();
    spec
}

/// A VM to come, with one disk of 64 MiB and one of an odd size.
pub fn spec(name: &str) -> PlaceholderSpec {
    let disk = |no: u16, target: &str, size: Bytes| NewDisk {
        no: DiskNo(no),
        pool: "images".to_owned(),
        volume: format!("{name}-{target}"),
        size,
        format: DiskFormat::Raw,
        target: target.to_owned(),
        bus: DiskBus::Virtio,
        serial: Some(format!("{name}-{no}")),
        address: None,
        boot_order: None,
    };
    PlaceholderSpec {
        migration: format!("{name}-1").parse().unwrap(),
        epoch: Epoch(1),
        vm: VmId(Uuid::new_v4()),
        name: name.to_owned(),
        vcpus: 1,
        memory: Bytes::mib(256),
        arch: "x86_64".to_owned(),
        machine: "pc".to_owned(),
        cpu: Cpu::Default,
        firmware: Firmware::Bios,
        disks: vec![disk(0, "vda", Bytes::mib(64)), disk(1, "vdb", Bytes::mib(1) + Bytes(512))],
        nics: vec![NewNic {
            mac: "52:54:00:00:00:02".to_owned(),
            model: "virtio".to_owned(),
            network: NetworkRef::Network("default".to_owned()),
            address: None,
        }],
        autostart: false,
        appliance: ApplianceRef { kernel: String::new(), initrd: String::new() },
        channels: 2,
        helper_nic: None,
        helper_args: Vec::new(),
    }
}
