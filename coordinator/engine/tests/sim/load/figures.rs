//! What a coordinator measured. On the disk five times a second, since it may be killed at any moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(200);

/// Lines of a name and a number: microseconds that something took, or 1 for each of what is counted.
#[derive(Clone)]
pub struct Figures(Arc<Mutex<Lines>>);

struct Lines {
    file: File,
    text: String,
}

impl Figures {
    pub fn into(path: PathBuf) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let figures = Self(Arc::new(Mutex::new(Lines { file, text: String::new() })));
        let lines = Arc::clone(&figures.0);
        thread::spawn(move || {
            loop {
                thread::sleep(EVERY);
                lines.lock().unwrap().write();
            }
        });
        figures
    }

    pub fn took(&self, what: &str, began: Instant) {
        self.line(what, began.elapsed().as_micros());
    }

    pub fn count(&self, what: &str) {
        self.line(what, 1);
    }

    fn line(&self, what: &str, number: u128) {
        writeln!(self.0.lock().unwrap().text, "{what}\t{number}").unwrap();
    }

    /// The process has nothing more to do.
    pub fn end(&self) {
        self.0.lock().unwrap().write();
    }
}

impl Lines {
    fn write(&mut self) {
        let peak = peak_kib(Path::new("/proc/self/status")).unwrap();
        writeln!(self.text, "peak KiB\t{peak}").unwrap();
        // In one call, so that a kill leaves whole lines.
        self.file.write_all(self.text.as_bytes()).unwrap();
        self.text.clear();
    }
}

/// The most memory that a process ever had resident.
fn peak_kib(status: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// What lives left in them, sorted.
pub struct Found(BTreeMap<String, Vec<u64>>);

impl Found {
    pub fn read(paths: &[PathBuf]) -> Self {
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let text: String =
            paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        for line in text.lines() {
            let (what, number) = line.split_once('\t').unwrap();
            found.entry(what.to_owned()).or_default().push(number.parse().unwrap());
        }
        found.values_mut().for_each(|numbers| numbers.sort_unstable());
        Self(found)
    }

    pub fn count(&self, what: &str) -> usize {
        self.0.get(what).map_or(0, Vec::len)
    }

    pub fn most(&self, what: &str) -> u64 {
        self.0.get(what).and_then(|numbers| numbers.last().copied()).unwrap_or_default()
    }

    /// p50, p99 and the most, in milliseconds.
    pub fn times(&self, what: &str) -> String {
        let numbers = self.0.get(what).map(Vec::as_slice).unwrap_or_default();
        let ms = |micros: u64| format!("{}.{:02}", micros / 1000, micros % 1000 / 10);
        let at = |percent: usize| {
            numbers.get((numbers.len() * percent).div_ceil(100).saturating_sub(1)).copied()
        };
        let [p50, p99, most] = [at(50), at(99), at(100)].map(|of| ms(of.unwrap_or_default()));
        format!("{p50:>10} {p99:>10} {most:>10}   of {}", numbers.len())
    }
}
