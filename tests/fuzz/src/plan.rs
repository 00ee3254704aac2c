//! Plans: read from a file or from what a site keeps, drawn up from whatever a site and a guest say
//! of themselves, and carried on by whatever figures an agent sends.

use std::collections::BTreeMap;

use model::{FenceOffer, SiteReport, Vm};
use plan::rounds::{Budget, Decision, RoundFigures, decide};
use plan::{
    Facts, GuestFacts, GuestFinding, GuestMount, GuestSwap, GuestWriter, Options, Plan, Request,
    devices_of, draw_up,
};
use serde::Deserialize;
use units::Bytes;
use wire::control::{GuestReport, Severity};

use crate::memory::{self, bounded};
use crate::script::Script;

pub fn check(bytes: &[u8]) {
    match bytes.first() {
        Some(0) => rounds(Script(&bytes[1..])),
        Some(b'{') => {
            if let Ok(plan) = bounded(json(bytes), || serde_json::from_slice::<Plan>(bytes)) {
                is_kept(&plan);
            } else if let Ok(found) = serde_json::from_slice(bytes) {
                drawn(found);
            }
        }
        _ => {
            let Ok(text) = str::from_utf8(bytes) else { return };
            if let Ok(plan) = bounded(memory::toml(text.len()), || toml::from_str::<Plan>(text)) {
                is_kept(&plan);
            }
        }
    }
}

/// The plan alone: no tree is made before it.
const fn json(bytes: &[u8]) -> usize {
    512 * bytes.len() + (256 << 10)
}

/// Written down in any way it is the same plan, and what receipts bind themselves to is the same.
fn is_kept(plan: &Plan) {
    let digest = plan.digest().expect("any plan can be written");
    let json = serde_json::to_vec(plan).expect("any plan can be written");
    let again: Plan = serde_json::from_slice(&json).expect("we wrote it");
    assert_eq!(again, *plan);
    assert_eq!(again.digest().expect("as before"), digest);
    // TOML has no numbers above 2^63; a plan with such is not saved.
    if let Ok(text) = toml::to_string_pretty(plan) {
        let again: Plan = toml::from_str(&text).expect("we wrote it");
        assert_eq!(again, *plan);
    }
    let _figures = (plan.total_size(), plan.forecast.fixed_ms());

    let mut resumed = plan.clone();
    resumed.options.max_downtime_ms ^= 1;
    resumed.options.limit_rate = Some(Bytes(1));
    resumed.options.limit_read = None;
    assert_eq!(resumed.digest().expect("as before"), digest, "another plan after `resume`");
    resumed.options.hold = !plan.options.hold;
    assert_ne!(resumed.digest().expect("as before"), digest, "another plan is this one");
}

/// What is found when a request is looked into.
#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    options: Options,
    #[serde(default)]
    pools: BTreeMap<String, String>,
    #[serde(default)]
    networks: BTreeMap<String, String>,
    vm: Vm,
    source: SiteReport,
    destination: SiteReport,
    fence: FenceOffer,
    guest: GuestReport,
    line: Option<Bytes>,
}

/// Any facts give a plan that can be kept, or reasons that an operator can do something about.
fn drawn(found: Found) {
    let Found { options, pools, networks, vm, source, destination, fence, guest, line } = found;
    let site = |name: &str| name.parse().expect("a name");
    let request = Request {
        id: "web1-1".parse().expect("an id"),
        vm: vm.name.clone(),
        from: site("east"),
        to: site("west"),
        pools,
        networks,
        options,
    };
    let facts = Facts {
        source: Ok(source),
        destination: Ok(destination),
        vm: Ok(vm),
        fence: Ok(fence),
        guest: Ok(facts_of(guest)),
        taken: Vec::new(),
        appliance: Ok(()),
        line,
    };
    match draw_up(&request, &facts) {
        Ok(plan) => {
            is_kept(&plan);
            let devices = &facts.guest.as_ref().expect("above").devices;
            let named: Vec<_> = plan.disks.iter().map(|disk| disk.device.clone()).collect();
            assert_eq!(devices_of(&plan.disks, devices).ok(), Some(named));
        }
        Err(refusals) => {
            assert!(!refusals.is_empty(), "neither a plan nor a reason");
            let guest = facts.guest.as_ref().expect("above");
            for refusal in refusals {
                // Some are the agent's own words.
                let is_the_guests = guest.findings.iter().any(|said| said.check == refusal.code);
                let says_all = [&refusal.code, &refusal.text, &refusal.remedy];
                assert!(is_the_guests || says_all.iter().all(|part| !part.is_empty()));
            }
        }
    }
}

/// As `coordinator/src/facts.rs` makes them.
fn facts_of(report: GuestReport) -> GuestFacts {
    let (fine, rest): (Vec<_>, Vec<_>) =
        report.boot.into_iter().partition(|finding| finding.severity == Severity::Fine);
    let finding = |finding: wire::control::BootFinding| GuestFinding {
        check: finding.check,
        blocking: finding.severity == Severity::Blocking,
        text: finding.text,
        remedy: finding.remedy,
    };
    let mount = |mount: wire::control::FileSystem| GuestMount {
        mount_point: mount.mount_point,
        kind: mount.kind,
        disks: mount.disks,
        read_only: mount.read_only,
        freezable: mount.freezable,
    };
    let swap = |swap: wire::control::SwapArea| GuestSwap {
        path: swap.path,
        used: swap.used,
        disks: swap.disks,
    };
    let writer = |writer: wire::control::RawWriter| GuestWriter {
        program: writer.program,
        pid: writer.pid,
        device: writer.device,
        disks: writer.disks,
    };
    GuestFacts {
        kernel: report.kernel,
        os: report.os,
        devices: engine::guest_devices(report.devices),
        mounts: report.file_systems.into_iter().map(mount).collect(),
        swaps: report.swaps.into_iter().map(swap).collect(),
        raw_writers: report.raw_writers.into_iter().map(writer).collect(),
        findings: rest.into_iter().map(finding).collect(),
        fine: fine.into_iter().map(|finding| finding.text).collect(),
        memory_available: report.memory_available,
        tracker: report.tracker.map(|tracker| (tracker.choice.to_string(), tracker.reason)),
        boot_ms: report.boot_ms,
    }
}

/// Whatever figures come, there is a decision, and none to switch over that does not fit.
fn rounds(mut script: Script<'_>) {
    let budget = Budget {
        max_downtime_ms: script.long(),
        fixed_ms: script.long(),
        full_pass_ms: Some(script.long()).filter(|ms| *ms != 0),
        rounds_max: u32::from(script.byte()),
    };
    let since = script.below(4);
    let mut history = Vec::new();
    while !script.0.is_empty() && history.len() < 64 {
        history.push(RoundFigures {
            elapsed_ms: script.long(),
            sent: Bytes(script.long()),
            dirtied: Bytes(script.long()),
            remaining: Bytes(script.long()),
        });
        match decide(&history, since, budget) {
            Decision::SwitchOver { forecast_ms } => {
                assert!((budget.fixed_ms..=budget.max_downtime_ms).contains(&forecast_ms));
            }
            Decision::WontConverge(divergence) => {
                assert!(!divergence.to_string().is_empty() && !divergence.remedies().is_empty());
            }
            Decision::CopyAgain { forecast_ms } => assert!(forecast_ms > budget.max_downtime_ms),
        }
    }
}
