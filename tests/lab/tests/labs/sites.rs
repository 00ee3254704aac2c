//! Sites come up, answer, and reach each other only as the scenario says.

use std::fs;

use lab::{Between, HostAccess, Lab, Route, Site, SiteSpec};

fn pings(from: &Site, to: &Site) -> bool {
    let to = to.address().to_string();
    let mut ping = from.command("busybox").unwrap();
    ping.args(["ping", "-c", "1", "-W", "2", &to]).output().unwrap().status.success()
}

#[test]
fn two_sites_answer_with_their_own_pool_and_network() {
    let lab = Lab::relay().unwrap();
    for site in lab.sites() {
        let pools = site.virsh(&["pool-list", "--name"]).unwrap();
        assert_eq!(pools.trim(), "default", "at {}", site.name());
        let networks = site.virsh(&["net-list", "--name"]).unwrap();
        assert_eq!(networks.trim(), "default", "at {}", site.name());
        assert_eq!(site.virsh(&["hostname"]).unwrap().trim(), site.name());
    }
}

#[test]
fn the_operator_reaches_each_site_by_its_uri() {
    let lab = Lab::relay().unwrap();
    for site in lab.sites() {
        let uri = lab.operator().uri(site);
        let virsh =
            lab.operator().command("virsh").args(["-c", &uri, "hostname"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&virsh.stdout).trim(), site.name());
    }
}

#[test]
fn sites_do_not_reach_each_other_through_the_operator() {
    let lab = Lab::relay().unwrap();
    let (east, west) = (lab.site("east").unwrap(), lab.site("west").unwrap());
    assert!(!pings(east, west));
    assert!(!pings(west, east));
}

#[test]
fn sites_with_a_direct_route_reach_each_other_until_it_is_cut() {
    let lab = Lab::direct().unwrap();
    let (east, west) = (lab.site("east").unwrap(), lab.site("west").unwrap());
    assert!(pings(east, west));
    assert!(pings(west, east));
    lab.cut(Between::Sites("west", "east")).unwrap();
    assert!(!pings(east, west));
    lab.heal(Between::Sites("east", "west")).unwrap();
    assert!(pings(east, west));
}

#[test]
fn two_labs_at_once_have_the_same_addresses_and_do_not_meet() {
    let labs = [Lab::relay().unwrap(), Lab::relay().unwrap()];
    let sites = labs.each_ref().map(|lab| lab.site("east").unwrap());
    assert_eq!(sites[0].address(), sites[1].address());
    for (site, name) in sites.into_iter().zip(["one", "two"]) {
        site.virsh(&["net-define", &network(site, name)]).unwrap();
    }
    for (lab, name) in labs.iter().zip(["one", "two"]) {
        let uri = lab.operator().uri(lab.site("east").unwrap());
        let mut virsh = lab.operator().command("virsh");
        let listed = virsh.args(["-c", &uri, "net-list", "--all", "--name"]).output().unwrap();
        let mut names: Vec<_> =
            str::from_utf8(&listed.stdout).unwrap().split_whitespace().collect();
        names.sort_unstable();
        assert_eq!(names, ["default", name]);
    }
}

/// A file, seen from the site too, with a network of this name.
fn network(site: &Site, name: &str) -> String {
    let path = site.log_dir().join("network.xml");
    fs::write(&path, format!("<network><name>{name}</name></network>")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn host_access_is_by_the_operators_key_and_pinned_host_key() {
    let lab = Lab::builder()
        .site(SiteSpec::named("east").host_access(HostAccess::Ssh))
        .site(SiteSpec::named("west"))
        .start()
        .unwrap();
    let ssh = |site: &str, key: &str| {
        let operator = lab.operator();
        let known = format!("UserKnownHostsFile={}", operator.known_hosts().display());
        let address = lab.site(site).unwrap().address();
        let mut ssh = operator.command("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", &known, "-i", key]);
        ssh.args([&format!("root@{address}"), "hostname"]).output().unwrap()
    };
    let key = lab.operator().ssh_key();
    let key = key.to_str().unwrap();
    assert_eq!(ssh("east", key).stdout, b"east\n");
    assert!(!ssh("east", "/dev/null").status.success(), "without the key");
    assert!(!ssh("west", key).status.success(), "a site that has only the API");
}

#[test]
fn a_power_cycle_keeps_what_is_on_disk_and_the_paths() {
    let lab = Lab::builder()
        .site(SiteSpec::named("east"))
        .site(SiteSpec::named("west"))
        .route(Route::Direct)
        .start()
        .unwrap();
    let (east, west) = (lab.site("east").unwrap(), lab.site("west").unwrap());
    east.virsh(&["net-define", &network(east, "kept")]).unwrap();
    lab.power_off("east").unwrap();
    assert!(!pings(west, east));
    assert!(east.virsh(&["list"]).is_err());
    lab.power_on("east").unwrap();
    assert!(east.virsh(&["net-list", "--all", "--name"]).unwrap().contains("kept"));
    assert!(pings(west, east));
    let uri = lab.operator().uri(east);
    let reached = lab.operator().command("virsh").args(["-c", &uri, "uri"]).output().unwrap();
    assert!(reached.status.success());
}

#[test]
fn libvirtd_restarts_and_answers_again() {
    let lab = Lab::relay().unwrap();
    let east = lab.site("east").unwrap();
    let pid = || {
        let mut cat = east.command("cat").unwrap();
        cat.arg("/run/libvirtd.pid").output().unwrap().stdout
    };
    let before = pid();
    east.restart_libvirtd().unwrap();
    assert_ne!(pid(), before);
    assert!(east.virsh(&["pool-list", "--name"]).unwrap().contains("default"));
}
