//! What a guest has besides memory and disks: the variables of its firmware, a screen, the state of its TPM.

use std::io::Read as _;
use std::net::TcpStream;

use e2e::{Agents, Scene, SceneOptions, VM};
use lab::guest::Ssh;
use lab::run::run;
use lab::{Between, Firmware, Scenario, Site};

use crate::faults::{self, SLOW};
use crate::tpm;

const WHOLE: [&str; 2] = ["--p2p", "--copy-storage-all"];
const AT_EAST: &str = "/var/lib/libvirt/qemu/nvram/web1_VARS.fd";
const VARIABLE: &str = "/sys/firmware/efi/efivars/Causeway-605dab50-e046-4300-abb6-3dd810dd8b23";

/// Firmware of its own, where no other host has it, and somebody's variables.
const OTHER_FIRMWARE: &str = "set -e
    mkdir /srv/firmware /srv/variables
    cp /usr/share/OVMF/OVMF_CODE_4M.fd /srv/firmware/code.fd
    cp /usr/share/OVMF/OVMF_VARS_4M.fd /srv/firmware/vars.fd
    echo theirs > /srv/variables/web1_VARS.fd
    described=$(sed -e 's|/usr/share/OVMF/OVMF_CODE_4M|/srv/firmware/code|' \
        -e 's|/usr/share/OVMF/OVMF_VARS_4M|/srv/firmware/vars|' \
        /usr/share/qemu/firmware/60-edk2-x86_64.json)
    mount -t tmpfs firmware /usr/share/qemu/firmware
    echo \"$described\" > /usr/share/qemu/firmware/60-uefi.json";

const NETWORKS: &str = "networks = { br0 = \"bridge:br0\" }";
const FIRMWARE: &str =
    "loaders = { \"/usr/share/OVMF/OVMF_CODE_4M.fd\" = \"/srv/firmware/code.fd\" }
nvram-dir = \"/srv/variables\"
listen = \"10.77.2.1\"
";

/// East's host chooses the firmware; its screen is at a port that was asked for.
fn start(tpm: &str) -> Scene {
    let devices = format!(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0' {tpm}/></tpm>
         <graphics type='vnc' port='5907' autoport='no' listen='127.0.0.1'/>
         <video><model type='vga'/></video>"
    );
    let options = SceneOptions { firmware: Firmware::Uefi, devices, ..SceneOptions::default() };
    let scene = Scene::start(Scenario::Relay.builder(), &options).unwrap();
    sh(scene.west(), OTHER_FIRMWARE);
    scene
}

fn sh(site: &Site, script: &str) -> String {
    run(site.command("sh").unwrap().args(["-c", script])).unwrap()
}

fn file(site: &Site, path: &str) -> Vec<u8> {
    let read = site.command("cat").unwrap().arg(path).output().unwrap();
    assert!(read.status.success(), "{path}: {}", String::from_utf8_lossy(&read.stderr));
    read.stdout
}

/// The one of `web1` at west.
fn variables_at_west(scene: &Scene) -> String {
    let xml = scene.west().virsh(&["dumpxml", "--inactive", VM]).unwrap();
    let (_, from) = xml.split_once("<nvram").unwrap_or_else(|| panic!("{xml}"));
    from.split(['>', '<']).nth(1).unwrap().to_owned()
}

fn variable(ssh: &Ssh<'_>) -> String {
    ssh.run(&format!("tail -c +5 {VARIABLE}")).unwrap()
}

/// What a viewer hears first.
fn greeting(site: &Site) -> String {
    let display = site.virsh(&["domdisplay", VM]).unwrap();
    let (address, number) = display.trim().strip_prefix("vnc://").unwrap().split_once(':').unwrap();
    let port = 5900 + number.parse::<u16>().unwrap();
    let mut said = [0; 12];
    let heard = site.inside(|| TcpStream::connect((address, port))?.read_exact(&mut said));
    heard.unwrap().unwrap();
    assert_eq!(address, "10.77.2.1");
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn firmware_variables_a_screen_and_a_tpm_go_along() {
    let scene = start("");
    let agents = Agents::start_with(&scene, &format!("{NETWORKS}\n{FIRMWARE}")).unwrap();
    let ssh = scene.ssh(scene.at_east).unwrap();
    ssh.run(&format!("printf '\\007\\000\\000\\000goes along' > {VARIABLE}")).unwrap();
    assert_eq!(variable(&ssh), "goes along");
    let register = tpm::extend(&ssh);
    tpm::keep(&ssh, "a secret");

    let took = agents.migrate(&[&WHOLE[..], &["--persistent"]].concat()).unwrap();
    println!("with UEFI, VNC and a TPM: {took:?}");
    agents.network_follows_to_west().unwrap();
    agents.has_moved_whole().unwrap();
    let ssh = scene.ssh(scene.at_east).unwrap();
    assert_eq!(variable(&ssh), "goes along");
    assert_eq!(tpm::kept(&ssh, 8), "a secret");
    assert_eq!(tpm::register(&ssh), register);
    let at_west = variables_at_west(&scene);
    let (theirs, ours) = (file(scene.east(), AT_EAST), file(scene.west(), &at_west));
    assert!(theirs == ours, "the variables differ: {} bytes, {}", theirs.len(), ours.len());
    assert_eq!(greeting(scene.west()), "RFB 003.008\n");
    for view in [&["dumpxml", VM][..], &["dumpxml", "--inactive", VM]] {
        let xml = scene.west().virsh(view).unwrap();
        for theirs in ["/usr/share/OVMF", AT_EAST, "5907", "127.0.0.1", "firmware='efi'"] {
            assert!(!xml.contains(theirs), "{theirs} is in {xml}");
        }
        for ours in ["/srv/firmware/code.fd<", &*at_west, "listen='10.77.2.1'", "tpm-crb"] {
            assert!(xml.contains(ours), "{ours} is not in {xml}");
        }
    }

    // From its definition at west, and nothing that is in memory.
    ssh.run("poweroff").unwrap();
    agents.until_state(scene.west(), "shut off").unwrap();
    scene.west().virsh(&["start", VM]).unwrap();
    let ssh = scene.ssh(scene.at_west).unwrap();
    scene.ledger_is_whole(scene.at_west).unwrap();
    assert_eq!(variable(&ssh), "goes along");
    assert_eq!(tpm::kept(&ssh, 8), "a secret");
    assert!(tpm::register(&ssh).bytes().all(|digit| digit == b'0'), "the TPM was not started anew");
    assert_eq!(variables_at_west(&scene), at_west);
    assert_eq!(file(scene.west(), "/srv/variables/web1_VARS.fd"), b"theirs\n");
}

#[test]
fn of_one_that_does_not_come_no_variables_and_no_tpm_are_left() {
    let scene = start("persistent_state='yes'");
    let mut agents = Agents::start_with(&scene, NETWORKS).unwrap();
    let refused = agents.refused(&WHOLE).unwrap();
    println!("{refused}");
    for said in [
        "/usr/share/OVMF/OVMF_CODE_4M.fd is mapped to no firmware of the destination",
        "add it to `loaders`, under [arrivals]",
        "no place for the variables of its firmware: give `nvram-dir` a folder",
    ] {
        assert!(refused.contains(said), "{refused}");
    }
    let left = || {
        sh(scene.west(), "find /srv/variables /var/lib/libvirt/swtpm -mindepth 1 2> /dev/null; :")
    };
    let nothing = left();
    assert!(nothing.contains("web1_VARS.fd"), "{nothing}");
    let is_gone = |agents: &Agents<'_>| {
        faults::nothing_is_left(agents, &scene);
        let none = agents.until("no variables and no TPM are left", || Ok(left() == nothing));
        none.unwrap_or_else(|error| panic!("{}: {error:#}", left()));
        assert_eq!(agents.state(scene.east()).unwrap(), "running");
    };
    is_gone(&agents);

    agents.restart_west_with(FIRMWARE).unwrap();
    scene.lab.set_wan(Between::Operator("east"), SLOW).unwrap();
    let migrating = faults::halfway(&agents);
    assert_ne!(left(), nothing, "the control");
    scene.east().virsh(&["domjobabort", VM]).unwrap();
    println!("cancelled: {}", faults::fails(migrating).1);
    is_gone(&agents);

    let migrating = faults::halfway(&agents);
    agents.west.kill().unwrap();
    println!("destination's agent killed: {}", faults::fails(migrating).1);
    agents.start_west().unwrap();
    is_gone(&agents);

    // Whole, with a definition, and never granted.
    scene.lab.set_wan(Between::Operator("east"), lab::Wan::default()).unwrap();
    let migrating = faults::spawn_whole(&agents);
    faults::lose_replies(&scene, "-A");
    agents.until("it is offered", || Ok(agents.east.log().contains("stands still"))).unwrap();
    assert_eq!(agents.state(scene.west()).unwrap(), "paused");
    agents.east.kill().unwrap();
    agents.start_east().unwrap();
    println!("reply lost: {}", faults::fails(migrating).1);
    agents.until_state(scene.east(), "running").unwrap();
    is_gone(&agents);
    faults::lose_replies(&scene, "-D");
    scene.ledger_is_whole(scene.at_east).unwrap();
}
