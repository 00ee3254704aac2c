//! A guest of one sector: it boots, writes to its disk and says so on its serial line.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use model::VmId;
use uuid::Uuid;

use crate::daemon::Daemon;

/// What the guest says once its first write was done.
pub const ALIVE: &str = "ALIVE";

/// What the firmware says when it finds nothing to boot.
pub const NOTHING: &str = "No bootable device";

/// 16-bit code at 0x7c00: writes its second sector by BIOS over and over, and says one letter after
/// each write; the firmware's own words may fall between the first ones. Assembled by hand; the listing is beside each line.
#[rustfmt::skip]
const BOOT: &[u8] = &[
    0xfa,                         //       cli
    0x31, 0xc0,                   //       xor ax, ax
    0x8e, 0xd8,                   //       mov ds, ax
    0x8e, 0xc0,                   //       mov es, ax
    0x8e, 0xd0,                   //       mov ss, ax
    0xbc, 0x00, 0x7c,             //       mov sp, 0x7c00
    0xfb,                         //       sti
    0xbe, 0x36, 0x7c,             //       mov si, text
    // again:
    0xff, 0x06, 0x00, 0x80,       //       inc word [0x8000]
    0xb8, 0x01, 0x03,             //       mov ax, 0x0301      write one sector
    0xbb, 0x00, 0x80,             //       mov bx, 0x8000      from here
    0xb9, 0x02, 0x00,             //       mov cx, 0x0002      cylinder 0, sector 2
    0xb2, 0x80,                   //       mov dl, 0x80        first disk
    0xb6, 0x00,                   //       mov dh, 0
    0xcd, 0x13,                   //       int 0x13
    0x72, 0xeb,                   //       jc again
    0xac,                         //       lodsb
    0x84, 0xc0,                   //       test al, al
    0x74, 0x06,                   //       jz pause
    0xba, 0xf8, 0x03,             //       mov dx, 0x3f8
    0xee,                         //       out dx, al
    0xeb, 0xe0,                   //       jmp again
    // pause:
    0xbe, 0x36, 0x7c,             //       mov si, text
    0xf4,                         //       hlt                 until the next timer tick
    0xeb, 0xda,                   //       jmp again
    // text, at 0x36:
    b'A', b'L', b'I', b'V', b'E', b'\n', 0,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

impl Format {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A VM with such a disk; nothing is started.
pub struct Guest {
    pub id: VmId,
    pub name: String,
    pub image: PathBuf,
    pub xml: String,
}

impl Guest {
    /// Makes the image and defines the VM.
    pub fn define(daemon: &Daemon, name: &str, format: Format) -> Self {
        Self::define_in(daemon, name, format, &daemon.images())
    }

    pub fn define_in(daemon: &Daemon, name: &str, format: Format, directory: &Path) -> Self {
        let guest = Self::describe(daemon, name, format, directory);
        daemon.define("define", &guest.xml);
        guest
    }

    /// Makes the image only.
    pub fn describe(daemon: &Daemon, name: &str, format: Format, directory: &Path) -> Self {
        let image = directory.join(format!("{name}.{}", format.word()));
        make_image(&image, format);
        let id = VmId(Uuid::new_v4());
        let serial = daemon.path(&format!("{name}.serial"));
        let xml = definition(id, name, &image, format, &serial);
        Self { id, name: name.to_owned(), image, xml }
    }

    /// Another VM with this one's disk.
    pub fn twin(&self, daemon: &Daemon, name: &str) -> Self {
        let id = VmId(Uuid::new_v4());
        let format = if self.image.extension().is_some_and(|extension| extension == "raw") {
            Format::Raw
        } else {
            Format::Qcow2
        };
        let serial = daemon.path(&format!("{name}.serial"));
        let xml = definition(id, name, &self.image, format, &serial);
        Self { id, name: name.to_owned(), image: self.image.clone(), xml }
    }

    /// Empties its serial line, so that [`Self::came_up`] speaks of the next start.
    pub fn listen(&self, daemon: &Daemon) {
        let _ = fs::remove_file(daemon.path(&format!("{}.serial", self.name)));
    }

    /// Waits until the guest or the firmware has said what became of the start.
    pub fn came_up(&self, daemon: &Daemon) -> bool {
        let serial = daemon.path(&format!("{}.serial", self.name));
        loop {
            let said = fs::read(&serial).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            if said.contains(ALIVE) {
                return true;
            }
            if said.contains(NOTHING) {
                return false;
            }
            let state = daemon.virsh(&["domstate", &self.name]);
            assert!(
                state.as_ref().is_ok_and(|state| !state.contains("shut off")),
                "{} ended without a word: {state:?}, {said:?}",
                self.name
            );
            sleep(Duration::from_millis(50));
        }
    }
}

/// 1 MiB and a sector: not a whole number of anything larger.
const SIZE: u64 = (1 << 20) + 512;

fn make_image(image: &Path, format: Format) {
    let raw = match format {
        Format::Raw => image.to_owned(),
        Format::Qcow2 => image.with_extension("from"),
    };
    let mut sector = [0; 512];
    sector[..BOOT.len()].copy_from_slice(BOOT);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::create(&raw).expect("an image");
    file.set_len(SIZE).expect("its size");
    file.write_all_at(&sector, 0).expect("its boot sector");
    // Something at its end, where a partition table has its copy.
    file.write_all_at(&[0x5a; 4096], SIZE - 4096).expect("its end");
    if format == Format::Qcow2 {
        let status = Command::new("qemu-img")
            .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
            .args([&raw, image])
            .status();
        assert!(status.expect("qemu-img").success());
        fs::remove_file(raw).expect("the raw copy goes");
    }
}

fn definition(id: VmId, name: &str, image: &Path, format: Format, serial: &Path) -> String {
    format!(
        "<domain type='qemu'>
          <name>{name}</name><uuid>{id}</uuid>
          <memory unit='MiB'>32</memory><vcpu>1</vcpu>
          <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/><bios useserial='yes'/></os>
          <features><acpi/></features>
          <devices>
            <disk type='file' device='disk'><driver name='qemu' type='{format}'/>
              <source file='{image}'/><target dev='vda' bus='virtio'/></disk>
            <serial type='file'><source path='{serial}'/><target port='0'/></serial>
            <memballoon model='none'/>
          </devices>
        </domain>",
        format = format.word(),
        image = image.display(),
        serial = serial.display(),
    )
}
