//! The receipt at the end of a migration, and `causeway receipt verify`.

use std::path::Path;

use engine::{Record, Run};
use units::MigrationId;

use super::exit;
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::keys;
use crate::receipt::{Body, DiskReceipt, sign, verify as verify_receipt};
use crate::show::{line, seconds};

fn file(id: &MigrationId) -> String {
    format!("receipts/{id}.json")
}

/// A crash may come between the end of a migration and its receipt.
pub fn exists(context: &Context, id: &MigrationId) -> bool {
    context.store.path().join(file(id)).exists()
}

/// The VM has moved, whatever becomes of its receipt.
fn unwritten(id: &MigrationId, error: &dyn std::error::Error) -> Failure {
    Failure::new(Kind::Undecided, "the migration is done, its receipt cannot be written")
        .caused_by(error)
        .next(format!("causeway resume {id}"))
}

/// Writes and shows the receipt of a migration that has ended.
pub fn write(context: &Context, run: &Run, began_ms: i64) -> Result<(), Failure> {
    let plan = &run.plan;
    let body = body(context, run, began_ms)?;
    let key = keys::install_key(&context.store)?;
    let encode = |error: serde_json::Error| {
        Failure::new(Kind::Undecided, "the receipt cannot be encoded").caused_by(&error)
    };
    let signed = sign(&body, &key).map_err(encode)?;
    let text = serde_json::to_string_pretty(&signed).map_err(encode)?;
    let path = context
        .store
        .write_private(&file(&plan.id), text.as_bytes())
        .map_err(|error| unwritten(&plan.id, &error))?;
    if context.json {
        line(&serde_json::json!({ "done": body, "receipt": path }).to_string());
        return Ok(());
    }
    line(&summary(&body));
    line(&format!("  receipt   {}", path.display()));
    line(&format!("            signed by {}", signed.key));
    line(&format!("  later     delete the source for good: causeway discard {}", body.migration));
    Ok(())
}

fn body(context: &Context, run: &Run, began_ms: i64) -> Result<Body, Failure> {
    let (plan, state) = (&run.plan, &run.state);
    let missing = |what: &str| Failure::new(Kind::Undecided, format!("the journal has no {what}"));
    let drained = state.drained.as_ref().ok_or_else(|| missing("drain"))?;
    let grant = run.custody.granted(run.epoch()).ok_or_else(|| missing("grant"))?;
    let stored = context
        .store
        .migration(plan.id.as_str())
        .map_err(|error| unwritten(&plan.id, &error))?
        .ok_or_else(|| missing("migration"))?;
    let decided_ms = stored
        .records
        .iter()
        .find_map(|(_, record)| match record {
            Record::Decided { at_ms } => Some(*at_ms),
            _ => None,
        })
        .ok_or_else(|| missing("decision"))?;
    let public =
        |site| keys::public_key(&context.store, site).map(|key| hex::encode(key.to_bytes()));
    Ok(Body {
        migration: plan.id.clone(),
        vm: plan.vm.id.to_string(),
        vm_name: plan.vm.name.clone(),
        epoch: run.epoch(),
        from: plan.from.to_string(),
        to: plan.to.to_string(),
        plan: grant.attempt().plan.0,
        disks: plan
            .disks
            .iter()
            .zip(grant.claim().fence.claim().content.disks())
            .map(|(disk, digest)| DiskReceipt {
                target: disk.target.clone(),
                size: disk.size,
                block_size: disk.block_size.bytes(),
                digest: *digest,
            })
            .collect(),
        began_ms,
        decided_ms,
        ended_ms: crate::now_ms(),
        rounds: state.next_round,
        sent: state.rounds.iter().map(|round| round.sent).chain([drained.sent]).sum(),
        wire: state.wire.saturating_add(drained.wire),
        downtime_ms: state.downtime_ms,
        rebuilt: state.rebuilt,
        downtime_forecast_ms: state.forecast_ms,
        downtime_budget_ms: plan.options.max_downtime_ms,
        answered: state.answered_how.clone().unwrap_or_default(),
        tracker: state.tracker.as_ref().map(|(choice, _)| choice.clone()).unwrap_or_default(),
        vouched: state.vouched.clone().map(|(by, reason)| crate::receipt::Word { by, reason }),
        audit: drained.audit.clone(),
        grant: grant.to_string(),
        source_key: public(&plan.from)?,
        destination_key: public(&plan.to)?,
        source_kept_as: state.retired_as.clone().unwrap_or_default(),
    })
}

fn summary(body: &Body) -> String {
    let mut lines = vec![format!("{} runs at {}", body.vm_name, body.to)];
    for disk in &body.disks {
        lines.push(format!("  disk      {}  {}  {}", disk.target, disk.size, disk.digest));
    }
    let forecast = body
        .downtime_forecast_ms
        .map_or_else(String::new, |ms| format!(", forecast {:.1} s", seconds(ms)));
    let downtime = body
        .downtime_ms
        .map_or_else(|| "not known".to_owned(), |ms| format!("{:.1} s", seconds(ms)));
    lines.push(format!(
        "  downtime  {downtime} of {:.1} s allowed{forecast}",
        seconds(body.downtime_budget_ms)
    ));
    let took = u64::try_from(body.ended_ms.saturating_sub(body.began_ms)).unwrap_or_default();
    lines.push(format!(
        "  copied    {} in {} rounds, {} on the wire, {:.0} s in all, tracker {}",
        body.sent,
        body.rounds,
        body.wire,
        seconds(took),
        body.tracker
    ));
    if body.rebuilt {
        lines.push(
            "            since its coordinator was recovered; what was before is not known"
                .to_owned(),
        );
    }
    lines.push(format!("  answered  {}", body.answered));
    if let Some(word) = &body.vouched {
        lines.push(format!(
            "  by word   of {}, since {} did not tell whether it had let go of it: {}",
            word.by, body.from, word.reason
        ));
    }
    lines.push(if body.source_kept_as.is_empty() {
        format!(
            "  source    not kept: its definition at {} was deleted; disks may be left",
            body.from
        )
    } else {
        format!("  source    kept at {} as {}, off and start-proof", body.from, body.source_kept_as)
    });
    lines.join("\n")
}

/// `causeway receipt verify`: needs no state, no network.
pub fn verify(file: &Path, key: Option<&str>, json: bool) -> Result<u8, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(Kind::Refused, format!("cannot read {}", file.display())).caused_by(&error)
    })?;
    let body = verify_receipt(&text, key).map_err(|error| {
        Failure::new(Kind::Refused, format!("{} does not hold", file.display())).caused_by(&error)
    })?;
    if json {
        line(&serde_json::json!({ "valid": true, "receipt": body }).to_string());
        return Ok(exit::DONE);
    }
    line(&summary(&body));
    line("  valid     its signature, the destination's grant and the source's fence in it");
    if key.is_none() {
        line("            say --key HEX to check who signed it");
    }
    Ok(exit::DONE)
}
