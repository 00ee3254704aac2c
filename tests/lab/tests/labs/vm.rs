//! VMs boot, get their address, and reach what their site lets them reach.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Boot, Cpu, Disk, Format, Lab, QemuUser, Scenario, Site, SiteSpec, Vm, VmSpec};

/// A guest without acceleration on a busy machine; nothing is asserted about it.
const PATIENCE: Duration = Duration::from_secs(180);

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
for disk in /sys/block/vd*; do
    [ -e $disk ] && echo "disk ${disk##*/} $(cat $disk/size) $(cat $disk/serial)"
done
for port in /sys/class/virtio-ports/*/name; do [ -e $port ] && echo "channel $(cat $port)"; done
ip link set eth0 up
udhcpc -i eth0 -n -q -s /lease
gone=$(grep -o 'other=[0-9.]*' /proc/cmdline)
ping -c 1 -W 2 ${gone#other=} > /dev/null && echo "met the other" || echo "alone"
grep -q '^flags.* aes ' /proc/cpuinfo && echo "cpu has aes" || echo "cpu has no aes"
hostname | nc 10.99.0.1 7000 &
nc -ll -p 7 -e cat &
# Up is who can be reached: a listener in the background may come after the word.
until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':0007 [0-9A-F:]* 0A '; do sleep 1; done
echo "up as $(hostname)"
while :; do sleep 1; done
"#;

const LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface && ip link set $interface up
ip route add default via $router
hostname $(grep -o 'name=[a-z]*' /proc/cmdline | cut -d= -f2)
echo "address $ip"
"#;

/// An initramfs of busybox and what virtio needs.
fn initramfs(dir: &Path) -> PathBuf {
    let kernel = lab::kernel::debian_cloud().unwrap();
    let root = dir.join("root");
    for part in ["bin", "proc", "sys", "dev", "modules"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    for (name, script) in [("init", INIT), ("lease", LEASE)] {
        fs::write(root.join(name), script).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut order: Vec<String> = Vec::new();
    let index = fs::read_to_string(kernel.modules_dir.join("modules.dep")).unwrap();
    for wanted in ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console"] {
        let start = format!("/{wanted}.ko");
        let line = index.lines().find(|line| line.split(':').next().unwrap().ends_with(&start));
        let (module, needs) = line.unwrap().split_once(':').unwrap();
        // Needs come nearest first.
        for path in needs.split_whitespace().rev().chain([module]) {
            let name = path.rsplit('/').next().unwrap().to_owned();
            if !order.contains(&name) {
                fs::copy(kernel.modules_dir.join(path), root.join("modules").join(&name)).unwrap();
                order.push(name);
            }
        }
    }
    fs::write(root.join("modules/order"), order.join("\n")).unwrap();
    let packed = dir.join("initramfs");
    let mut cpio = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(File::create(&packed).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = Command::new("busybox").arg("find").current_dir(&root).output().unwrap().stdout;
    cpio.stdin.take().unwrap().write_all(&names).unwrap();
    assert!(cpio.wait().unwrap().success());
    packed
}

fn spec(name: &str, initrd: &Path, other: &str) -> VmSpec {
    let kernel = lab::kernel::debian_cloud().unwrap();
    let boot = Boot::Kernel {
        vmlinuz: kernel.vmlinuz,
        initrd: initrd.to_owned(),
        cmdline: format!("console=ttyS0 quiet name={name} other={other}"),
    };
    VmSpec::new(name, boot)
}

fn said<'a>(console: &'a str, key: &str) -> Vec<&'a str> {
    console.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).collect()
}

fn qemu_user(site: &Site, vm: &Vm) -> String {
    let pid = format!("/run/libvirt/qemu/{}.pid", vm.name);
    let mut shell = site.command("sh").unwrap();
    // The file has the pid in the site's namespace: its /proc is asked.
    let output = shell.args(["-c", &format!("stat -c %U /proc/$(cat {pid})")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn guests_reach_the_operator_and_are_reached_by_him_but_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let initrd = initramfs(dir.path());
    let site = |name: &str| match name {
        "west" => SiteSpec::named(name).qemu_user(QemuUser::LibvirtQemu),
        _ => SiteSpec::named(name),
    };
    let lab = Scenario::Relay.builder_with(site).start().unwrap();
    let (east, west) = (lab.site("east").unwrap(), lab.site("west").unwrap());
    let listener = lab.operator().listen(7000).unwrap();

    let alfa = spec("alfa", &initrd, "10.77.2.11")
        .disk(Disk::blank((5 << 20) + 512, Format::Raw).serial("first"))
        .disk(Disk::blank(3 << 20, Format::Qcow2).serial("second"))
        .channel("org.qemu.guest_agent.0");
    let alfa = east.start(&alfa).unwrap();
    let bravo = spec("bravo", &initrd, "10.77.1.10").cpu(Cpu::Maximum).machine("pc");
    let bravo = bravo.disk(Disk::blank(1 << 20, Format::Raw));
    let bravo = west.start(&bravo).unwrap();

    let mut names: Vec<String> = Vec::new();
    for (site, vm) in [(east, &alfa), (west, &bravo)] {
        site.wait_for_console(&vm.name, &format!("up as {}", vm.name), PATIENCE).unwrap();
        let console = site.console(&vm.name).replace('\r', "");
        let address = vm.address(site).unwrap();
        assert_eq!(said(&console, "address"), [address.to_string()]);
        assert_eq!(site.lease(&vm.macs[0]), Some(address));
        assert!(console.contains("\nalone\n"), "{console}");

        let (guest, _) = listener.accept().unwrap();
        let mut name = String::new();
        BufReader::new(guest).read_line(&mut name).unwrap();
        names.push(name.trim().to_owned());
        let mut echo = lab.operator().connect(SocketAddr::from((address, 7)), PATIENCE).unwrap();
        echo.write_all(b"echo").unwrap();
        let mut back = [0; 4];
        echo.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"echo");
    }
    names.sort();
    assert_eq!(names, ["alfa", "bravo"]);

    let console = east.console("alfa").replace('\r', "");
    assert_eq!(said(&console, "disk"), ["vda 10241 first", "vdb 6144 second"]);
    assert_eq!(said(&console, "channel"), ["org.qemu.guest_agent.0"]);
    assert_eq!(said(&console, "cpu"), ["has no aes"]);
    assert_eq!(said(&west.console("bravo").replace('\r', ""), "cpu"), ["has aes"]);
    assert_eq!(qemu_user(east, &alfa), "root");
    assert_eq!(qemu_user(west, &bravo), "libvirt-qemu");
    assert_eq!(alfa.address(west).unwrap().to_string(), "10.77.2.10", "where it would move to");

    east.virsh(&["destroy", "alfa"]).unwrap();
    assert!(!east.is_running("alfa").unwrap());
    assert!(west.is_running("bravo").unwrap());
}

#[test]
fn a_power_cut_stops_vms_and_only_autostarted_ones_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let initrd = initramfs(dir.path());
    let lab = Lab::relay().unwrap();
    let east = lab.site("east").unwrap();
    let mut back = spec("back", &initrd, "10.77.2.1");
    back.autostart = true;
    east.start(&back).unwrap();
    east.start(&spec("gone", &initrd, "10.77.2.1")).unwrap();
    assert!(east.is_running("back").unwrap() && east.is_running("gone").unwrap());

    // The first process of a pid namespace outlives every other one in it.
    let first = format!("/proc/{}", east.pid().unwrap());
    assert!(Path::new(&first).exists());
    lab.power_off("east").unwrap();
    assert!(!Path::new(&first).exists());
    lab.power_on("east").unwrap();

    // libvirtd starts them in the background.
    east.wait_for_console("back", "up as back", PATIENCE).unwrap();
    assert!(east.is_running("back").unwrap());
    assert!(!east.is_running("gone").unwrap());
    assert_eq!(east.virsh(&["domstate", "gone"]).unwrap().trim(), "shut off");
}
