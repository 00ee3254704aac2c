//! Sites come up, answer, and reach each other only as the scenario says.

use lab::Lab;

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
