//! Many migrations at once in one coordinator, on real files; it is killed in the middle, and the next
//! one brings them all to their end.
//!
//! ```text
//!  this process                                   the coordinator: this program once more
//!  sites, guests, agents, helpers ── socket ────  engine::migrate of each ─── STATE/causeway.db
//!     one world for each VM                       status of one after the other  STATE/ledger/…
//!  kills it, starts it again, looks at the VMs    figures
//! ```
//!
//! `make load` has 1,000 of them and prints the figures; nothing is asserted about time.

mod coordinator;
mod far;
mod figures;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plan::Options;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;

use self::coordinator::{CLOUDS, PLANS, figures_of};
use self::far::Clouds;
use self::figures::Found;
use crate::stage::Stage;

/// How many; `make load` says otherwise.
const MIGRATIONS: usize = 50;
/// Of each, as many as there are where nothing else is asked for.
const STREAMS: u16 = 2;
/// Bytes in each data stream: more than what a relay holds of it.
const CARRIED: usize = 512 << 10;
const PEAK_MAX_KIB: u64 = 1 << 20;

/// Where a coordinator that was started by the test finds what it needs.
const DIR: &str = "SIM_LOAD_DIR";

#[test]
fn all_at_once_in_one_coordinator_come_to_their_end_though_it_is_killed() {
    // Two streams and a ledger of each side, and the two ends of whatever is asked.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    if let Some(dir) = std::env::var_os(DIR) {
        return coordinator::live(Path::new(&dir));
    }
    let count = std::env::var("MIGRATIONS").map_or(MIGRATIONS, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(all(count, dir.path()));
}

async fn all(count: usize, dir: &Path) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!("migrations     {count} at once, {STREAMS} data streams each");
    println!("machine        load before start {}", load.trim());
    let mut stages = Vec::new();
    for number in 0..count {
        let options = Options { streams: STREAMS, hold: true, ..Options::default() };
        stages.push(Stage::of(&format!("vm{number}"), options, CARRIED).await);
    }
    let plans: Vec<_> = stages.iter().map(|stage| &stage.plan).collect();
    std::fs::write(dir.join(PLANS), serde_json::to_vec(&plans).unwrap()).unwrap();
    let clouds = Clouds::new(&stages);
    let listener = UnixListener::bind(dir.join(CLOUDS)).unwrap();
    let mut serving = tokio::spawn(Arc::clone(&clouds).serve(listener));
    tokio::select! {
        served = &mut serving => served.unwrap(),
        () = two_lives(count, dir, &clouds) => {}
    }
    for stage in &stages {
        stage.assert_moved().await;
    }
    println!(
        "ends           {count} of {count} live at their destination, with all that was written"
    );
    serving.abort();
}

async fn two_lives(count: usize, dir: &Path, clouds: &Clouds) {
    let began = Instant::now();
    let mut first = Coordinator::start(dir);
    // Where most is at stake: half of the sources are off.
    while clouds.powered_off.load(Ordering::Relaxed) < count.div_ceil(2) {
        assert!(!first.has_ended(), "it ended before it was killed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let killed = began.elapsed();
    let again = Instant::now();
    let mut second = Coordinator::start(dir);
    while !second.has_ended() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recovered = again.elapsed();

    let [first, second] = [1, 2].map(|life| Found::read(&[dir.join(figures_of(life))]));
    let both = Found::read(&[dir.join(figures_of(1)), dir.join(figures_of(2))]);
    let peak = both.most("peak KiB");
    println!("peak           {} MiB resident, of either life", peak.div_ceil(1024));
    println!(
        "killed         after {:.1} s, kill -9; {} of them had ended",
        killed.as_secs_f64(),
        first.count("Retired")
    );
    println!(
        "recovered      {:.1} s until all were read again, {:.1} s until all had ended",
        Duration::from_micros(second.most("read again")).as_secs_f64(),
        recovered.as_secs_f64()
    );
    println!("told to go on  {}", both.count("told to go on"));
    println!("                    p50 ms     p99 ms    most ms");
    for what in ["status", "journal", "ledger"] {
        println!("{what:<13}{}", both.times(what));
    }
    assert_eq!(second.count("Retired"), count, "not all have ended");
    assert!(peak < PEAK_MAX_KIB, "{peak} KiB");
}

/// A process of its own, which ends with the test.
struct Coordinator(Child);

impl Coordinator {
    fn start(dir: &Path) -> Self {
        let name = concat!(
            module_path!(),
            "::all_at_once_in_one_coordinator_come_to_their_end_though_it_is_killed"
        );
        let name = name.split_once("::").map_or(name, |(_, name)| name);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]).env(DIR, dir).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// If it has, it ended well.
    fn has_ended(&mut self) -> bool {
        let ended = self.0.try_wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
        ended.is_some()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // Most likely it ended already.
        let _killed = self.0.kill();
        let _waited = self.0.wait();
    }
}
