//! A write that the block layer passes on without looking: SG_IO.
#![expect(unsafe_code, reason = "SG_IO has no safe interface")]

use std::ffi::c_void;
use std::fs::OpenOptions;

use anyhow::{Context, Result, bail};
use rustix::ioctl::{Updater, ioctl};

/// `struct sg_io_hdr` of <scsi/sg.h>.
#[repr(C)]
struct Header {
    interface: i32,
    direction: i32,
    command_len: u8,
    sense_max: u8,
    segments: u16,
    data_len: u32,
    data: *mut c_void,
    command: *const u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    id: i32,
    user: *mut c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_len: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration_ms: u32,
    result: u32,
}

const SG_IO: u32 = 0x2285;
const TO_DEVICE: i32 = -2;

/// Writes 8 sectors near the end of the disk by WRITE(10): where the file system has free space,
/// most likely. The comparison does not care.
pub fn write_past_the_block_layer(name: &str) -> Result<()> {
    let disk = OpenOptions::new().read(true).write(true).open(format!("/dev/{name}"))?;
    let size = std::fs::read_to_string(format!("/sys/block/{name}/size"))?;
    let sector = size.trim().parse::<u32>()? - 64;
    let mut command = [0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    command[2..6].copy_from_slice(&sector.to_be_bytes());
    let mut data = [0xa5_u8; 4096];
    let mut sense = [0_u8; 32];
    let mut header = Header {
        interface: i32::from(b'S'),
        direction: TO_DEVICE,
        command_len: u8::try_from(command.len())?,
        sense_max: u8::try_from(sense.len())?,
        segments: 0,
        data_len: u32::try_from(data.len())?,
        data: data.as_mut_ptr().cast(),
        command: command.as_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: 20_000,
        flags: 0,
        id: 0,
        user: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_len: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration_ms: 0,
        result: 0,
    };
    // SAFETY: SG_IO takes a header of this layout, whose pointers and lengths are those of buffers
    // that live to the end of this function; the call returns when the command is done.
    unsafe { ioctl(&disk, Updater::<SG_IO, Header>::new(&mut header)) }.context("SG_IO")?;
    if header.status != 0 || header.host_status != 0 || header.driver_status != 0 {
        bail!("WRITE(10) ended with status {} {}", header.status, header.host_status);
    }
    Ok(())
}
