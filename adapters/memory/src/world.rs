//! The world: sites, what they hold, and the test's own hands in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use model::{DiskLocation, NetworkRef, Power, SiteName, VmId};
use site::{RecordKey, StoppedBy};
use units::Bytes;

use crate::channel::{Listener, Port};
use crate::fault::{Call, Fault, Method, Script};
use crate::machine::{Form, Machine, Volume, VolumeKey, lock, volume_key};
use crate::{MemorySite, Seed, placeholder};

pub use crate::machine::SharedDisk;

/// All sites of one test. Clones are the same world.
#[derive(Clone, Default)]
pub struct World {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub sites: BTreeMap<SiteName, Estate>,
    pub script: Script,
}

/// What one site holds.
pub(crate) struct Estate {
    pub reachable: bool,
    pub machines: BTreeMap<VmId, Machine>,
    pub volumes: BTreeMap<VolumeKey, Volume>,
    pub pools: BTreeMap<String, Bytes>,
    pub networks: Vec<NetworkRef>,
    pub appliances: BTreeSet<String>,
    pub ports: BTreeMap<(VmId, u16), Port>,
    pub records: BTreeMap<RecordKey, Vec<u8>>,
}

impl Estate {
    /// A pool `default` of 1 TiB and a network `default`.
    fn new() -> Self {
        Self {
            reachable: true,
            machines: BTreeMap::new(),
            volumes: BTreeMap::new(),
            pools: BTreeMap::from([("default".to_owned(), Bytes(1 << 40))]),
            networks: vec![NetworkRef::Network("default".to_owned())],
            appliances: BTreeSet::new(),
            ports: BTreeMap::new(),
            records: BTreeMap::new(),
        }
    }

    /// What else belongs to a VM that is off: nobody answers on its channels.
    pub(crate) fn cut_channels(&mut self, vm: VmId) {
        for (_, port) in self.ports.iter_mut().filter(|((of, _), _)| *of == vm) {
            port.cut();
        }
    }
}

impl State {
    /// # Panics
    /// When two copies of one VM could write: the bug that everything here exists to exclude.
    pub(crate) fn assert_one_copy_at_most(&self) {
        let mut loaded: BTreeMap<VmId, &SiteName> = BTreeMap::new();
        for (name, estate) in &self.sites {
            let here = estate.machines.iter().filter(|(_, machine)| machine.is_loaded_for_good());
            for (id, machine) in here {
                if let Some(there) = loaded.insert(*id, name) {
                    panic!(
                        "split brain: {} ({id}) is loaded at {there} and {name}",
                        machine.vm.name
                    );
                }
            }
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self::default()
    }

    /// The site of this name, made if it is new.
    pub fn site(&self, name: &SiteName) -> MemorySite {
        self.edit(|state| {
            state.sites.entry(name.clone()).or_insert_with(Estate::new);
        });
        MemorySite::new(name.clone(), self.clone())
    }

    /// Puts a VM with its disks there and returns its id.
    pub fn seed(&self, site: &SiteName, seed: Seed) -> VmId {
        let Seed { vm, contents } = seed;
        let id = vm.id;
        self.edit_estate(site, |estate| {
            for (disk, content) in vm.disks.iter().zip(contents) {
                if let Some(key) = volume_key(&disk.location) {
                    let data = Arc::new(Mutex::new(content));
                    estate.volumes.insert(key, Volume { owner: None, data });
                }
            }
            let mut machine = Machine::new(vm, Form::Own);
            machine.writes =
                machine.vm.disks.iter().map(|disk| (disk.target.clone(), (0, 0))).collect();
            estate.machines.insert(id, machine);
        });
        id
    }

    /// A placeholder without disks whose helper runs already: for tests of channels alone.
    pub fn seed_helper(&self, site: &SiteName, name: &str) -> VmId {
        let spec = placeholder::diskless(name);
        let id = spec.vm;
        self.edit_estate(site, |estate| {
            let mut vm = placeholder::vm_of(&spec);
            vm.power = Power::Running;
            estate.machines.insert(id, Machine::new(vm, Form::Held(spec)));
        });
        id
    }

    pub fn add_pool(&self, site: &SiteName, pool: &str, capacity: Bytes) {
        self.edit_estate(site, |estate| estate.pools.insert(pool.to_owned(), capacity));
    }

    pub fn add_network(&self, site: &SiteName, network: NetworkRef) {
        self.edit_estate(site, |estate| estate.networks.push(network));
    }

    /// What lies at a location; `None` where there is nothing. Writing into it is the helper's
    /// part, which the platform does not count.
    pub fn disk(&self, site: &SiteName, location: &DiskLocation) -> Option<SharedDisk> {
        let key = volume_key(location)?;
        self.volume(site, &key.0, &key.1)
    }

    pub fn volume(&self, site: &SiteName, pool: &str, volume: &str) -> Option<SharedDisk> {
        self.edit_estate(site, |estate| {
            let volume = estate.volumes.get(&(pool.to_owned(), volume.to_owned()))?;
            Some(Arc::clone(&volume.data))
        })
    }

    /// A write by the guest itself. `false`: it does not run, so it cannot.
    pub fn guest_write(
        &self,
        site: &SiteName,
        vm: VmId,
        target: &str,
        offset: usize,
        bytes: &[u8],
    ) -> bool {
        self.edit_estate(site, |estate| {
            let Estate { machines, volumes, .. } = estate;
            let Some(machine) = machines.get_mut(&vm) else { return false };
            if machine.vm.power != Power::Running || matches!(machine.form, Form::Held(_)) {
                return false;
            }
            let disk = machine.data_disks().find(|(disk, _)| disk.target == target);
            let Some(volume) = disk.and_then(|(_, key)| volumes.get(&key)) else { return false };
            let mut data = lock(&volume.data);
            let Some(place) = data.get_mut(offset..offset.saturating_add(bytes.len())) else {
                return false;
            };
            place.copy_from_slice(bytes);
            let (requests, written) = machine.writes.entry(target.to_owned()).or_default();
            *requests += 1;
            *written += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            true
        })
    }

    /// The guest shuts down by itself.
    pub fn guest_powers_off(&self, site: &SiteName, vm: VmId) {
        self.edit_estate(site, |estate| {
            if let Some(machine) = estate.machines.get_mut(&vm) {
                machine.stop(StoppedBy::Shutdown);
            }
            estate.cut_channels(vm);
        });
    }

    /// The host's daemon began anew: how its VMs came to a stop is forgotten.
    pub fn forget_stops(&self, site: &SiteName) {
        self.edit_estate(site, |estate| {
            estate.machines.values_mut().for_each(|machine| machine.stopped_by = None);
        });
    }

    /// An administrator lets it go on, if it is suspended.
    pub fn admin_resumes(&self, site: &SiteName, vm: VmId) {
        self.edit_estate(site, |estate| {
            let machine = estate.machines.get_mut(&vm);
            if let Some(machine) = machine.filter(|machine| machine.vm.power == Power::Paused) {
                machine.vm.power = Power::Running;
            }
        });
    }

    /// The definition's fence is gone.
    pub fn admin_unfences(&self, site: &SiteName, vm: VmId) {
        self.edit_estate(site, |estate| {
            if let Some(machine) = estate.machines.get_mut(&vm) {
                machine.start_proof = false;
            }
        });
    }

    /// An administrator deletes the VM's definition; its disks stay.
    pub fn admin_undefines(&self, site: &SiteName, vm: VmId) {
        self.edit_estate(site, |estate| drop(estate.machines.remove(&vm)));
    }

    /// An administrator defines the VM again from a copy of its definition and starts it: what a
    /// fence of the definition alone does not stop. `false`: it did not come up.
    pub fn admin_defines_again_and_starts(&self, site: &SiteName, vm: VmId) -> bool {
        self.edit_estate(site, |estate| {
            let Estate { machines, volumes, .. } = estate;
            let Some(machine) = machines.get_mut(&vm) else { return false };
            machine.start_proof = false;
            machine.start(volumes).is_ok()
        })
    }

    /// Where this VM could write now: at one site at most, or the world has panicked.
    pub fn loaded_at(&self, vm: VmId) -> Option<SiteName> {
        self.edit(|state| {
            let holds =
                |estate: &Estate| estate.machines.get(&vm).is_some_and(Machine::is_loaded_for_good);
            state.sites.iter().find(|(_, estate)| holds(estate)).map(|(name, _)| name.clone())
        })
    }

    /// As [`site::Site::power`], and no call to the cloud.
    pub fn power(&self, site: &SiteName, vm: VmId) -> Power {
        self.edit_estate(site, |estate| {
            estate.machines.get(&vm).map_or(Power::Absent, |machine| machine.vm.power)
        })
    }

    /// What is kept there for coordinators, and no call to the cloud.
    pub fn records(&self, site: &SiteName) -> BTreeMap<RecordKey, Vec<u8>> {
        self.edit_estate(site, |estate| estate.records.clone())
    }

    /// Somebody loses them, or brings back older ones.
    pub fn set_records(&self, site: &SiteName, records: BTreeMap<RecordKey, Vec<u8>>) {
        self.edit_estate(site, |estate| estate.records = records);
    }

    // --- faults -------------------------------------------------------------------------------

    /// The `nth` call in this world, counted from 1 over all sites and methods.
    pub fn fault_at(&self, nth: usize, fault: Fault) {
        self.edit(|state| state.script.at(nth, fault));
    }

    /// The `nth` call of one method at one site, counted from 1.
    pub fn fault_on(&self, site: &SiteName, method: Method, nth: usize, fault: Fault) {
        self.edit(|state| state.script.on(site.clone(), method, nth, fault));
    }

    /// No call gets there until it is reachable again. What runs there goes on running.
    pub fn set_reachable(&self, site: &SiteName, reachable: bool) {
        self.edit_estate(site, |estate| estate.reachable = reachable);
    }

    /// Every call made so far.
    pub fn calls(&self) -> Vec<Call> {
        self.edit(|state| state.script.calls().to_vec())
    }

    // --- channels -----------------------------------------------------------------------------

    /// The far end of a helper's port, to be taken once, before or after it is opened.
    pub fn listen(&self, site: &SiteName, vm: VmId, port: u16) -> Option<Listener> {
        self.edit_estate(site, |estate| {
            estate.ports.entry((vm, port)).or_insert_with(Port::new).take_listener()
        })
    }

    /// Breaks every stream into this VM's helper; it can be opened again.
    pub fn cut_channels(&self, site: &SiteName, vm: VmId) {
        self.edit_estate(site, |estate| estate.cut_channels(vm));
    }

    // --- inside -------------------------------------------------------------------------------

    pub(crate) fn edit<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = edit(&mut state);
        state.assert_one_copy_at_most();
        result
    }

    /// # Panics
    /// Where the site was never made: a mistake in the test.
    fn edit_estate<T>(&self, site: &SiteName, edit: impl FnOnce(&mut Estate) -> T) -> T {
        self.edit(|state| {
            let estate = state.sites.get_mut(site);
            edit(estate.unwrap_or_else(|| panic!("no site {site} in this world")))
        })
    }
}
