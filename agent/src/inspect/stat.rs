//! What the kernel counts of a disk.

use super::tree::Tree;

/// Since the disk appeared, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStat {
    pub written: u64,
    pub discarded: u64,
    /// Writes and discards under way now; reads too where the kernel does not tell them apart.
    pub in_flight: u64,
}

/// Documentation/admin-guide/iostats.rst: reads in fields 1 to 4, writes in 5 to 8 with the
/// sectors in 7, requests under way in 9, discards from 12 on with the sectors in 14 (4.19 and
/// later). `inflight` has the requests under way as reads and all others. `None` also where the
/// kernel does not count (`queue/iostats`).
pub fn of_disk(tree: &Tree, name: &str) -> Option<DiskStat> {
    let counts = tree.text(format!("sys/block/{name}/queue/iostats")).as_deref() != Some("0");
    // First: a write that ends between the two looks is under way, or counted.
    let in_flight = tree.text(format!("sys/block/{name}/inflight"));
    let in_flight = in_flight.and_then(|text| text.split_whitespace().nth(1)?.parse().ok());
    let text = tree.text(format!("sys/block/{name}/stat")).filter(|_| counts)?;
    let fields: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some(DiskStat {
        written: *fields.get(6)?,
        discarded: fields.get(13).copied().unwrap_or(0),
        in_flight: in_flight.or_else(|| fields.get(8).copied())?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeSystem;
    use super::*;

    #[test]
    fn the_right_columns_are_read() {
        let system = FakeSystem::new();
        system.file("sys/block/vda/stat", " 1 2 3 4 5 6 77 8 9 10 11 12 13 144 15 16 17\n");
        let stat = DiskStat { written: 77, discarded: 144, in_flight: 9 };
        assert_eq!(of_disk(&system.tree(), "vda"), Some(stat));
        system.file("sys/block/vda/inflight", "       9        0\n");
        let reads_only = DiskStat { in_flight: 0, ..stat };
        assert_eq!(of_disk(&system.tree(), "vda"), Some(reads_only), "reads change nothing");
        system.file("sys/block/vda/inflight", "       2        7\n");
        let writes = DiskStat { in_flight: 7, ..stat };
        assert_eq!(of_disk(&system.tree(), "vda"), Some(writes));
        system.file("sys/block/vda/inflight", "odd\n");
        assert_eq!(of_disk(&system.tree(), "vda"), Some(stat), "their sum, if need be");
        system.file("sys/block/vda/queue/iostats", "0\n");
        assert_eq!(of_disk(&system.tree(), "vda"), None);
    }
}
