//! A look at the copy from outside: will a firmware find something to start? Nothing is mounted.

use std::io;
use std::ops::Range;

use transfer::BlockRead;
use units::Bytes;
use wire::control::{BootFinding, Severity};

/// How much of a disk or partition is read to know it: up to the superblock of btrfs.
const HEAD: usize = 68 << 10;

const SECTOR: u64 = 512;

/// What the copies of a guest's disks look like. `disks`: in the plan's order; the first is the
/// one that boots.
pub fn findings(disks: &[&dyn BlockRead]) -> Vec<BootFinding> {
    let mut findings = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let finding = match look(*disk) {
            Ok(look) => judge(number, &look),
            Err(error) => {
                finding(Severity::Blocking, format!("disk {number} cannot be read: {error}"))
            }
        };
        findings.push(finding);
    }
    findings
}

#[derive(Debug, PartialEq, Eq)]
struct Look {
    table: Table,
    /// Boot code in the first sector, by whom.
    loader: Option<&'static str>,
    /// What lies in the partitions, or on the disk itself without a table.
    contents: Vec<Option<&'static str>>,
    has_efi_partition: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    None,
    Mbr,
    Gpt,
}

struct Partition {
    bytes: Range<u64>,
    is_efi: bool,
}

fn look(disk: &dyn BlockRead) -> io::Result<Look> {
    let head = read(disk, 0, HEAD)?;
    let (table, mut partitions) = table(&head);
    // The table is the guest's: what it says may be anything.
    partitions.retain(|partition| partition.bytes.start < disk.size().0);
    let loader = if head.get(510..512) != Some(&[0x55, 0xaa]) {
        None
    } else if contains(&head[..440], b"GRUB") {
        Some("GRUB")
    } else if head[..440].iter().any(|byte| *byte != 0) {
        Some("unknown")
    } else {
        None
    };
    let mut contents = Vec::new();
    for partition in &partitions {
        contents.push(content(&read(disk, partition.bytes.start, HEAD)?));
    }
    if table == Table::None {
        contents.push(content(&head));
    }
    let has_efi_partition = partitions.iter().any(|partition| partition.is_efi);
    Ok(Look { table, loader, contents, has_efi_partition })
}

fn judge(number: usize, look: &Look) -> BootFinding {
    let contents: Vec<&str> =
        look.contents.iter().map(|content| content.unwrap_or("unknown")).collect();
    let table = match look.table {
        Table::None => "no partition table",
        Table::Mbr => "MBR",
        Table::Gpt => "GPT",
    };
    let loader = look.loader.unwrap_or("none");
    let efi = if look.has_efi_partition { ", an EFI system partition" } else { "" };
    let text = format!("disk {number}: {table}, boot code: {loader}{efi}; {}", contents.join(", "));
    let boots = look.loader.is_some() || look.has_efi_partition;
    if number == 0 && !boots {
        return BootFinding {
            remedy: Some(
                "check that the first disk of the plan is the one that the guest boots from"
                    .to_owned(),
            ),
            ..finding(Severity::Warning, text)
        };
    }
    finding(Severity::Fine, text)
}

fn finding(severity: Severity, text: String) -> BootFinding {
    BootFinding { check: "copy-boot".to_owned(), severity, text, remedy: None }
}

/// `len` bytes from `offset`, zeros past the end.
fn read(disk: &dyn BlockRead, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    const ALIGNMENT: usize = 4096;
    // Direct reads want aligned memory and offsets; partitions may start on any sector.
    let start = offset - offset % 4096;
    let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
    let len_aligned = (len + skip).next_multiple_of(ALIGNMENT);
    let end = start.saturating_add(u64::try_from(len_aligned).map_err(io::Error::other)?);
    let end = disk.size().0.min(end);
    let wanted = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
    let mut memory = vec![0; wanted + ALIGNMENT];
    let shift = memory.as_ptr().align_offset(ALIGNMENT);
    let aligned = memory.get_mut(shift..shift + wanted).ok_or(io::ErrorKind::OutOfMemory)?;
    disk.read_at(Bytes(start), aligned)?;
    let mut bytes = aligned.get(skip..).unwrap_or_default().to_vec();
    bytes.resize(len, 0);
    Ok(bytes)
}

/// The partition table at the start of a disk. Broken entries are left out: a look, not a repair.
fn table(head: &[u8]) -> (Table, Vec<Partition>) {
    if head.get(512..520) == Some(b"EFI PART") {
        return (Table::Gpt, gpt(head));
    }
    let entries: Vec<Partition> = match head.get(446..512) {
        Some([entries @ .., 0x55, 0xaa]) => entries.chunks(16).filter_map(mbr_entry).collect(),
        _ => Vec::new(),
    };
    if entries.is_empty() { (Table::None, entries) } else { (Table::Mbr, entries) }
}

fn mbr_entry(entry: &[u8]) -> Option<Partition> {
    let (kind, start, len) = (*entry.get(4)?, u32_at(entry, 8)?, u32_at(entry, 12)?);
    if kind == 0 || len == 0 || entry[0] & 0x7f != 0 {
        return None;
    }
    let start = u64::from(start) * SECTOR;
    Some(Partition { bytes: start..start + u64::from(len) * SECTOR, is_efi: kind == 0xef })
}

/// The entries that lie in the head: 128 of 128 bytes from sector 2, as everyone writes them.
fn gpt(head: &[u8]) -> Vec<Partition> {
    const EFI_SYSTEM: [u8; 16] = [
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9,
        0x3b,
    ];
    let entries = head.get(1024..1024 + 128 * 128).unwrap_or_default();
    let parse = |entry: &[u8]| {
        let kind = entry.get(..16)?;
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let bytes = first.checked_mul(SECTOR)?..last.checked_add(1)?.checked_mul(SECTOR)?;
        let used = kind.iter().any(|byte| *byte != 0) && !bytes.is_empty();
        used.then_some(Partition { bytes, is_efi: kind == EFI_SYSTEM })
    };
    entries.chunks(128).filter_map(parse).collect()
}

/// What the first bytes say is there. Where each magic number stands is part of the formats.
fn content(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    if at(1080, &[0x53, 0xef]) {
        Some("ext")
    } else if at(0, b"XFSB") {
        Some("xfs")
    } else if at(64 * 1024 + 64, b"_BHRfS_M") {
        Some("btrfs")
    } else if at(4086, b"SWAPSPACE2") {
        Some("swap")
    } else if (0..4).any(|sector| at(sector * 512, b"LABELONE")) {
        Some("LVM")
    } else if at(0, b"LUKS\xba\xbe") {
        Some("LUKS")
    } else if at(54, b"FAT") || at(82, b"FAT32") {
        Some("FAT")
    } else {
        None
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Ram(Vec<u8>);

    impl BlockRead for Ram {
        fn size(&self) -> Bytes {
            Bytes(self.0.len().try_into().unwrap())
        }

        fn read_at(&self, offset: Bytes, into: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(offset.0).unwrap();
            let from = self.0.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            into.copy_from_slice(from);
            Ok(())
        }
    }

    fn mbr_disk() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        disk[380..384].copy_from_slice(b"GRUB");
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        // One partition from sector 63, of no multiple of 4 KiB.
        disk[446 + 4] = 0x83;
        disk[446 + 8..446 + 12].copy_from_slice(&63_u32.to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&1000_u32.to_le_bytes());
        disk[63 * 512 + 1080..63 * 512 + 1082].copy_from_slice(&[0x53, 0xef]);
        disk
    }

    #[test]
    fn a_disk_that_grub_boots_is_fine() {
        let disk = Ram(mbr_disk());
        let found = findings(&[&disk]);
        assert_eq!(found[0].severity, Severity::Fine);
        assert_eq!(found[0].text, "disk 0: MBR, boot code: GRUB; ext");
    }

    #[test]
    fn a_first_disk_with_nothing_to_start_is_warned_of_and_a_second_is_not() {
        let (first, second) = (Ram(vec![0; 1 << 20]), Ram(vec![0; 1 << 20]));
        let found = findings(&[&first, &second]);
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(found[1].severity, Severity::Fine);
    }

    #[test]
    fn a_gpt_disk_with_an_efi_partition_boots() {
        let mut disk = vec![0; 1 << 20];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[1024..1040].copy_from_slice(&[
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
            0xc9, 0x3b,
        ]);
        disk[1056..1064].copy_from_slice(&256_u64.to_le_bytes());
        disk[1064..1072].copy_from_slice(&511_u64.to_le_bytes());
        disk[256 * 512 + 82..256 * 512 + 87].copy_from_slice(b"FAT32");
        let found = findings(&[&Ram(disk)]);
        assert_eq!(found[0].severity, Severity::Fine);
        assert!(found[0].text.contains("an EFI system partition; FAT"), "{}", found[0].text);
    }

    #[test]
    fn partitions_that_start_past_the_disk_are_left_out() {
        let mut disk = vec![0; 1 << 20];
        disk[512..520].copy_from_slice(b"EFI PART");
        // The second and third are at the end of what can be counted.
        for (entry, first) in [(0, 2048_u64), (1, (1 << 55) - 100), (2, u64::MAX)] {
            let at = 1024 + entry * 128;
            disk[at] = 1;
            disk[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
            disk[at + 40..at + 48].copy_from_slice(&first.to_le_bytes());
        }
        // One that starts in the disk and ends past it is looked at.
        disk[1024 + 3 * 128] = 1;
        disk[1024 + 3 * 128 + 32..1024 + 3 * 128 + 40].copy_from_slice(&2047_u64.to_le_bytes());
        disk[1024 + 3 * 128 + 40..1024 + 3 * 128 + 48].copy_from_slice(&4096_u64.to_le_bytes());
        let found = findings(&[&Ram(disk)]);
        assert_eq!(found[0].text, "disk 0: GPT, boot code: none; unknown");
    }

    proptest! {
        #[test]
        fn no_disk_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048), gpt: bool) {
            let mut disk = mbr_disk();
            disk[..bytes.len()].copy_from_slice(&bytes);
            disk[510..512].copy_from_slice(&[0x55, 0xaa]);
            if gpt {
                disk[512..520].copy_from_slice(b"EFI PART");
            }
            let _found = findings(&[&Ram(disk)]);
        }
    }
}
