//! Rules for a site that a VM leaves.

use model::{DiskUse, Power, Vm, VmId};
use uuid::Uuid;

use super::{Breach, Fixture, check, refused, succeeds};
use crate::{FenceStage, Site, SiteErrorKind, StoppedBy};

pub(super) async fn inventory(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    let rule = "a probe answers, and names the pools that can be used";
    let report = succeeds(rule, site.probe().await)?;
    for pool in fixture.placeholder.disks.iter().map(|disk| &disk.pool) {
        check(rule, report.pools.iter().any(|offer| offer.name == *pool), &report.pools)?;
    }
    let rule = "a VM is found by its name and by its id, and is the same";
    let by_id = look(site, fixture).await?;
    let mut by_name = succeeds(rule, site.vm(&by_id.name).await)?;
    by_name.disks.iter_mut().for_each(|disk| disk.allocated = None);
    check(rule, by_name == by_id && by_id.id == fixture.source, (&by_name, &by_id))?;

    let rule = "every VM is listed with its id and name";
    let vms = succeeds(rule, site.vms().await)?;
    check(rule, vms.contains(&(by_id.id, by_id.name.clone())), &vms)?;

    let rule = "the fixture's VM runs, is persistent, and has a writable disk of known size";
    let usable = by_id.disks.iter().any(|disk| disk.usage == DiskUse::Data && disk.size.0 > 0);
    check(rule, usable && by_id.power == Power::Running && by_id.persistent, &by_id)?;

    let rule = "a VM that is not there is said not to be, with the names of those that are";
    let missing = site.vm("no-such-vm-as-this").await;
    let error = refused(rule, missing, &[SiteErrorKind::NotFound])?;
    let told = format!("{} {}", error.what, error.hint.unwrap_or_default());
    check(rule, told.contains(&by_id.name), told)
}

pub(super) async fn power(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    let vm = fixture.source;
    let rule = "the power of a VM that is not there is an answer";
    let absent = succeeds(rule, site.power(VmId(Uuid::nil())).await)?;
    check(rule, absent == Power::Absent, absent)?;

    let rule = "suspending twice leaves it paused";
    succeeds(rule, site.suspend(vm).await)?;
    succeeds(rule, site.suspend(vm).await)?;
    power_is(site, rule, vm, Power::Paused).await?;

    let rule = "a suspended VM writes nothing, and its writes are counted";
    let before = succeeds(rule, site.write_counts(vm).await)?;
    let after = succeeds(rule, site.write_counts(vm).await)?;
    check(rule, before == after && !before.is_empty(), (&before, &after))?;

    let rule = "resuming twice leaves it running";
    succeeds(rule, site.resume(vm).await)?;
    succeeds(rule, site.resume(vm).await)?;
    power_is(site, rule, vm, Power::Running).await?;

    let rule = "powering a running VM on is harmless";
    succeeds(rule, site.power_on(vm).await)?;
    power_is(site, rule, vm, Power::Running).await?;

    let rule = "nothing stopped a VM that is there and runs, nor one that is not there";
    for vm in [vm, VmId(Uuid::nil())] {
        let stopped = succeeds(rule, site.stopped_by(vm).await)?;
        check(rule, stopped.is_none(), stopped)?;
    }

    let rule = "powering off twice leaves it off";
    succeeds(rule, site.power_off(vm).await)?;
    succeeds(rule, site.power_off(vm).await)?;
    power_is(site, rule, vm, Power::Off).await?;

    let rule = "what was powered off is known not to have run to its end";
    let stopped = succeeds(rule, site.stopped_by(vm).await)?;
    check(rule, stopped == Some(StoppedBy::PoweredOff), stopped)?;

    let rule = "a VM that is off cannot be suspended, resumed or asked for its writes";
    refused(rule, site.suspend(vm).await, &[SiteErrorKind::WrongState])?;
    refused(rule, site.resume(vm).await, &[SiteErrorKind::WrongState])?;
    refused(rule, site.write_counts(vm).await, &[SiteErrorKind::WrongState])?;

    let rule = "powering on brings it back";
    succeeds(rule, site.power_on(vm).await)?;
    power_is(site, rule, vm, Power::Running).await
}

pub(super) async fn fence_of_the_definition(
    site: &dyn Site,
    fixture: &Fixture,
) -> Result<(), Breach> {
    let vm = fixture.source;
    let before = look(site, fixture).await?;
    let rule = "a fence is offered with its means, one sentence each";
    let offer = succeeds(rule, site.fence_offer(vm).await)?;
    let told = offer.means.iter().all(|means| !means.name.is_empty() && !means.does.is_empty());
    check(rule, told && !offer.means.is_empty(), &offer)?;

    let rule = "a definition's fence can be captured from a running VM, and that changes nothing";
    let record = succeeds(rule, site.fence_capture(vm, FenceStage::Definition).await)?;
    let after = look(site, fixture).await?;
    check(rule, after == before, (&before, &after))?;

    let rule = "a fence that was never made can be undone, and does not hold";
    succeeds(rule, site.fence_undo(vm, &record).await)?;
    check(rule, !succeeds(rule, site.fence_holds(vm, &record).await)?, "it holds")?;
    let after = look(site, fixture).await?;
    check(rule, after == before, (&before, &after))?;

    let rule = "a definition is fenced while the VM runs, twice as well as once";
    succeeds(rule, site.fence_apply(vm, &record).await)?;
    succeeds(rule, site.fence_apply(vm, &record).await)?;
    check(rule, succeeds(rule, site.fence_holds(vm, &record).await)?, "it does not hold")?;
    power_is(site, rule, vm, Power::Running).await?;

    let rule = "the disks of a VM that is not off are neither captured nor fenced";
    let early = site.fence_capture(vm, FenceStage::Disks).await;
    refused(rule, early, &[SiteErrorKind::WrongState])?;

    let rule = "a VM with a fenced definition does not start";
    succeeds(rule, site.power_off(vm).await)?;
    refused(
        rule,
        site.power_on(vm).await,
        &[SiteErrorKind::WrongState, SiteErrorKind::Platform, SiteErrorKind::NotFound],
    )?;
    power_is(site, rule, vm, Power::Off).await?;

    let rule = "undoing a definition's fence, twice, gives the VM back as it was";
    succeeds(rule, site.fence_undo(vm, &record).await)?;
    succeeds(rule, site.fence_undo(vm, &record).await)?;
    check(rule, !succeeds(rule, site.fence_holds(vm, &record).await)?, "it holds")?;
    succeeds(rule, site.power_on(vm).await)?;
    power_is(site, rule, vm, Power::Running).await?;
    let after = look(site, fixture).await?;
    check(rule, after.autostart == before.autostart, (&before, &after))?;
    check(rule, locations(&after) == locations(&before), (&before, &after))
}

pub(super) async fn fence_of_the_disks(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    let vm = fixture.source;
    let running = look(site, fixture).await?;
    let rule = "the disks can be captured once the VM is off and its definition fenced";
    let definition = succeeds(rule, site.fence_capture(vm, FenceStage::Definition).await)?;
    succeeds(rule, site.fence_apply(vm, &definition).await)?;
    succeeds(rule, site.power_off(vm).await)?;
    let content = contents(fixture, &running);
    let record = succeeds(rule, site.fence_capture(vm, FenceStage::Disks).await)?;
    check(rule, contents(fixture, &running) == content, "capturing changed a disk")?;

    let rule = "a fence of the disks that was never made can be undone, and does not hold";
    succeeds(rule, site.fence_undo(vm, &record).await)?;
    check(rule, !succeeds(rule, site.fence_holds(vm, &record).await)?, "it holds")?;
    check(rule, contents(fixture, &running) == content, "undoing nothing changed a disk")?;

    let rule = "the disks are fenced, twice as well as once, and the fence holds";
    succeeds(rule, site.fence_apply(vm, &record).await)?;
    succeeds(rule, site.fence_apply(vm, &record).await)?;
    check(rule, succeeds(rule, site.fence_holds(vm, &record).await)?, "it does not hold")?;

    let rule = "undoing the fence, twice, gives every byte back and the VM starts";
    succeeds(rule, site.fence_undo(vm, &record).await)?;
    succeeds(rule, site.fence_undo(vm, &record).await)?;
    check(rule, contents(fixture, &running) == content, "a disk is not as it was")?;
    check(rule, !succeeds(rule, site.fence_holds(vm, &record).await)?, "it holds")?;
    succeeds(rule, site.fence_undo(vm, &definition).await)?;
    succeeds(rule, site.power_on(vm).await)?;
    power_is(site, rule, vm, Power::Running).await?;

    let rule = "disks are not fenced under a running VM, whatever record is at hand";
    refused(rule, site.fence_apply(vm, &record).await, &[SiteErrorKind::WrongState])?;
    power_is(site, rule, vm, Power::Running).await
}

/// The slots of the source's disks.
fn targets(source: &Vm) -> Vec<String> {
    source.disks.iter().map(|disk| disk.target.clone()).collect()
}

pub(super) async fn retirement(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    let vm = fixture.source;
    let before = look(site, fixture).await?;
    let targets = targets(&before);
    let rule = "a fenced VM is retired under a new name, twice as well as once, still fenced";
    let definition = succeeds(rule, site.fence_capture(vm, FenceStage::Definition).await)?;
    succeeds(rule, site.fence_apply(vm, &definition).await)?;
    succeeds(rule, site.power_off(vm).await)?;
    let disks = succeeds(rule, site.fence_capture(vm, FenceStage::Disks).await)?;
    succeeds(rule, site.fence_apply(vm, &disks).await)?;
    let name = succeeds(rule, site.retire(vm, &definition).await)?;
    let again = succeeds(rule, site.retire(vm, &definition).await)?;
    check(rule, name == again && name != before.name, (&name, &again))?;
    let vms = succeeds(rule, site.vms().await)?;
    check(rule, vms.contains(&(vm, name)), &vms)?;
    check(rule, succeeds(rule, site.fence_holds(vm, &definition).await)?, "definition free")?;
    check(rule, succeeds(rule, site.fence_holds(vm, &disks).await)?, "disks free")?;

    let rule = "undoing the fence of a retired VM gives it back under its old name";
    succeeds(rule, site.fence_undo(vm, &disks).await)?;
    succeeds(rule, site.fence_undo(vm, &definition).await)?;
    succeeds(rule, site.power_on(vm).await)?;
    let after = look(site, fixture).await?;
    check(rule, after.name == before.name && after.power == Power::Running, &after)?;

    let rule = "a VM that is not fenced is not discarded, running or off";
    let records = [definition, disks];
    refused(rule, site.discard(vm, &records, &targets).await, &[SiteErrorKind::WrongState])?;
    succeeds(rule, site.power_off(vm).await)?;
    refused(rule, site.discard(vm, &records, &targets).await, &[SiteErrorKind::WrongState])?;
    succeeds(rule, site.power_on(vm).await)?;
    let still = look(site, fixture).await?;
    check(rule, still.disks.len() == before.disks.len(), &still)
}

/// Last of all: the fixture's VM is gone afterwards.
pub(super) async fn discarding(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    let vm = fixture.source;
    let rule = "a fenced VM is discarded with its disks, and once more is harmless";
    let targets = targets(&look(site, fixture).await?);
    let definition = succeeds(rule, site.fence_capture(vm, FenceStage::Definition).await)?;
    succeeds(rule, site.fence_apply(vm, &definition).await)?;
    succeeds(rule, site.power_off(vm).await)?;
    let disks = succeeds(rule, site.fence_capture(vm, FenceStage::Disks).await)?;
    succeeds(rule, site.fence_apply(vm, &disks).await)?;
    let records = [definition, disks];
    let unmoved = "a fenced disk that was never moved is not deleted, and nothing with it";
    refused(unmoved, site.discard(vm, &records, &[]).await, &[SiteErrorKind::Conflict])?;
    for record in &records {
        check(unmoved, succeeds(unmoved, site.fence_holds(vm, record).await)?, "the fence is off")?;
    }
    let discarded = succeeds(rule, site.discard(vm, &records, &targets).await)?;
    check(rule, discarded.removed.len() >= 2 && discarded.left.is_empty(), &discarded)?;
    check(rule, succeeds(rule, site.power(vm).await)? == Power::Absent, "it is there")?;
    let again = succeeds(rule, site.discard(vm, &records, &targets).await)?;
    check(rule, again.removed.is_empty(), &again)
}

async fn look(site: &dyn Site, fixture: &Fixture) -> Result<Vm, Breach> {
    let rule = "the fixture's VM can be looked at";
    let mut vm = succeeds(rule, site.vm(&fixture.source.to_string()).await)?;
    // It runs and may write: what its disks take is nobody's doing.
    vm.disks.iter_mut().for_each(|disk| disk.allocated = None);
    Ok(vm)
}

async fn power_is(
    site: &dyn Site,
    rule: &'static str,
    vm: VmId,
    expected: Power,
) -> Result<(), Breach> {
    let power = succeeds(rule, site.power(vm).await)?;
    check(rule, power == expected, power)
}

fn locations(vm: &Vm) -> Vec<&model::DiskLocation> {
    vm.disks.iter().map(|disk| &disk.location).collect()
}

fn contents(fixture: &Fixture, vm: &Vm) -> Vec<Vec<u8>> {
    let data = vm.disks.iter().filter(|disk| disk.usage == DiskUse::Data);
    data.map(|disk| (fixture.content)(disk)).collect()
}
