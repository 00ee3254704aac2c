//! What is read from definitions as libvirt writes them.

use model::{Cpu, DiskBus, DiskFormat, DiskUse, Firmware, NetworkRef, PciAddress};

use super::{DomainCaps, DomainXml, HostCaps, PoolXml, VolumeXml, XmlSource};

/// As libvirt 9.0.0 writes a running VM out, cut to what matters here.
const SERVER: &str = r#"<domain type='kvm' id='3'>
  <name>db &amp; more</name>
  <uuid>3b2f1c7e-27f1-4a5d-9a43-5ad2f9f6a001</uuid>
  <title>database</title>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='enrolled-keys'/><feature enabled='yes' name='secure-boot'/></firmware>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/db_VARS.fd</nvram>
  </os>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>Skylake-Server</model>
    <feature policy='require' name='ibrs'/>
  </cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/srv/db.qcow2' index='2'/>
      <backingStore type='file' index='3'>
        <format type='raw'/><source file='/srv/base.img'/><backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>DB0001</serial>
      <boot order='1'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source dev='/dev/vg/data'/>
      <target dev='sda' bus='scsi'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/>
      <source pool='fast' volume='logs'/>
      <target dev='vdb' bus='virtio'/><shareable/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='ceph'/></source>
      <target dev='vdc' bus='virtio'/><readonly/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <interface type='network'>
      <mac address='52:54:00:AB:CD:EF'/><source network='lan' portid='x' bridge='virbr1'/>
      <target dev='vnet0'/><model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/><model type='e1000e'/></interface>
    <interface type='direct'><mac address='52:54:00:00:00:03'/><source dev='eth1' mode='bridge'/></interface>
    <interface type='hostdev'><mac address='52:54:00:00:00:04'/>
      <source><address type='pci' domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/></source></interface>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <filesystem type='mount'><driver type='virtiofs'/><source dir='/export'/><target dir='export'/></filesystem>
    <vsock model='virtio'><cid auto='yes' address='3'/></vsock>
    <video><model type='virtio'/></video>
    <memory model='nvdimm'><source><path>/dev/pmem0</path></source></memory>
    <futuristic type='x'/>
  </devices>
</domain>"#;

#[test]
fn a_server_is_read_in_full() {
    let vm = DomainXml::parse(SERVER).unwrap();
    assert_eq!(vm.name, "db & more");
    assert_eq!((vm.vcpus, vm.memory.0), (2, 4 << 30));
    assert_eq!((vm.arch.as_str(), vm.machine.as_str()), ("x86_64", "pc-q35-7.2"));
    assert_eq!(vm.cpu, Cpu::Model("Skylake-Server".to_owned()));
    assert_eq!(vm.firmware, Firmware::Uefi { secure_boot: true });
    assert!(vm.ours.is_none() && vm.fenced.is_none());
}

#[test]
fn disks_keep_their_order_and_tell_what_they_are_for() {
    let disks = DomainXml::parse(SERVER).unwrap().disks;
    let told: Vec<_> = disks.iter().map(|disk| (disk.target.as_str(), disk.usage)).collect();
    assert_eq!(
        told,
        [
            ("vda", DiskUse::Data),
            ("sda", DiskUse::Data),
            ("vdb", DiskUse::Shared),
            ("vdc", DiskUse::ReadOnly),
            ("sdb", DiskUse::Cdrom),
        ]
    );
    let first = &disks[0];
    assert_eq!(first.format, DiskFormat::Qcow2);
    assert_eq!(first.source, XmlSource::File("/srv/db.qcow2".to_owned()));
    assert_eq!(first.behind, ["/srv/base.img"]);
    assert_eq!((first.serial.as_deref(), first.boot_order), (Some("DB0001"), Some(1)));
    let address = PciAddress { domain: 0, bus: 4, slot: 0, function: 0 };
    assert_eq!(first.address, Some(address));
    assert_eq!(disks[1].bus, Some(DiskBus::VirtioScsi));
    assert_eq!(disks[1].source, XmlSource::Block("/dev/vg/data".to_owned()));
    assert_eq!(disks[1].address, None, "a drive's place on its bus is no PCI address");
    assert_eq!(disks[3].source, XmlSource::Other("network rbd".to_owned()));
    assert_eq!(disks[4].source, XmlSource::Nothing);
}

#[test]
fn cards_are_read_and_passed_through_ones_are_devices() {
    let vm = DomainXml::parse(SERVER).unwrap();
    let networks: Vec<_> = vm.nics.iter().map(|nic| nic.network.clone()).collect();
    assert_eq!(
        networks,
        [
            NetworkRef::Network("lan".to_owned()),
            NetworkRef::Bridge("br0".to_owned()),
            NetworkRef::Other("direct eth1".to_owned()),
        ]
    );
    assert_eq!(vm.nics[0].mac, "52:54:00:ab:cd:ef");
    assert_eq!(vm.nics[0].address.map(|address| address.bus), Some(1));
}

#[test]
fn what_the_guest_would_miss_is_essential_and_so_is_what_nobody_knows() {
    let vm = DomainXml::parse(SERVER).unwrap();
    let essential = |wanted: bool| -> Vec<&str> {
        let devices = vm.devices.iter().filter(|device| device.essential == wanted);
        devices.map(|device| device.kind.as_str()).collect()
    };
    assert_eq!(essential(true), ["hostdev", "tpm", "filesystem", "nvdimm", "futuristic"]);
    assert_eq!(essential(false), ["vsock", "video"]);
    assert_eq!(vm.cpu_features.as_ref().unwrap().details["ibrs"], "require");
    let hostdev = &vm.devices[0];
    assert_eq!(hostdev.details["address"], "0x0000:0x3b:0x02:0x1");
}

#[test]
fn cpus_are_what_was_asked_for() {
    let cpu = |xml: &str| {
        let text = format!(
            "<domain><name>a</name><uuid>3b2f1c7e-27f1-4a5d-9a43-5ad2f9f6a001</uuid>\
             <memory unit='MiB'>1</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os>{xml}</domain>"
        );
        DomainXml::parse(&text).unwrap().cpu
    };
    assert_eq!(cpu(""), Cpu::Default);
    assert_eq!(cpu("<cpu mode='host-passthrough' check='none'/>"), Cpu::HostPassthrough);
    assert_eq!(cpu("<cpu mode='host-model'/>"), Cpu::HostModel);
    assert_eq!(cpu("<cpu mode='maximum'/>"), Cpu::HostModel);
    let filled_in = "<cpu mode='custom' match='exact' check='none'><model>qemu64</model></cpu>";
    assert_eq!(cpu(filled_in), Cpu::Default);
    assert_eq!(cpu("<cpu><topology sockets='1'/></cpu>"), Cpu::Default);
}

#[test]
fn capabilities_are_of_the_hosts_own_architecture() {
    let caps = HostCaps::parse(
        "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
         <guest><os_type>hvm</os_type><arch name='i686'><machine>old</machine><domain type='kvm'/></arch></guest>
         <guest><os_type>hvm</os_type><arch name='x86_64'><machine>pc-i440fx-7.2</machine>
           <machine canonical='pc-i440fx-7.2'>pc</machine><domain type='qemu'/></arch></guest>
         </capabilities>",
    )
    .unwrap();
    assert_eq!(caps.machines, ["pc", "pc-i440fx-7.2"]);
    assert!(!caps.kvm, "another architecture's KVM is not ours");
}

#[test]
fn only_usable_cpu_models_and_present_firmware_are_offered() {
    let caps = DomainCaps::parse(
        "<domainCapabilities><path>/usr/bin/qemu</path><vcpu max='255'/>
         <os><enum name='firmware'><value>efi</value></enum>
           <loader supported='yes'><enum name='secure'><value>no</value></enum></loader></os>
         <cpu><mode name='host-passthrough' supported='no'/><mode name='maximum' supported='yes'/>
           <mode name='custom' supported='yes'><model usable='yes'>qemu64</model>
             <model usable='no'>EPYC</model></mode></cpu></domainCapabilities>",
    )
    .unwrap();
    assert_eq!(caps.cpu_models, ["qemu64"]);
    assert!(caps.uefi && !caps.secure_boot && caps.maximum && !caps.host_passthrough);
    assert_eq!(caps.vcpus_max, 255);
}

#[test]
fn sizes_keep_their_units() {
    let volume = VolumeXml::parse(
        "<volume type='block'><capacity unit='GiB'>2</capacity><allocation>4096</allocation>
         <physical unit='KB'>3</physical><target><format type='raw'/></target></volume>",
    )
    .unwrap();
    assert_eq!((volume.capacity, volume.allocation, volume.physical), (2 << 30, 4096, 3000));
    assert_eq!(volume.format, Some(DiskFormat::Raw));
    let pool = PoolXml::parse("<pool type='logical'><target><path>/dev/vg</path></target></pool>");
    assert!(!pool.unwrap().holds_files());
}
