//! A migration with its disk, in libvirt's order: mirror, memory, the mirror's end, the rest of memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::line::{Bytes, Line, Via};
use crate::vm::{Spec, Vm};

const PATIENCE: Duration = Duration::from_secs(600);

/// How it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// QEMU's several channels, and what they compress with.
    pub multifd: Option<&'static str>,
    /// Pages that are sent again, as what has changed of them.
    pub xbzrle: bool,
    pub via: Via,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    pub bytes: Bytes,
    /// What was carried from end to end.
    pub carried: u64,
    pub disk: Duration,
    pub memory: Duration,
    pub downtime_ms: u64,
    /// Of it, until the mirror had ended, and then until all of memory was there.
    pub mirror_end: Duration,
    pub rest_of_memory: Duration,
    pub rounds: u64,
}

fn is(key: &str, value: &str) -> impl Fn(&Value) -> bool {
    move |answer| answer[key] == value
}

/// Moves the VM to a new QEMU with a new disk; the old one is killed.
pub fn go(
    dir: &Path,
    name: &str,
    spec: &Spec,
    (mut source, source_disk): (Vm, PathBuf),
    how: How,
    bytes_per_s: Option<u64>,
) -> ((Vm, PathBuf), Took) {
    let disk = dir.join(format!("{name}.raw"));
    let len = fs::metadata(&source_disk).expect("a disk").len();
    fs::File::create(&disk).and_then(|file| file.set_len(len)).expect("a disk");
    let mut destination = Vm::start(dir, name, spec, &disk, true);
    let [memory_at, disk_at] = ["memory", "disk"].map(|what| dir.join(format!("{name}.{what}")));
    let unix = |path: &Path| json!({ "type": "unix", "data": { "path": path } });
    destination.execute("nbd-server-start", &json!({ "addr": unix(&disk_at) }));
    let export = json!({ "type": "nbd", "id": "e0", "node-name": "disk0", "name": "disk0", "writable": true });
    destination.execute("block-export-add", &export);
    let line = Line::new(dir, how.via, bytes_per_s, [memory_at.clone(), disk_at]);

    let began = Instant::now();
    let target = json!({ "node-name": "target", "driver": "nbd", "export": "disk0",
        "server": { "type": "unix", "path": line.disk } });
    source.execute("blockdev-add", &target);
    let mirror =
        json!({ "job-id": "mirror", "device": "disk0", "target": "target", "sync": "full" });
    source.execute("blockdev-mirror", &mirror);
    source.until("query-block-jobs", PATIENCE, |jobs| jobs[0]["ready"] == true);
    let disk_took = began.elapsed();

    let began = Instant::now();
    let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let set = json!({ "capabilities": [capability("multifd", how.multifd.is_some()),
        capability("xbzrle", how.xbzrle), capability("pause-before-switchover", true), capability("return-path", true)] });
    let parameters = json!({ "max-bandwidth": 1_u64 << 32, "multifd-channels": 2,
        "multifd-compression": how.multifd.unwrap_or("none"), "multifd-zstd-level": 1, "xbzrle-cache-size": 256 << 20,
        "downtime-limit": 300 });
    for vm in [&mut source, &mut destination] {
        vm.execute("migrate-set-capabilities", &set);
        vm.execute("migrate-set-parameters", &parameters);
    }
    let uri = |path: &Path| json!({ "uri": format!("unix:{}", path.display()) });
    destination.execute("migrate-incoming", &uri(&memory_at));
    source.execute("migrate", &uri(&line.memory));
    source.until("query-migrate", PATIENCE, is("status", "pre-switchover"));
    let paused = Instant::now();
    source.execute("block-job-cancel", &json!({ "device": "mirror" }));
    source.until("query-block-jobs", PATIENCE, |jobs| jobs.as_array().is_some_and(Vec::is_empty));
    source.execute("blockdev-del", &json!({ "node-name": "target" }));
    let mirrored = paused.elapsed();
    source.execute("migrate-continue", &json!({ "state": "pre-switchover" }));
    let ended = |answer: &Value| {
        assert_ne!(answer["status"], "failed", "{answer}");
        answer["status"] == "completed"
    };
    let figures = source.until("query-migrate", PATIENCE, ended);
    let rest = paused.elapsed() - mirrored;
    destination.until("query-migrate", PATIENCE, ended);
    destination.execute("nbd-server-stop", &json!({}));
    destination.execute("cont", &json!({}));
    let memory_took = began.elapsed();
    drop(source);
    let bytes = line.bytes();
    let took = Took {
        bytes,
        carried: line.must_have_carried_all(),
        disk: disk_took,
        memory: memory_took,
        downtime_ms: figures["downtime"].as_u64().unwrap_or(0),
        mirror_end: mirrored,
        rest_of_memory: rest,
        rounds: figures["ram"]["dirty-sync-count"].as_u64().unwrap_or(0),
    };
    fs::remove_file(source_disk).expect("it was there");
    ((destination, disk), took)
}
