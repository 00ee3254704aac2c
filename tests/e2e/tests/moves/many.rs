//! Hundreds of migrations are known to the coordinator, and one of them is acted upon.

use std::collections::BTreeMap;
use std::time::Instant;

use e2e::{Gate, Scene, SceneOptions, VM};
use lab::Scenario;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// As many as a peer had when its controller did not get on any more.
const PENDING: usize = 400;

fn name(n: usize) -> String {
    format!("pending-{n:03}")
}

fn uuid(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// VMs of their own, switched off at east, each with a migration that was planned and has not begun. To
/// plan for real, each guest would have to be up and answer: their plans are that of `id` with another VM.
fn pending(scene: &Scene, id: &str) {
    let file = scene.east().pool_dir().join("pending.xml");
    let mut all = String::new();
    for n in 0..PENDING {
        let xml = format!(
            "<domain type='qemu'><name>{}</name><uuid>{}</uuid><memory unit='MiB'>64</memory>\
             <os><type>hvm</type></os></domain>",
            name(n),
            uuid(n)
        );
        std::fs::write(file.with_extension(n.to_string()), xml).unwrap();
        all += &format!("define {}; ", file.with_extension(n.to_string()).display());
    }
    scene.east().virsh(&[&all]).unwrap();

    let mut database = Connection::open(scene.state.join("causeway.db")).unwrap();
    let all = database.transaction().unwrap();
    let sql = "SELECT plan, login, created_ms FROM migrations WHERE id = ?1";
    let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let (plan, login, at): (String, String, i64) = all.query_row(sql, [id], columns).unwrap();
    let mut plan: Value = serde_json::from_str(&plan).unwrap();
    let real = plan["vm"]["id"].as_str().unwrap().to_owned();
    for n in 0..PENDING {
        plan["id"] = json!(name(n));
        plan["vm"]["id"] = json!(uuid(n));
        plan["vm"]["name"] = json!(name(n));
        let row = params![name(n), name(n), at - 1, plan.to_string(), login];
        all.execute("INSERT INTO migrations VALUES (?1, ?2, ?3, ?4, ?5)", row).unwrap();
    }
    all.commit().unwrap();

    // Ledgers in which nothing is recorded: the head of one, as `FORMAT.md` has it.
    for site in ["east", "west"] {
        let ledgers = scene.state.join("ledger").join(site);
        let head = std::fs::read(ledgers.join(&real).join("ledger")).unwrap();
        for n in 0..PENDING {
            let of_vm = ledgers.join(uuid(n));
            std::fs::create_dir(&of_vm).unwrap();
            std::fs::write(of_vm.join("ledger"), &head[..HEAD]).unwrap();
        }
    }
}

/// Bytes of an empty ledger.
const HEAD: usize = 32;

/// What `status` says of each, and how often it said that a site was not asked.
fn told(scene: &Scene, arguments: &[&str], code: i32) -> (BTreeMap<String, Value>, usize) {
    let began = Instant::now();
    let ran = scene.causeway(arguments).unwrap().must_exit(code);
    println!("{arguments:?} of {} migrations: {:?}", PENDING + 1, began.elapsed());
    let told = ran.json().into_iter();
    let told =
        told.filter_map(|one| Some((one["id"].as_str()?.to_owned(), one["verdict"].clone())));
    (told.collect(), ran.stderr.matches("was not asked").count())
}

fn is_pending(told: &BTreeMap<String, Value>) {
    for n in 0..PENDING {
        let verdict = &told[&name(n)];
        assert_eq!(verdict["verdict"], "not_started", "{}: {verdict}", name(n));
        assert_eq!(verdict["lives_at"], "source", "{}: {verdict}", name(n));
    }
}

#[test]
fn four_hundred_pending_migrations_hold_up_neither_the_one_that_runs_nor_its_recovery() {
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let gate = Gate::new(scene.dir()).unwrap();
    let more = ["--gate", &gate.command(), "--limit-rate", "3M"];
    scene.migrate_until("phase: copying", &more).unwrap().kill().unwrap();
    let id = scene.id().unwrap();
    pending(&scene, &id);

    // Those that are off are off by nobody's doing here, and somebody may want to know.
    let (all, unasked) = told(&scene, &["status", "--json"], 5);
    assert_eq!((all.len(), unasked), (PENDING + 1, 0));
    is_pending(&all);
    assert_eq!(all[&id]["verdict"], "resumable", "{}", all[&id]);

    // A site that is away is asked once, not by each of them.
    scene.west().stop_libvirtd().unwrap();
    let (all, unasked) = told(&scene, &["status", "--json"], 5);
    assert_eq!((all.len(), unasked), (PENDING + 1, 1));
    for n in 0..PENDING {
        assert_eq!(all[&name(n)]["lives_at"], "source", "{}", all[&name(n)]);
    }
    scene.west().start_libvirtd().unwrap();

    // Killed once more, and settled among all of them.
    let resume = ["resume".to_owned(), id.clone()];
    scene.until("phase: fencing", &resume).unwrap().kill().unwrap();
    let (all, _) = told(&scene, &["recover", "--json"], 5);
    is_pending(&all);
    gate.open().unwrap();
    scene.causeway(&["recover", VM, "--settle", "--yes"]).unwrap().must_exit(0);
    scene.ledger_is_whole(scene.at_west).unwrap();
    assert!(!scene.east().is_running(VM).unwrap(), "the source runs as well");
    let (all, _) = told(&scene, &["status", "--json"], 5);
    is_pending(&all);
    assert_eq!(all[&id]["verdict"], "completed", "{}", all[&id]);
}
