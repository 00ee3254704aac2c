//! What makes a guest's memory like that of one that is used: programs, their data, files that were read.

/// For Python 3, as `work.py RATE [FILE] [READ]`: an index of what is installed, of READ MiB, in its heap,
/// and RATE MiB a second of it changed, or what FILE says from then on. It prints `ready` once the index
/// is there.
pub const INDEX: &str = include_str!("load/work.py");

/// For Perl: words of what is installed, in a hash.
pub const WORDS: &str = include_str!("load/work.pl");
