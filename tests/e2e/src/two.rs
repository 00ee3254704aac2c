//! Whether the VM is at two sites at once. That this sees it where it is so is shown by the control in
//! `tests/native/faults.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{Scene, state};

/// Now, as both libvirts have it.
pub fn both_run(scene: &Scene) -> Result<bool> {
    Ok(state(scene.east())? == "running" && state(scene.west())? == "running")
}

/// Looks at both as often as it can. One that was seen to run at the destination never runs at the source again.
pub fn never_two(scene: &Scene, over: &AtomicBool) -> Result<()> {
    let mut there = false;
    while !over.load(Ordering::Relaxed) {
        there |= state(scene.west()).is_ok_and(|state| state == "running");
        if there && state(scene.east()).is_ok_and(|state| state == "running") {
            bail!("it ran at both");
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
