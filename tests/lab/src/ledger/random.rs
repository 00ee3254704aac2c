//! Random writes into preallocated files, and the search for what became of them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    append::sync_dir,
    block::{BLOCK, Content, Label},
    chain::Chain,
    record::{RunId, Write},
};

/// One write is this many blocks at most: 64 KiB.
pub const MAX_BLOCKS_PER_WRITE: u64 = 16;

/// A file is scanned in pieces of this many bytes.
const PIECE: usize = 256 * BLOCK;

/// Shape of the random files of one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomShape {
    pub files: u16,
    /// Blocks of [`BLOCK`] bytes in each file, at least [`MAX_BLOCKS_PER_WRITE`].
    pub blocks: u32,
}

/// Writes at random places, each write under a generation of its own.
#[derive(Debug)]
pub struct RandomWriter {
    files: Vec<File>,
    blocks: u32,
    run: RunId,
    generation: u64,
    dice: Dice,
    buffer: Vec<u8>,
}

impl RandomWriter {
    /// Opens or preallocates the files. `generation` is the highest that any block may carry.
    pub fn open(
        dir: &Path,
        shape: RandomShape,
        run: RunId,
        generation: u64,
        dice: Dice,
    ) -> io::Result<Self> {
        let mut files = Vec::new();
        for number in 0..shape.files {
            let path = random_file(dir, number);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
            let wanted = u64::from(shape.blocks) * u64_of(BLOCK);
            if file.metadata()?.len() < wanted {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, wanted)?;
            }
            file.sync_all()?;
            files.push(file);
        }
        sync_dir(dir)?;
        Ok(Self { files, blocks: shape.blocks, run, generation, dice, buffer: Vec::new() })
    }

    /// Writes 4 to 64 KiB somewhere. Nothing is durable before [`Self::sync`].
    pub fn write(&mut self) -> io::Result<Write> {
        let file = self.dice.below(u64_of(self.files.len()));
        let count = 1 + self.dice.below(MAX_BLOCKS_PER_WRITE);
        let first = self.dice.below(u64::from(self.blocks) - count + 1);
        self.generation += 1;
        let write = Write {
            file: narrow(file),
            count: narrow(count),
            first: narrow(first),
            generation: self.generation,
        };
        self.buffer.clear();
        for index in write.first..write.first + u32::from(write.count) {
            let label =
                Label { file: write.file, index, generation: write.generation, run: self.run };
            label.fill(&mut self.buffer);
        }
        let target = &self.files[usize::from(write.file)];
        target.write_all_at(&self.buffer, first * u64_of(BLOCK))?;
        Ok(write)
    }

    pub fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(File::sync_data)
    }
}

/// One block of a random file that is not what the ledger promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    pub file: u16,
    pub block: u32,
    #[serde(flatten)]
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// Neither blank nor whole.
    Torn,
    /// A durable write is gone: the block is blank (`found` is absent) or older.
    Lost { durable: u64, found: Option<u64> },
    /// The block belongs elsewhere.
    Misplaced { of_file: u16, of_block: u32 },
    /// Written by a run that the ledger does not know.
    Foreign { run: RunId },
}

/// What a scan of the random files of one directory found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    pub checked: u64,
    pub blank: u64,
    pub damage: Vec<Damage>,
    /// The highest generation in any good block.
    pub generation: u64,
}

/// Compares every block of the random files with what the ledger says is durable. The ledger must
/// have been read first: a writer at work then only ever has newer blocks.
pub fn scan(dir: &Path, chain: &Chain) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut sizes = std::collections::HashMap::new();
    for number in random_files(dir)? {
        let file = File::open(random_file(dir, number))?;
        let blocks = scan.file(&file, number, chain)?;
        sizes.insert(number, blocks);
    }
    for (&(file, block), &durable) in &chain.durable {
        if block >= sizes.get(&file).copied().unwrap_or(0) {
            scan.damage.push(Damage { file, block, fault: Fault::Lost { durable, found: None } });
        }
    }
    scan.damage.sort_by_key(|damage| (damage.file, damage.block));
    Ok(scan)
}

impl Scan {
    fn file(&mut self, file: &File, number: u16, chain: &Chain) -> io::Result<u32> {
        let mut piece = vec![0; PIECE];
        let mut index = 0;
        loop {
            let read = read_full(file, &mut piece, u64::from(index) * u64_of(BLOCK))?;
            for block in piece[..read].chunks_exact(BLOCK) {
                let content = settled(file, index, block)?;
                self.judge(content, number, index, chain);
                index += 1;
            }
            if read < piece.len() {
                return Ok(index);
            }
        }
    }

    fn judge(&mut self, content: Content, file: u16, block: u32, chain: &Chain) {
        self.checked += 1;
        let durable = chain.durable.get(&(file, block)).copied();
        let fault = match (content, durable) {
            (Content::Torn, _) => Some(Fault::Torn),
            (Content::Blank, None) => {
                self.blank += 1;
                None
            }
            (Content::Blank, Some(durable)) => Some(Fault::Lost { durable, found: None }),
            (Content::Good(label), _) if (label.file, label.index) != (file, block) => {
                Some(Fault::Misplaced { of_file: label.file, of_block: label.index })
            }
            (Content::Good(label), _) if !chain.has_run(label.run) => {
                Some(Fault::Foreign { run: label.run })
            }
            (Content::Good(label), durable) => {
                self.generation = self.generation.max(label.generation);
                let durable = durable.unwrap_or(0);
                let found = Some(label.generation);
                (label.generation < durable).then_some(Fault::Lost { durable, found })
            }
        };
        self.damage.extend(fault.map(|fault| Damage { file, block, fault }));
    }
}

/// What the block holds; one that looks torn is read again, as a writer may be in the middle of it.
fn settled(file: &File, index: u32, first_look: &[u8]) -> io::Result<Content> {
    let mut content = Content::of(first_look);
    for _ in 0..5 {
        if content != Content::Torn {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        let mut block = [0; BLOCK];
        file.read_exact_at(&mut block, u64::from(index) * u64_of(BLOCK))?;
        content = Content::of(&block);
    }
    Ok(content)
}

fn read_full(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at + u64_of(filled))? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

fn random_file(dir: &Path, number: u16) -> PathBuf {
    dir.join(format!("random-{number}"))
}

fn random_files(dir: &Path) -> io::Result<Vec<u16>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: Option<u16> =
            name.to_str().and_then(|name| name.strip_prefix("random-")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Numbers that look random and repeat with their seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0. The bias of the remainder does not matter here.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

fn narrow<T: TryFrom<u64>>(number: u64) -> T
where
    T::Error: std::fmt::Debug,
{
    T::try_from(number).expect("drawn below a bound of the same type")
}

fn u64_of(size: usize) -> u64 {
    u64::try_from(size).expect("sizes in memory fit in 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{append::Appender, record::Body};

    const SHAPE: RandomShape = RandomShape { files: 2, blocks: 32 };

    /// Writes, makes durable and records `rounds` random writes.
    fn work(dir: &Path, rounds: u64, seed: u64) -> Vec<Write> {
        let (mut appender, chain) = Appender::open(dir).unwrap();
        let generation = scan(dir, &chain).unwrap().generation.max(chain.generation);
        appender.announce(0).unwrap();
        let mut random =
            RandomWriter::open(dir, SHAPE, appender.run(), generation, Dice::new(seed)).unwrap();
        let writes: Vec<_> = (0..rounds).map(|_| random.write().unwrap()).collect();
        random.sync().unwrap();
        appender.append(Body::Durable { writes: writes.clone() }).unwrap();
        writes
    }

    fn faults(dir: &Path) -> Vec<Fault> {
        let chain = Chain::read(dir).unwrap();
        scan(dir, &chain).unwrap().damage.into_iter().map(|damage| damage.fault).collect()
    }

    fn block_of(dir: &Path, write: &Write) -> (File, u64) {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(random_file(dir, write.file)).unwrap();
        (file, u64::from(write.first) * u64_of(BLOCK))
    }

    #[test]
    fn honest_files_are_undamaged_through_two_runs() {
        let dir = tempfile::tempdir().unwrap();
        let first = work(dir.path(), 40, 1);
        let second = work(dir.path(), 40, 2);
        assert_eq!(faults(dir.path()), []);
        let last_of_first = first.last().unwrap().generation;
        assert!(second.iter().all(|write| write.generation > last_of_first));
    }

    #[test]
    fn an_older_block_put_back_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let write = work(dir.path(), 1, 1)[0];
        let (file, at) = block_of(dir.path(), &write);
        let mut old = [0; BLOCK];
        file.read_exact_at(&mut old, at).unwrap();
        // Writes until this very block is overwritten, then undoes that.
        let newer = (2..).find_map(|seed| {
            let over = |w: &Write| {
                w.file == write.file
                    && (w.first..w.first + u32::from(w.count)).contains(&write.first)
            };
            work(dir.path(), 20, seed).into_iter().rfind(over)
        });
        let durable = newer.unwrap().generation;
        assert_eq!(faults(dir.path()), []);
        file.write_all_at(&old, at).unwrap();
        let found = Some(write.generation);
        assert_eq!(faults(dir.path()), [Fault::Lost { durable, found }]);
    }

    #[test]
    fn a_blanked_block_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let write = work(dir.path(), 1, 1)[0];
        let (file, at) = block_of(dir.path(), &write);
        file.write_all_at(&[0; BLOCK], at).unwrap();
        assert_eq!(faults(dir.path()), [Fault::Lost { durable: write.generation, found: None }]);
    }

    #[test]
    fn a_missing_file_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let write = work(dir.path(), 1, 1)[0];
        fs::remove_file(random_file(dir.path(), write.file)).unwrap();
        assert_eq!(faults(dir.path()).len(), usize::from(write.count));
    }

    #[test]
    fn half_a_block_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let write = work(dir.path(), 1, 1)[0];
        let (file, at) = block_of(dir.path(), &write);
        file.write_all_at(&[0; BLOCK / 2], at).unwrap();
        assert_eq!(faults(dir.path()), [Fault::Torn]);
    }

    #[test]
    fn a_block_at_the_wrong_place_is_misplaced() {
        let dir = tempfile::tempdir().unwrap();
        let write = work(dir.path(), 1, 1)[0];
        let (file, at) = block_of(dir.path(), &write);
        let mut block = [0; BLOCK];
        file.read_exact_at(&mut block, at).unwrap();
        let elsewhere = if write.first == 0 { 31 } else { write.first - 1 };
        file.write_all_at(&block, u64::from(elsewhere) * u64_of(BLOCK)).unwrap();
        let fault = Fault::Misplaced { of_file: write.file, of_block: write.first };
        assert_eq!(faults(dir.path()), [fault]);
    }

    #[test]
    fn a_block_of_an_unknown_run_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let write = work(dir.path(), 1, 1)[0];
        let (file, at) = block_of(dir.path(), &write);
        let run = RunId([8; 16]);
        let mut block = Vec::new();
        Label { file: write.file, index: write.first, generation: 99, run }.fill(&mut block);
        file.write_all_at(&block, at).unwrap();
        assert_eq!(faults(dir.path()), [Fault::Foreign { run }]);
    }
}
