use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

/// What happens to a disk, in pages: what the kernel's program does, and what we do.
#[derive(Clone, Debug)]
enum Step {
    /// First page and count; long ones go to the coarse bits, as in the program.
    Write(u64, u64),
    Take(u64),
    /// Takes a block and gives it back.
    Fail(u64),
    PutBack(u64, u64),
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..20_000_u64;
    prop_oneof![
        (page.clone(), 1..40_u64).prop_map(|(page, count)| Step::Write(page, count)),
        (page, 1..15_000_u64).prop_map(|(page, count)| Step::Write(page, count)),
        (0..1000_u64).prop_map(Step::Take),
        (0..1000_u64).prop_map(Step::Fail),
        (0..1000_u64, any::<u64>()).prop_map(|(block, pages)| Step::PutBack(block, pages)),
        Just(Step::Pass),
    ]
}

/// The program's half, written again in the plainest way.
struct Kernel {
    region: Region,
    cells: Vec<AtomicU64>,
}

impl Kernel {
    fn new(region: Region) -> Self {
        Self { region, cells: (0..region.all_words()).map(|_| AtomicU64::new(0)).collect() }
    }

    fn write(&self, first: u64, last: u64) {
        let mut chunk = first;
        while chunk <= last {
            let whole = chunk.is_multiple_of(4096) && last - first >= 8192 && last - chunk >= 4095;
            let (word, bit, step) = if whole {
                (number(self.region.words) + chunk / 4096 / 64, chunk / 4096 % 64, 4096)
            } else {
                (chunk / 64, chunk % 64, 1)
            };
            self.cells[index(word)].fetch_or(1 << bit, Ordering::SeqCst);
            chunk += step;
        }
    }
}

/// The pages of a mask that exist, as pages of the disk.
fn pages_of(mask: &PageMask, block: BlockIndex, block_size: BlockSize, pages: u64) -> Vec<u64> {
    let start = block.0 * block_size.pages();
    let on_disk = (0..block_size.pages()).filter(|page| start + page < pages);
    on_disk.filter(|page| mask.contains(*page)).map(|page| start + page).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The model is the set of dirty chunks. Whatever the order of writes, takes and failures, a
    /// take returns exactly the block's part of it, and counts and searches agree with it.
    #[test]
    fn a_take_returns_exactly_what_was_written_since_the_last(
        steps in proptest::collection::vec(step(), 1..25),
        pages in 1..20_000_u64,
        shift in Region::MIN_SHIFT..=Region::MAX_SHIFT,
        block_shift in 18_u32..=22,
    ) {
        let size = Bytes(pages * PAGE_SIZE - 512);
        let block_size = BlockSize::try_from(1_u64 << block_shift).unwrap();
        let blocks = block_size.blocks_to_hold(size).0;
        let region = Region::new(size, shift);
        let kernel = Kernel::new(region);
        let mut marks = Marks::new(region, size, block_size);
        let per_chunk = 1 << (shift - Region::MIN_SHIFT);
        let mut model: BTreeSet<u64> = BTreeSet::new();
        let add = |model: &mut BTreeSet<u64>, page: u64| {
            let chunk = page / per_chunk;
            model.extend((chunk * per_chunk..(chunk + 1) * per_chunk).filter(|page| *page < pages));
        };
        let remove = |model: &mut BTreeSet<u64>, block: u64| -> Vec<u64> {
            let range = block * block_size.pages()..(block + 1) * block_size.pages();
            let of_block: Vec<u64> = model.range(range).copied().collect();
            for page in &of_block {
                model.remove(page);
            }
            of_block
        };
        for step in steps {
            match step {
                Step::Write(first, count) => {
                    let first = first % pages;
                    let last = (first + count - 1).min(pages - 1);
                    kernel.write(first / per_chunk, last / per_chunk);
                    (first..=last).for_each(|page| add(&mut model, page));
                }
                Step::Take(block) => {
                    let block = BlockIndex(block % blocks);
                    let taken = marks.take(&kernel.cells, block);
                    prop_assert_eq!(pages_of(&taken, block, block_size, pages), remove(&mut model, block.0));
                }
                Step::Fail(block) => {
                    let block = BlockIndex(block % blocks);
                    let taken = marks.take(&kernel.cells, block);
                    marks.put_back(block, &taken);
                }
                Step::PutBack(block, bits) => {
                    let block = BlockIndex(block % blocks);
                    // Of pages that exist: a chunk is put back whole.
                    let left = pages.saturating_sub(block.0 * block_size.pages()).min(64);
                    let mask = PageMask::from_words([bits & (u64::MAX >> (64 - left))]);
                    marks.put_back(block, &mask);
                    pages_of(&mask, block, block_size, pages).into_iter().for_each(|page| add(&mut model, page));
                }
                Step::Pass => {
                    let dirty = marks.dirty(&kernel.cells);
                    let (mut seen, mut counted, mut from) = (Vec::new(), 0, BlockIndex(0));
                    while let Some(block) = marks.next_dirty(&kernel.cells, from) {
                        let taken = marks.take(&kernel.cells, block);
                        prop_assert!(!taken.is_empty());
                        seen.extend(pages_of(&taken, block, block_size, pages));
                        counted += 1;
                        from = BlockIndex(block.0 + 1);
                    }
                    prop_assert_eq!(dirty.blocks.0, counted);
                    prop_assert!(dirty.bytes.0 <= size.0);
                    let chunks: BTreeSet<u64> = seen.iter().map(|page| page / per_chunk).collect();
                    prop_assert_eq!(dirty.bytes.0, (number(chunks.len()) << shift).min(size.0));
                    prop_assert_eq!(seen, std::mem::take(&mut model).into_iter().collect::<Vec<_>>());
                }
            }
        }
        let left: BTreeSet<u64> = (0..blocks)
            .flat_map(|block| pages_of(&marks.take(&kernel.cells, BlockIndex(block)), BlockIndex(block), block_size, pages))
            .collect();
        prop_assert_eq!(left, model);
        prop_assert_eq!(marks.dirty(&kernel.cells), Dirty::default());
    }

    #[test]
    fn absorbing_makes_dirty_what_the_other_region_has(
        first in 0..50_000_u64,
        count in 1..40_000_u64,
    ) {
        let size = Bytes(50_000 * PAGE_SIZE);
        let region = Region::new(size, Region::MIN_SHIFT);
        let (completed, issued) = (Kernel::new(region), Kernel::new(region));
        let last = (first + count - 1).min(49_999);
        issued.write(first, last);
        let mut marks = Marks::new(region, size, BlockSize::MIN);
        marks.absorb(&issued.cells);
        let dirty = marks.dirty(&completed.cells);
        prop_assert_eq!(dirty.bytes.0, (last - first + 1) * PAGE_SIZE);
        prop_assert_eq!(marks.next_dirty(&completed.cells, BlockIndex(0)), Some(BlockIndex(first / 64)));
    }
}

#[test]
fn marks_set_while_marks_are_taken_are_neither_lost_nor_doubled() {
    let region = Region::new(Bytes(64 * PAGE_SIZE), Region::MIN_SHIFT);
    let kernel = Kernel::new(region);
    let mut marks = Marks::new(region, Bytes(64 * PAGE_SIZE), BlockSize::MIN);
    let mut taken = 0;
    let mut take = |marks: &mut Marks| {
        taken += marks.take(&kernel.cells, BlockIndex(0)).count();
        taken
    };
    let stop = AtomicBool::new(false);
    let set: u64 = std::thread::scope(|scope| {
        // Two writers in one word. A mark counts where there was none.
        let writers = [0, 1].map(|odd| {
            let (cell, stop) = (&kernel.cells[0], &stop);
            scope.spawn(move || {
                let going_on = (0_u64..).take_while(|_| !stop.load(Ordering::SeqCst));
                let bits = going_on.map(|n| 1_u64 << (n * 2 % 64 + odd));
                let new = bits.filter(|bit| cell.fetch_or(*bit, Ordering::SeqCst) & bit == 0);
                number(new.count())
            })
        });
        while take(&mut marks) < 300_000 {}
        stop.store(true, Ordering::SeqCst);
        writers.map(|writer| writer.join().unwrap()).iter().sum()
    });
    assert_eq!(take(&mut marks), set);
}

#[test]
fn forgetting_gives_back_what_came_in_between() {
    let cells: Vec<AtomicU64> = (0..1500).map(|_| AtomicU64::new(1)).collect();
    let asked = AtomicU64::new(0);
    // Disturbed in the second of three batches.
    forget_while(&cells, || asked.fetch_add(1, Ordering::SeqCst) != 1);
    let left: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::SeqCst)).collect();
    assert!(left[..512].iter().all(|word| *word == 0), "undisturbed: forgotten");
    assert!(left[512..].iter().all(|word| *word == 1), "disturbed and not reached: kept");
}

#[test]
fn everything_is_dirty_after_a_doubt_but_nothing_past_the_end() {
    for shift in [Region::MIN_SHIFT, 15, Region::MAX_SHIFT] {
        let size = Bytes(1_000_003 * 512);
        let region = Region::new(size, shift);
        let kernel = Kernel::new(region);
        let mut marks = Marks::new(region, size, BlockSize::MIN);
        marks.mark_all();
        let blocks = BlockSize::MIN.blocks_to_hold(size);
        assert_eq!(marks.dirty(&kernel.cells), Dirty { blocks, bytes: size });
    }
}
