use super::*;

fn page(seed: u8) -> Page {
    let mut page = [seed; PAGE];
    page[0] = 1;
    page
}

#[test]
fn a_ring_forgets_the_oldest_page_and_no_other() {
    let mut ring = Ring::new(3).unwrap();
    for seed in 0..5 {
        assert!(ring.push(&page(seed)));
    }
    assert_eq!(ring.next(), 5);
    for slot in [0, 1, 5, u64::MAX] {
        assert_eq!(ring.get(slot), None, "{slot}");
    }
    for slot in 2_u8..5 {
        assert_eq!(ring.get(u64::from(slot)), Some(&page(slot)));
    }
    let mut none = Ring::new(0).unwrap();
    assert!(!none.push(&page(1)));
    assert_eq!(none.get(0), None);
}

#[test]
fn what_an_indexed_ring_finds_is_what_is_there() {
    let mut ring = IndexedRing::new(2).unwrap();
    let hashes = [0, 1, 2, 3].map(|seed| hash(&page(seed)));
    let found = |ring: &IndexedRing| {
        [0, 1, 2, 3].map(|seed| ring.find(&hashes[usize::from(seed)], &page(seed)))
    };
    ring.push((0, 10), hashes[0], &page(0));
    ring.push((0, 11), hashes[1], &page(1));
    ring.replace(0, hashes[2], &page(2));
    assert_eq!(found(&ring), [None, Some(1), Some(0), None]);
    assert_eq!(ring.before((0, 10)), Some((0, &page(2))));
    ring.push((0, 12), hashes[3], &page(3));
    assert_eq!(found(&ring), [None, Some(1), None, Some(2)]);
    assert_eq!(ring.before((0, 10)), None, "it is forgotten");
    // The same content in two slots: one of them goes.
    ring.replace(1, hashes[3], &page(3));
    ring.push((0, 13), hashes[0], &page(0));
    assert_eq!(found(&ring)[1], None);
}

#[test]
fn a_block_is_named_elsewhere_only_when_the_other_end_has_it() {
    let migration = Migration::new(Room { memory: 0, disks: 3 * PAGE as u64 });
    let [one, other] = [(); 2].map(|()| migration.add_disk().unwrap());
    let hashes = [0, 1, 2, 3].map(|seed| hash(&page(seed)));
    assert!(migration.keep(hashes[0], one));
    assert!(migration.keep(hashes[1], one));
    assert!(!migration.keep(hashes[1], other), "another disk has it");
    assert_eq!(migration.find(&hashes[1], Some(one)), Some((one, 1)));
    assert_eq!(migration.find(&hashes[1], Some(other)), None);
    assert_eq!(migration.find(&hashes[1], None), None);
    assert!(migration.confirm(one, 1));
    assert_eq!(migration.find(&hashes[0], None), Some((one, 0)));
    assert_eq!(migration.find(&hashes[1], None), None);
    assert!(migration.confirm(one, 2));
    assert_eq!(migration.find(&hashes[1], Some(other)), Some((one, 1)));
    assert!(!migration.confirm(one, 3), "nobody told it to keep as many");
    assert!(migration.keep(hashes[2], other));
    assert!(!migration.keep(hashes[3], other), "there is room for three");
}

#[test]
fn no_number_of_places_makes_an_index_grow_without_end() {
    let mut ring = IndexedRing::new(4).unwrap();
    for number in 0..1000 {
        let page = page(u8::try_from(number % 10).unwrap());
        let hash = hash(&page);
        match ring.find(&hash, &page) {
            Some(slot) => ring.place((0, number), slot),
            None => assert!(ring.push((0, number), hash, &page)),
        }
    }
    let lens = (ring.by_place.len(), ring.by_hash.len(), ring.known.len());
    assert!(lens.0 <= 10 && lens.1 <= 4 && lens.2 == 4, "{lens:?}");
}

#[test]
fn what_is_left_is_shared_by_those_that_carry_it() {
    let migration = Migration::new(Room::default());
    let went = |all, sent| migration.went(Progress { all, sent });
    assert_eq!(went(0, 10), u64::MAX, "it is not known how many there are");
    assert_eq!(went(1000, 0), 990);
    migration.take_memory(true);
    assert_eq!(went(0, 190), 800);
    migration.take_memory(true);
    assert_eq!(went(0, 100), 350);
    // They are sent again.
    assert_eq!(went(0, 5000), 0);
}
