//! Rules for a site that a VM comes to.

use model::{Power, VmId};
use units::{Bytes, Epoch};
use uuid::Uuid;

use super::{Breach, Fixture, check, refused, succeeds};
use crate::{
    Leftover, Mark, NewDisk, PlaceholderSpec, PlaceholderState, Site, SiteErrorKind, Takeover,
};

/// The placeholder with the appliance that was put there.
pub(super) async fn appliance(
    site: &dyn Site,
    fixture: &Fixture,
) -> Result<PlaceholderSpec, Breach> {
    let rule = "the appliance is put there once, however often it is asked";
    let first = succeeds(rule, site.put_appliance(&fixture.appliance).await)?;
    let second = succeeds(rule, site.put_appliance(&fixture.appliance).await)?;
    check(rule, first == second, (&first, &second))?;
    Ok(PlaceholderSpec { appliance: first, ..fixture.placeholder.clone() })
}

pub(super) async fn disks(site: &dyn Site, fixture: &Fixture) -> Result<(), Breach> {
    let migration = &fixture.placeholder.migration;
    for disk in &fixture.placeholder.disks {
        let rule = "a volume is made once; the second time it is there and may hold data";
        let first = succeeds(rule, site.create_disk(migration, disk).await)?;
        let second = succeeds(rule, site.create_disk(migration, disk).await)?;
        let same = first.location == second.location && first.no == disk.no;
        check(rule, first.fresh && !second.fresh && same, (&first, &second))?;

        let rule = "a volume of another size or another migration is never taken";
        let larger = NewDisk { size: disk.size + Bytes(1 << 20), ..disk.clone() };
        refused(rule, site.create_disk(migration, &larger).await, &[SiteErrorKind::Conflict])?;
        let strange = site.create_disk(&fixture.stranger, disk).await;
        refused(rule, strange, &[SiteErrorKind::Conflict])?;
    }
    let rule = "a pool that is not there is said not to be";
    if let Some(disk) = fixture.placeholder.disks.first() {
        let nowhere = NewDisk { pool: "no-such-pool".to_owned(), ..disk.clone() };
        let made = site.create_disk(migration, &nowhere).await;
        refused(rule, made, &[SiteErrorKind::NotFound])?;
    }
    Ok(())
}

pub(super) async fn held(
    site: &dyn Site,
    fixture: &Fixture,
    spec: &PlaceholderSpec,
) -> Result<(), Breach> {
    let rule = "nothing is under the id of a VM to come";
    state_is(site, rule, spec.vm, &PlaceholderState::Absent).await?;

    let rule = "a placeholder is held, off, and defined twice as well as once";
    succeeds(rule, site.define_placeholder(spec).await)?;
    succeeds(rule, site.define_placeholder(spec).await)?;
    state_is(site, rule, spec.vm, &held_as(spec, Power::Off)).await?;

    let rule = "a placeholder of another attempt is not replaced";
    let next = PlaceholderSpec { epoch: Epoch(spec.epoch.0 + 1), ..spec.clone() };
    refused(rule, site.define_placeholder(&next).await, &[SiteErrorKind::Conflict])?;
    let strange = PlaceholderSpec { migration: fixture.stranger.clone(), ..spec.clone() };
    refused(rule, site.define_placeholder(&strange).await, &[SiteErrorKind::Conflict])?;

    let rule = "a VM that is not ours is called foreign, and is not replaced, marked or removed";
    let source = fixture.source;
    let state = succeeds(rule, site.placeholder(source).await)?;
    let PlaceholderState::Foreign { name, .. } = state else {
        return check(rule, false, state);
    };
    let over = PlaceholderSpec { vm: source, ..spec.clone() };
    refused(rule, site.define_placeholder(&over).await, &[SiteErrorKind::Conflict])?;
    let decision = mark_of(spec, "00");
    refused(rule, site.write_mark(source, &decision).await, &[SiteErrorKind::Conflict])?;
    let gone = site.remove(&Leftover::Placeholder { vm: source, name: name.clone() }).await;
    refused(rule, gone, &[SiteErrorKind::Conflict])?;

    let rule = "a name that another VM has is not taken";
    let namesake = PlaceholderSpec {
        vm: VmId(Uuid::from_u128(0x5ca1_ab1e_0000_4000_8000_0000_0bad_cafe)),
        name,
        ..spec.clone()
    };
    refused(rule, site.define_placeholder(&namesake).await, &[SiteErrorKind::Conflict])?;
    state_is(site, rule, namesake.vm, &PlaceholderState::Absent).await?;

    let rule = "a placeholder without a mark does not boot from its own disk";
    refused(rule, site.start_from_own_disk(spec).await, &[SiteErrorKind::WrongState])?;
    state_is(site, rule, spec.vm, &held_as(spec, Power::Off)).await?;

    let rule = "a helper is started twice as well as once, and defining again leaves it running";
    succeeds(rule, site.start_helper(spec.vm).await)?;
    succeeds(rule, site.start_helper(spec.vm).await)?;
    succeeds(rule, site.define_placeholder(spec).await)?;
    state_is(site, rule, spec.vm, &held_as(spec, Power::Running)).await
}

pub(super) async fn removal(
    site: &dyn Site,
    fixture: &Fixture,
    spec: &PlaceholderSpec,
) -> Result<(), Breach> {
    let rule = "everything that a migration made is listed, and nothing else";
    let left = succeeds(rule, site.leftovers(&spec.migration).await)?;
    let placeholders =
        left.iter().filter(|one| matches!(one, Leftover::Placeholder { .. })).count();
    check(rule, placeholders == 1 && left.len() == 1 + spec.disks.len(), &left)?;
    let strange = succeeds(rule, site.leftovers(&fixture.stranger).await)?;
    check(rule, strange.is_empty(), &strange)?;

    let rule = "a volume is not removed under a VM that uses it";
    for volume in left.iter().filter(|one| matches!(one, Leftover::Volume { .. })) {
        refused(rule, site.remove(volume).await, &[SiteErrorKind::WrongState])?;
    }

    let rule = "what a migration made is removed, running or not, twice as well as once";
    let (first, then): (Vec<_>, Vec<_>) =
        left.iter().partition(|one| matches!(one, Leftover::Placeholder { .. }));
    for leftover in first.iter().chain(&then) {
        succeeds(rule, site.remove(leftover).await)?;
        succeeds(rule, site.remove(leftover).await)?;
    }
    let left = succeeds(rule, site.leftovers(&spec.migration).await)?;
    check(rule, left.is_empty(), &left)?;
    state_is(site, rule, spec.vm, &PlaceholderState::Absent).await?;

    let rule = "after removal the same migration can begin again";
    for disk in &spec.disks {
        let created = succeeds(rule, site.create_disk(&spec.migration, disk).await)?;
        check(rule, created.fresh, &created)?;
    }
    succeeds(rule, site.define_placeholder(spec).await)
}

pub(super) async fn channel(site: &dyn Site, spec: &PlaceholderSpec) -> Result<(), Breach> {
    let rule = "no channel leads into a helper that does not run";
    let early = site.open_channel(spec.vm, 0, Takeover::Refuse).await;
    refused(rule, early.map(drop), &[SiteErrorKind::WrongState])?;

    let rule = "a channel is held by one at a time, unless it is taken over";
    succeeds(rule, site.start_helper(spec.vm).await)?;
    let first = succeeds(rule, site.open_channel(spec.vm, 0, Takeover::Refuse).await)?;
    let second = site.open_channel(spec.vm, 0, Takeover::Refuse).await;
    refused(rule, second.map(drop), &[SiteErrorKind::Conflict])?;
    let taken = succeeds(rule, site.open_channel(spec.vm, 0, Takeover::Force).await)?;
    drop(first);
    drop(taken);
    Ok(())
}

pub(super) async fn mark(site: &dyn Site, spec: &PlaceholderSpec) -> Result<(), Breach> {
    let rule = "a mark is written once, the same one as often as one likes";
    let none = succeeds(rule, site.read_mark(spec.vm).await)?;
    check(rule, none.is_none(), &none)?;
    let decision = mark_of(spec, "c0ffee");
    succeeds(rule, site.write_mark(spec.vm, &decision).await)?;
    succeeds(rule, site.write_mark(spec.vm, &decision).await)?;
    let other = mark_of(spec, "decade");
    refused(rule, site.write_mark(spec.vm, &other).await, &[SiteErrorKind::Conflict])?;
    let read = succeeds(rule, site.read_mark(spec.vm).await)?;
    check(rule, read.as_ref() == Some(&decision), &read)?;

    let rule = "a mark outlives the helper and another definition of its placeholder";
    succeeds(rule, site.power_off(spec.vm).await)?;
    succeeds(rule, site.define_placeholder(spec).await)?;
    let read = succeeds(rule, site.read_mark(spec.vm).await)?;
    check(rule, read.as_ref() == Some(&decision), &read)?;

    let rule = "a placeholder that bears a mark is not removed";
    let marked = Leftover::Placeholder { vm: spec.vm, name: spec.name.clone() };
    refused(rule, site.remove(&marked).await, &[SiteErrorKind::WrongState])?;
    succeeds(rule, site.start_helper(spec.vm).await)
}

pub(super) async fn release(site: &dyn Site, spec: &PlaceholderSpec) -> Result<(), Breach> {
    let rule = "with a mark it boots from its own disk, twice as well as once, mark kept";
    let released = PlaceholderState::Released {
        migration: spec.migration.clone(),
        epoch: spec.epoch,
        power: Power::Running,
    };
    succeeds(rule, site.start_from_own_disk(spec).await)?;
    succeeds(rule, site.start_from_own_disk(spec).await)?;
    state_is(site, rule, spec.vm, &released).await?;
    let read = succeeds(rule, site.read_mark(spec.vm).await)?;
    check(rule, read == Some(mark_of(spec, "c0ffee")), &read)?;

    let rule = "a released VM has the cards, disks, name and id that were asked for";
    let vm = succeeds(rule, site.vm(&spec.vm.to_string()).await)?;
    let macs: Vec<_> = vm.nics.iter().map(|nic| &nic.mac).collect();
    let asked: Vec<_> = spec.nics.iter().map(|nic| &nic.mac).collect();
    let sizes: Vec<_> = vm.disks.iter().map(|disk| (&disk.target, disk.size)).collect();
    let wanted: Vec<_> = spec.disks.iter().map(|disk| (&disk.target, disk.size)).collect();
    check(rule, vm.name == spec.name && macs == asked && sizes == wanted, &vm)?;

    let rule = "a released VM that was switched off starts again from its own disk";
    succeeds(rule, site.power_off(spec.vm).await)?;
    succeeds(rule, site.start_from_own_disk(spec).await)?;
    state_is(site, rule, spec.vm, &released).await?;

    let rule = "no helper is started, and nothing held is defined, over a released VM";
    refused(rule, site.start_helper(spec.vm).await, &[SiteErrorKind::WrongState])?;
    let held = site.define_placeholder(spec).await;
    refused(rule, held, &[SiteErrorKind::WrongState, SiteErrorKind::Conflict])?;
    state_is(site, rule, spec.vm, &released).await
}

async fn state_is(
    site: &dyn Site,
    rule: &'static str,
    vm: VmId,
    expected: &PlaceholderState,
) -> Result<(), Breach> {
    let state = succeeds(rule, site.placeholder(vm).await)?;
    check(rule, state == *expected, state)
}

fn held_as(spec: &PlaceholderSpec, power: Power) -> PlaceholderState {
    PlaceholderState::Held { migration: spec.migration.clone(), epoch: spec.epoch, power }
}

fn mark_of(spec: &PlaceholderSpec, receipt: &str) -> Mark {
    Mark { migration: spec.migration.clone(), epoch: spec.epoch, receipt: receipt.to_owned() }
}
