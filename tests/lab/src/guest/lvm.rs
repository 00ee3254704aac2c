//! LVM without LVM: the metadata of a volume group with one disk and one linear volume.
//!
//! `pvcreate` and its kin take block devices only, so an image file would need a loop device. The
//! format (label, metadata area header, text) is that of LVM 2.03, and the guests' own LVM, which
//! checks all its sums, is the judge of what is written here.

use std::{fs::File, os::unix::fs::FileExt as _};

use anyhow::{Context, Result};

use super::noise::Noise;

const SECTOR: u64 = 512;
const EXTENT_SECTORS: u64 = 8192;

/// Where the volume's first byte is on the disk: right behind the metadata.
pub const VOLUME_START: u64 = 1 << 20;

/// The header of the metadata area, after label and padding.
const METADATA_START: u64 = 4096;
const METADATA_HEADER: u64 = 512;

/// Makes the whole of `image`, which has `bytes` bytes, the group `group` with the volume
/// `volume`, and answers the size of the volume. Same names and sizes give the same ids.
pub fn write(image: &File, bytes: u64, group: &str, volume: &str) -> Result<u64> {
    let extents = (bytes.saturating_sub(VOLUME_START)) / (EXTENT_SECTORS * SECTOR);
    anyhow::ensure!(extents > 0, "a disk of {bytes} bytes is too small for LVM");
    let mut noise = Noise::new(&format!("{group}/{volume}/{bytes}"));
    let [group_id, disk_id, volume_id] = std::array::from_fn(|_| id(&mut noise));
    let text = format!(
        r#"{group} {{
id = "{group_id}"
seqno = 1
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = {EXTENT_SECTORS}
max_lv = 0
max_pv = 0
metadata_copies = 0

physical_volumes {{

pv0 {{
id = "{disk_id}"
device = "/dev/vdb"
status = ["ALLOCATABLE"]
flags = []
dev_size = {sectors}
pe_start = {start}
pe_count = {extents}
}}
}}

logical_volumes {{

{volume} {{
id = "{volume_id}"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
creation_time = 1
creation_host = "lab"
segment_count = 1

segment1 {{
start_extent = 0
extent_count = {extents}
type = "striped"
stripe_count = 1
stripes = [
"pv0", 0
]
}}
}}
}}
}}
contents = "Text Format Volume Group"
version = 1
description = ""
creation_host = "lab"
creation_time = 1
"#,
        sectors = bytes / SECTOR,
        start = VOLUME_START / SECTOR,
    );
    let mut text = text.into_bytes();
    text.push(0);
    image.write_all_at(&label(&disk_id, bytes), SECTOR)?;
    image.write_all_at(&metadata_header(&text)?, METADATA_START)?;
    image.write_all_at(&text, METADATA_START + METADATA_HEADER)?;
    Ok(extents * EXTENT_SECTORS * SECTOR)
}

/// The sector that says this is a physical volume.
fn label(disk_id: &str, bytes: u64) -> Vec<u8> {
    let mut covered = Vec::new();
    covered.extend_from_slice(&32_u32.to_le_bytes());
    covered.extend_from_slice(b"LVM2 001");
    covered.extend(disk_id.bytes().filter(|&byte| byte != b'-'));
    covered.extend_from_slice(&bytes.to_le_bytes());
    // Data areas, metadata areas: offset and size, each list ended by a pair of zeros.
    let areas = [VOLUME_START, 0, 0, 0, METADATA_START, VOLUME_START - METADATA_START, 0, 0];
    for number in areas {
        covered.extend_from_slice(&number.to_le_bytes());
    }
    // Extension: version 2, flag "used", no boot loader area.
    for number in [2_u32, 1] {
        covered.extend_from_slice(&number.to_le_bytes());
    }
    covered.resize(512 - 20, 0);
    let mut sector = b"LABELONE".to_vec();
    sector.extend_from_slice(&1_u64.to_le_bytes());
    sector.extend_from_slice(&checksum(&covered).to_le_bytes());
    sector.extend_from_slice(&covered);
    sector
}

fn metadata_header(text: &[u8]) -> Result<Vec<u8>> {
    let length = u64::try_from(text.len()).context("metadata too long")?;
    let mut covered = b" LVM2 x[5A%r0N*>".to_vec();
    covered.extend_from_slice(&1_u32.to_le_bytes());
    let place = [METADATA_START, VOLUME_START - METADATA_START, METADATA_HEADER, length];
    for number in place {
        covered.extend_from_slice(&number.to_le_bytes());
    }
    covered.extend_from_slice(&checksum(text).to_le_bytes());
    covered.resize(512 - 4, 0);
    let mut header = checksum(&covered).to_le_bytes().to_vec();
    header.extend_from_slice(&covered);
    Ok(header)
}

/// LVM's own: the polynomial of CRC-32 from another start, not inverted at the end.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xF597_A6CF, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

/// 32 letters and digits in groups.
fn id(noise: &mut Noise) -> String {
    const LETTERS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!#";
    let mut id = String::new();
    for (at, byte) in noise.take(32).into_iter().enumerate() {
        if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
            id.push('-');
        }
        id.push(char::from(LETTERS[usize::from(byte % 62)]));
    }
    id
}
