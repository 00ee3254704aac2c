//! A plan, as people read it before they agree to it.

use plan::{Plan, Route};

pub fn plan_text(plan: &Plan) -> String {
    let mut lines = Vec::new();
    let vm = &plan.vm;
    lines.push(format!("{}  {} → {}   ({})", vm.name, plan.from, plan.to, plan.id));
    lines.push(format!(
        "  machine   {} vCPU, {}, {}, {:?}",
        vm.vcpus, vm.memory, vm.machine, vm.firmware
    ));
    for disk in &plan.disks {
        lines.push(format!(
            "  disk      {} ({} in the guest)  {}  → {} in pool {}",
            disk.target, disk.device, disk.size, disk.volume, disk.pool
        ));
    }
    for nic in &plan.nics {
        lines.push(format!("  card      {}  {} → {}", nic.mac, nic.from, nic.network.name()));
    }
    if let Some((choice, reason)) = &plan.tracker {
        lines.push(format!("  tracker   {choice}: {reason}"));
    }
    lines.push(match &plan.options.route {
        Route::Relay => "  route     relayed through this machine, encrypted end to end".to_owned(),
        Route::Direct { network, address } => {
            format!("  route     direct; the helper is {address} on {network}")
        }
    });
    let forecast = &plan.forecast;
    lines.push(format!(
        "  forecast  read {}, send about {}, first round about {}, downtime about {:.0} s of {:.0} s allowed",
        forecast.read,
        forecast.wire,
        minutes(forecast.first_round_s),
        seconds(forecast.downtime_ms),
        seconds(plan.options.max_downtime_ms),
    ));
    for assumption in &forecast.assumptions {
        lines.push(format!("            {assumption}"));
    }
    lines.push(format!(
        "  created   at {}: placeholder {}, {} volume{}, the helper's kernel",
        plan.to,
        vm.name,
        plan.disks.len(),
        if plan.disks.len() == 1 { "" } else { "s" }
    ));
    lines.push("            in the guest: the agent, in memory only; gone with the power-off, removed if called off".to_owned());
    lines.push("  guest     nothing to prepare: firmware, disk buses, card models and addresses stay as they are".to_owned());
    lines.extend(plan.guest_checked.iter().map(|text| format!("            looked at: {text}")));
    for means in &plan.fence.means {
        lines.push(format!("  fence     {}: {}", means.name, means.does));
    }
    for gap in &plan.fence.does_not_stop {
        lines.push(format!("            does not stop: {gap}"));
    }
    let options = &plan.options;
    for (word, what, when) in [
        ("stops", &options.stop_units, "in the guest before the freeze"),
        ("runs", &options.hooks_before, "as root in the guest before the freeze"),
        ("runs", &options.hooks_undo, "as root in the guest if it is called off"),
    ] {
        lines.extend(what.iter().map(|what| format!("  {word:<9} `{}` {when}", script(what))));
    }
    if let Some(gate) = &plan.options.gate {
        lines.push(format!(
            "  gate      `{}` on this machine must succeed before {} starts at {}",
            script(gate),
            vm.name,
            plan.to
        ));
    }
    lines.push(format!(
        "  after     {} is kept at {}, off, renamed and start-proof",
        vm.name, plan.from
    ));
    for warning in &plan.warnings {
        lines.push(format!("  warning   {warning}"));
    }
    lines.join("\n")
}

/// One of several lines cannot be taken for lines of the plan.
fn script(text: &str) -> String {
    text.replace('\n', "\n            | ")
}

fn minutes(seconds: u64) -> String {
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

#[expect(clippy::cast_precision_loss, reason = "shown rounded")]
pub fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
