//! What breaks under a migration, and what its operator does about it.
#![expect(clippy::unwrap_used, reason = "a test helper that fails fails its test")]

use std::thread::sleep;
use std::time::Duration;

use lab::{Between, Site};

use crate::{Halfway, Scene, VM};

/// Longer than what waits in the kernels' buffers takes at the rate that the copy is limited to.
const CUT: Duration = Duration::from_secs(8);

/// Breaks something and answers with what goes on.
pub type Break = fn(&Scene, Halfway) -> Halfway;

pub fn kill_the_coordinator(scene: &Scene, copying: Halfway) -> Halfway {
    copying.kill().unwrap();
    // It says so when it goes on with the round.
    scene.until("round 0", &["resume".to_owned(), scene.id().unwrap()]).unwrap()
}

pub fn kill_the_agent(scene: &Scene, copying: Halfway) -> Halfway {
    scene.kill_agent(scene.at_east).unwrap();
    copying
}

pub fn kill_the_helper(scene: &Scene, copying: Halfway) -> Halfway {
    scene.west().kill_vm(VM).unwrap();
    copying
}

pub fn cut_the_line(scene: &Scene, copying: Halfway) -> Halfway {
    for site in ["west", "east"] {
        cut(scene, site, CUT);
    }
    copying
}

/// Nothing passes between the operator and the site for so long.
pub fn cut(scene: &Scene, site: &str, time: Duration) {
    scene.lab.cut(Between::Operator(site)).unwrap();
    sleep(time);
    scene.lab.heal(Between::Operator(site)).unwrap();
}

/// libvirtd dies without a word; its host starts it again.
pub fn kill_libvirtd(site: &Site) {
    site.kill_libvirtd().unwrap();
    site.start_libvirtd().unwrap();
}

/// The host dies with all its VMs, and boots.
pub fn reboot(scene: &Scene, site: &str) {
    scene.lab.power_off(site).unwrap();
    scene.lab.power_on(site).unwrap();
}
