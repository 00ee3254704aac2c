//! Every state that the world can come to, and whether it is a good one.

use std::collections::{HashMap, VecDeque};

use handover::{Entry, Record, Side, SourceEntry, VerdictKind};
use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model, Property};

use crate::pure::{self, AsDestination, AsSource, MOVES, Move};
use crate::world::{Happens, Restorable, Rules, World};

impl Model for Rules {
    type State = World;
    type Action = Happens;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happens>) {
        actions.extend(world.happenings(self));
    }

    fn next_state(&self, world: &World, happens: Happens) -> Option<World> {
        world.after(&happens, self)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("at most one copy runs", |_, w: &World| at_most_one_runs(w)),
            Property::always("who runs has every earlier write", |_, w| nothing_is_lost(w)),
            Property::always("the newest data exists", |_, w| newest_exists(w)),
            Property::always("the destination alone tells the truth", |_, w| verdict_is_true(w)),
        ];
        if self.restorable == Restorable::None {
            properties.extend([
                Property::always("granted implies fenced before", |_, w| granted_was_fenced(w)),
                Property::always("released implies revoked before", |_, w| released_was_revoked(w)),
                Property::always("what undoes a fence is recorded", |_, w| can_be_undone(w)),
            ]);
        }
        if self.mutant.is_none() {
            properties.push(Property::sometimes("completed", |_, w: &World| {
                running(w) == vec![1] && w.sites[0].vm.is_none()
            }));
        }
        if self.mutant.is_none() && self.moves.contains(&Move::Again) {
            properties.push(Property::sometimes("moved at the second attempt", |_, w: &World| {
                matches!(state_at_destination(w, Move::First), AsDestination::Revoked(_))
                    && matches!(state_at_destination(w, Move::Again), AsDestination::Marked(_))
                    && running(w) == vec![1]
            }));
        }
        if self.mutant.is_none() && self.moves.contains(&Move::Back) {
            properties.push(Property::sometimes("moved there and back", |_, w: &World| {
                matches!(state_at_destination(w, Move::Back), AsDestination::Marked(_))
                    && running(w) == vec![0]
            }));
        }
        properties
    }
}

pub fn running(world: &World) -> Vec<usize> {
    let runs = |i: &usize| world.sites[*i].vm.as_ref().is_some_and(|vm| vm.running);
    (0..2).filter(runs).collect()
}

fn state_at_source(world: &World, m: Move) -> AsSource {
    pure::as_source(m.source(), world.sites[m.source()].ledger, m)
}

fn state_at_destination(world: &World, m: Move) -> AsDestination {
    pure::as_destination(m.destination(), world.sites[m.destination()].ledger, m)
}

pub fn at_most_one_runs(world: &World) -> bool {
    running(world).len() < 2
}

pub fn nothing_is_lost(world: &World) -> bool {
    world.sites.iter().flat_map(|site| &site.vm).all(|vm| !vm.running || vm.disk == world.latest)
}

pub fn newest_exists(world: &World) -> bool {
    world.sites.iter().flat_map(|site| &site.vm).any(|vm| vm.disk == world.latest)
}

pub fn granted_was_fenced(world: &World) -> bool {
    MOVES.iter().all(|m| {
        !matches!(
            state_at_destination(world, *m),
            AsDestination::Granted | AsDestination::Marked(_)
        ) || matches!(
            state_at_source(world, *m),
            AsSource::Fenced(_) | AsSource::Retired { .. } | AsSource::Destroyed
        )
    })
}

fn can_be_undone(world: &World) -> bool {
    (0..2).all(|i| {
        let intent = |record: &Record| {
            matches!(record.entry, Entry::Source(SourceEntry::FenceIntent { .. }))
        };
        !world.sites[i].vm.as_ref().is_some_and(|vm| vm.start_proof)
            || pure::records(world.sites[i].ledger).iter().any(intent)
    })
}

/// Revoked by a record, or turned away because a later epoch was known and this one was not.
pub fn released_was_revoked(world: &World) -> bool {
    let later = |m: Move| {
        MOVES.iter().any(|other| {
            other.epoch() > m.epoch()
                && other.destination() == m.destination()
                && state_at_destination(world, *other) != AsDestination::Unknown
        })
    };
    MOVES.iter().all(|m| {
        !matches!(state_at_source(world, *m), AsSource::Released { .. })
            || match state_at_destination(world, *m) {
                AsDestination::Revoked(_) => true,
                AsDestination::Unknown => later(*m),
                _ => false,
            }
    })
}

/// What the destination of the newest attempt says while nobody else can be asked: completed
/// only where the source does not run, not completed only where the destination does not.
pub fn verdict_is_true(world: &World) -> bool {
    let newest = MOVES.iter().rev().find(|m| {
        state_at_destination(world, **m) != AsDestination::Unknown
            || state_at_source(world, **m) != AsSource::Unknown
    });
    let Some(m) = newest else { return true };
    let site = m.destination();
    let (kind, lives_at) =
        pure::verdict_from_destination(site, world.sites[site].ledger, world.mark(site), *m);
    let runs = running(world);
    match (kind, lives_at) {
        (VerdictKind::Completed, Some(Side::Destination)) => !runs.contains(&m.source()),
        (VerdictKind::NotMigrated, _) => !runs.contains(&site),
        (_, None) => true,
        (_, Some(_)) => false,
    }
}

/// Visits every state; panics with the shortest way to a bad one.
fn assert_safe(rules: Rules) {
    let checker = rules.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

/// From every state an owner can come to run again.
fn assert_recoverable(rules: &Rules) {
    let mut ids: HashMap<World, usize> = HashMap::new();
    let mut before: Vec<Vec<usize>> = vec![];
    let mut good = vec![];
    let mut queue = VecDeque::from([World::new()]);
    ids.insert(World::new(), 0);
    before.push(vec![]);
    while let Some(world) = queue.pop_front() {
        let id = ids[&world];
        if !running(&world).is_empty() {
            good.push(id);
        }
        for happens in world.happenings(rules) {
            let Some(after) = world.after(&happens, rules) else { continue };
            let next = *ids.entry(after.clone()).or_insert_with(|| {
                before.push(vec![]);
                queue.push_back(after);
                before.len() - 1
            });
            before[next].push(id);
        }
    }
    let mut can = vec![false; before.len()];
    let mut queue = VecDeque::from(good);
    while let Some(id) = queue.pop_front() {
        if !std::mem::replace(&mut can[id], true) {
            queue.extend(&before[id]);
        }
    }
    let lost = ids.iter().find(|(_, id)| !can[**id]);
    println!("{} states, each of which can come to run", ids.len());
    if let Some((world, _)) = lost {
        let ledgers = world.sites.each_ref().map(|site| pure::records(site.ledger));
        panic!("runs nowhere for ever: {world:?}\n{ledgers:#?}");
    }
}

/// Whether a broken rule is noticed.
pub fn violation(rules: Rules) -> Option<String> {
    let checker =
        rules.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let failure = |name: &str| {
        matches!(checker.discovery_classification(name), DiscoveryClassification::Counterexample)
    };
    let (name, path) = checker.discoveries().into_iter().find(|(name, _)| failure(name))?;
    Some(format!("{name}: {:?}", path.into_actions()))
}

/// `make model` goes one write further.
fn rules(moves: &[Move], writes: u8) -> Rules {
    let further = u8::from(std::env::var_os("MODEL").is_some());
    Rules { writes: writes + further, moves: moves.to_vec(), ..Rules::default() }
}

#[test]
fn an_arbitrary_coordinator_never_makes_two_run_or_loses_a_write() {
    assert_safe(rules(&MOVES, 2));
}

#[test]
fn a_destinations_ledger_restored_from_before_its_grant_is_healed_by_the_mark() {
    for moves in [[Move::First, Move::Again], [Move::First, Move::Back]] {
        let restorable = Restorable::Granted;
        assert_safe(Rules { restores: 1, restorable, ..rules(&moves, 2) });
    }
}

#[test]
fn a_sources_restored_ledger_starts_nothing() {
    for moves in [&MOVES[..1], &[Move::First, Move::Back]] {
        let restorable = Restorable::Source;
        assert_safe(Rules { restores: 1, restorable, ..rules(moves, 2) });
    }
}

#[test]
#[ignore = "200,000 more states of a kind that the tests beside it visit; runs in `make model`"]
fn with_every_move_and_two_ledgers_restored_the_mark_heals() {
    let restorable = Restorable::Granted;
    assert_safe(Rules { restores: 1, restorable, ..rules(&MOVES, 2) });
    let moves = [Move::First, Move::Back];
    assert_safe(Rules { restores: 2, restorable, ..rules(&moves, 2) });
}

/// A limit, held fast so that nobody believes otherwise: the receipt that released the source in
/// an earlier attempt releases it once more if its ledger has forgotten the later one. Peers that
/// remember the epoch notice.
#[test]
fn a_sources_ledger_restored_from_before_a_second_attempt_believes_the_first_ones_receipt() {
    let restorable = Restorable::Source;
    let rules = Rules { restores: 1, restorable, ..rules(&[Move::First, Move::Again], 1) };
    assert!(violation(rules).is_some_and(|found| found.contains("Restore")));
}

/// The limit of the second mark, held fast so that nobody believes otherwise: a revocation leaves
/// no mark, so a ledger restored from before it can grant what was revoked, if a fence receipt
/// from then arrives late and the copy is made once more. Peers that remember the epoch notice.
#[test]
fn a_destinations_ledger_restored_from_before_a_revocation_is_not_healed() {
    let restorable = Restorable::Revoked;
    let rules = Rules { restores: 1, restorable, ..rules(&[Move::First], 1) };
    assert!(violation(rules).is_some_and(|found| found.contains("Restore")));
}

#[test]
fn from_every_state_the_vm_can_come_to_run() {
    assert_recoverable(&rules(&MOVES, 1));
    let restorable = Restorable::Granted;
    let moves = [Move::First, Move::Back];
    assert_recoverable(&Rules { restores: 1, restorable, ..rules(&moves, 1) });
}
