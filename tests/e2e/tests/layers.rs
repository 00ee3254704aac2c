//! Who may use whom, and that no test is forgotten. The rule is a table; cargo says what is true.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each crate of ours and the crates of ours that it may depend on, at build and at run time.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("model", &["units"]),
    ("journal", &[]),
    ("wire", &["units"]),
    ("rpc", &["units"]),
    (
        "causeway-mobility",
        &[
            "handover",
            "journal",
            "model",
            "rpc",
            "site",
            "site-ledger",
            "site-libvirt",
            "transfer",
            "units",
            "wire",
        ],
    ),
    ("plan", &["model", "units"]),
    ("handover", &["model", "units"]),
    ("transfer", &["units", "wire"]),
    ("track", &["units", "wire"]),
    ("site", &["model", "transfer", "units"]),
    ("appliance", &["units"]),
    ("guest-ssh", &["model", "site", "transfer", "units"]),
    ("site-libvirt", &["model", "site", "transfer", "units"]),
    ("site-memory", &["model", "site", "transfer", "units"]),
    ("site-ledger", &["handover", "journal", "model", "site", "units"]),
    (
        "engine",
        &[
            "handover",
            "journal",
            "model",
            "plan",
            "site",
            "site-ledger",
            "transfer",
            "units",
            "wire",
        ],
    ),
    ("store", &["engine", "model", "plan", "units"]),
    ("causeway-agent", &["track", "transfer", "units", "wire"]),
    (
        "causeway",
        &[
            "appliance",
            "engine",
            "guest-ssh",
            "handover",
            "journal",
            "model",
            "plan",
            "site",
            "site-ledger",
            "site-libvirt",
            "site-memory",
            "store",
            "transfer",
            "units",
            "wire",
        ],
    ),
    ("lab", &[]),
    ("bench", &["lab"]),
    ("e2e", &["lab"]),
];

/// No runtime, no files, no clock, no randomness: time and entropy are arguments.
const PURE: &[&str] = &["units", "wire", "rpc", "model", "plan", "handover"];
const IMPURE: &[&str] =
    &["tokio", "getrandom", "rand", "rustix", "nix", "libc", "jiff", "tempfile"];

fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .expect("cargo runs");
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    match metadata["packages"].take() {
        Value::Array(packages) => packages,
        other => panic!("a workspace has packages: {other}"),
    }
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let of = |package: &Value| {
        let normal = package["dependencies"].as_array().into_iter().flatten();
        normal
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str().map(ToOwned::to_owned))
            .collect()
    };
    packages()
        .iter()
        .map(|package| (package["name"].as_str().unwrap_or_default().to_owned(), of(package)))
        .collect()
}

#[test]
fn crates_depend_only_downwards() {
    let found = dependencies();
    let ours: BTreeSet<_> = found.keys().cloned().collect();
    let known: BTreeSet<_> = MAY_USE.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(ours, known, "a crate is missing in the table, or is gone");
    for (name, may_use) in MAY_USE {
        for used in found[*name].intersection(&ours) {
            assert!(may_use.contains(&used.as_str()), "{name} may not use {used}");
        }
    }
}

#[test]
fn pure_crates_have_no_runtime_files_clock_or_randomness() {
    let found = dependencies();
    for name in PURE {
        for used in IMPURE {
            assert!(!found[*name].contains(*used), "{name} is pure and may not use {used}");
        }
    }
}

/// Each of these is one crate's business: whoever else needs it asks that crate.
#[test]
fn each_cloud_and_protocol_library_has_one_user() {
    let found = dependencies();
    for (library, owner) in [("virt", "site-libvirt"), ("russh", "guest-ssh"), ("aya", "track")] {
        let users: Vec<_> = found.iter().filter(|(_, uses)| uses.contains(library)).collect();
        let names: Vec<_> = users.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [owner], "{library}");
    }
}

/// Tests that a plain `cargo test` leaves out are run by make, or by nobody.
#[test]
fn every_test_that_is_left_out_is_named_in_the_makefile() {
    let makefile = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Makefile");
    let makefile = std::fs::read_to_string(makefile).expect("there is a Makefile");
    let lists = makefile.lines().filter_map(|line| {
        ["REAL := ", "REST := ", "MORE := ", "SOAK := "]
            .iter()
            .find_map(|name| line.strip_prefix(name))
    });
    let named: BTreeSet<_> = lists.flat_map(|list| list.split(' ')).map(str::to_owned).collect();
    let packages = packages();
    let targets = packages.iter().flat_map(|package| package["targets"].as_array()).flatten();
    let left_out: BTreeSet<_> = targets
        .filter(|target| target["kind"][0] == "test" && target["test"] == false)
        .map(|target| target["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(named, left_out);
}
