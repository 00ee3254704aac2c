//! The notice that replaces a disk's header, and what is found in its place.

/// Sectors are compared one by one, because a crash may leave any mix of old and new ones.
const SECTOR: usize = 512;

/// Every sector of a notice begins with it.
const MAGIC: &[u8] = b"FENCED by causeway: ";

/// What stands where a piece of a disk was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Every sector as captured.
    Original,
    /// Every sector as the notice has it.
    Notice,
    /// Some so, some so: a crash in the middle.
    Mixed,
    /// Nothing of the notice, and not as captured: the disk was used since.
    Used,
    /// Parts of a notice among what nobody knows.
    Damaged,
}

/// The notice, `length` bytes of it: readable at the start of every sector.
pub(super) fn notice(name: &str, id: &str, length: usize) -> Vec<u8> {
    let line = format!("this disk belongs to VM {name}, which moved to another site; fence {id}\n");
    let mut sector = [MAGIC, line.as_bytes()].concat();
    // A long name must not push the fence's id off the sector: the magic alone tells it then.
    sector.resize(SECTOR, 0);
    sector.iter().copied().cycle().take(length).collect()
}

pub(super) fn compare(now: &[u8], original: &[u8], notice: &[u8]) -> Found {
    if now == original {
        return Found::Original;
    }
    if now == notice {
        return Found::Notice;
    }
    let sectors = now.chunks(SECTOR).zip(original.chunks(SECTOR)).zip(notice.chunks(SECTOR));
    let mut known = now.len() == original.len();
    let mut noticed = false;
    for ((now, original), notice) in sectors {
        known &= now == original || now == notice;
        noticed |= now.starts_with(MAGIC);
    }
    match (known, noticed) {
        (true, _) => Found::Mixed,
        (false, false) => Found::Used,
        (false, true) => Found::Damaged,
    }
}

/// Does it begin with a notice, of whichever fence?
pub(super) fn is_noticed(bytes: &[u8]) -> bool {
    bytes.chunks(SECTOR).any(|sector| sector.starts_with(MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 4 * SECTOR + 100;

    fn original() -> Vec<u8> {
        (0..LENGTH).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[test]
    fn every_mix_of_sectors_is_recognised_as_ours() {
        let (original, notice) = (original(), notice("web1", "id", LENGTH));
        for pattern in 0_u32..32 {
            let mut now = original.clone();
            for sector in (0..5).filter(|sector| pattern >> sector & 1 == 1) {
                let end = LENGTH.min((sector + 1) * SECTOR);
                now[sector * SECTOR..end].copy_from_slice(&notice[sector * SECTOR..end]);
            }
            let expected = match pattern {
                0 => Found::Original,
                31 => Found::Notice,
                _ => Found::Mixed,
            };
            assert_eq!(compare(&now, &original, &notice), expected, "{pattern:05b}");
        }
    }

    #[test]
    fn a_disk_used_since_is_not_taken_for_a_torn_fence() {
        let (original, notice) = (original(), notice("web1", "id", LENGTH));
        let mut now = original.clone();
        now[700] ^= 1;
        assert_eq!(compare(&now, &original, &notice), Found::Used);
        now[..SECTOR].copy_from_slice(&notice[..SECTOR]);
        assert_eq!(compare(&now, &original, &notice), Found::Damaged);
        assert_eq!(compare(&now[..SECTOR], &original, &notice), Found::Damaged);
    }

    #[test]
    fn a_notice_is_readable_and_its_name_cannot_grow_it() {
        let long = notice(&"w".repeat(600), "id", LENGTH);
        assert_eq!(long.len(), LENGTH);
        assert!(is_noticed(&long) && !is_noticed(&original()));
    }
}
