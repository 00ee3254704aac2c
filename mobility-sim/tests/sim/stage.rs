//! Two sites, their agents, and one migration between them, from its beginning to the day when everything
//! is mended again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use causeway_mobility::config::Config;
use causeway_mobility::serve::Agent;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use transfer::secure::Identity;

use crate::client::{self, Ended};
use crate::fault::Fault;
use crate::net::Reach;
use crate::site::Sited;
use crate::world::{Kind, Place, Who, World};
use crate::{libvirtd, net};

pub const VM: &str = "web1";
pub const UUID: &str = "12862f30-84d5-483d-b466-3fe4fdd1048f";
/// Of the source, where its libvirt reaches it, and its hypervisors.
pub const AGENT: SocketAddr = SocketAddr::new(DATA, 16509);
/// Of the destination, where the source's reaches it.
pub const WAN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 7443);
pub const DATA: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));

/// How long whoever asked for a migration waits for an answer at most, whatever is killed, and everything
/// else for its end once nothing strikes any more.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10 * 60);
const SETTLED_WITHIN: Duration = Duration::from_secs(8 * 60);

/// The agents of both sites, as they live now.
pub struct Agents {
    home: TempDir,
    alive: [Mutex<Option<Arc<Agent>>>; 2],
}

impl Agents {
    fn new() -> Self {
        // In memory: what is synced there is as good as on a disk, and quicker.
        let shm = Path::new("/dev/shm");
        let home = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let agents = Self { home: home.unwrap(), alive: Default::default() };
        let keys = [Place::East, Place::West].map(|place| {
            let pkcs8 = Identity::generate_pkcs8();
            let state = agents.state(place);
            std::fs::create_dir_all(&state).unwrap();
            std::fs::write(state.join("key"), &pkcs8).unwrap();
            Identity::from_pkcs8(&pkcs8).unwrap().public()
        });
        for place in [Place::East, Place::West] {
            let (other, key) = (place.other(), keys[place.other() as usize]);
            let (no, there) = (place as usize + 1, other as usize + 1);
            let socket = libvirtd::at(place);
            let state = agents.state(place).display().to_string();
            let text = format!(
                "[site]\nname = \"{place}\"\nstate-dir = \"{state}\"\nuri = \"qemu:///system\"\n\
                 socket = \"tcp:{socket}\"\n\
                 [listen]\nlibvirt = [\"10.{no}.0.1:16509\"]\nwan = \"10.9.0.{no}:7443\"\n\
                 [host]\nhostname = \"neighbour-of-{place}\"\n\
                 uuid = \"6a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c1{no}\"\ndata-address = \"10.{no}.0.1\"\n\
                 [neighbour]\nname = \"{other}\"\naddress = \"10.9.0.{there}:7443\"\nkey = \"{key}\"\n\
                 [arrivals]\npool = \"default\"\n"
            );
            std::fs::write(agents.config(place), text).unwrap();
        }
        agents
    }

    /// Its state directory.
    pub fn state(&self, place: Place) -> std::path::PathBuf {
        self.home.path().join(place.name())
    }

    /// All but its key.
    fn lose_state(&self, place: Place) {
        for entry in std::fs::read_dir(self.state(place)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else if !path.ends_with("key") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    fn config(&self, place: Place) -> std::path::PathBuf {
        self.home.path().join(format!("{place}.toml"))
    }

    /// Where it is, at once.
    pub fn end(&self, place: Place) {
        let mut alive = self.alive[place as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = alive.take() {
            agent.end();
        }
    }
}

/// As the program does it when it is started.
pub async fn start_agent(world: &Arc<World>, place: Place) {
    if world.alive(|no| Who::Agent(place, no)).is_some() {
        return;
    }
    let who = world.begins(|no| Who::Agent(place, no));
    if world.has_lost_state(place) {
        world.agents.lose_state(place);
    }
    let config = Config::load(&world.agents.config(place)).unwrap();
    let site = sited(world, place, Some(who));
    let net = Arc::new(Reach { world: Arc::clone(world), who });
    // Its last life's last record may be on its way still.
    let agent = loop {
        match Agent::open(config.clone(), Arc::clone(&site) as _, Arc::clone(&net) as _) {
            Ok(agent) => break Arc::new(agent),
            Err(error) => {
                tracing::debug!("{}", units::chain(&error));
                tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1)))
                    .await
                    .unwrap();
            }
        }
    };
    if world.is_dead(who) {
        return;
    }
    *world.agents.alive[place as usize].lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Arc::clone(&agent));
    tokio::spawn(async move { agent.serve().await.unwrap() });
}

pub fn sited(world: &Arc<World>, place: Place, who: Option<Who>) -> Arc<Sited> {
    let name = place.name().parse().unwrap();
    Arc::new(Sited { world: Arc::clone(world), place, name, who })
}

/// What holds the world, and is held by it, lets go of it.
impl Drop for Stage {
    fn drop(&mut self) {
        for place in [Place::East, Place::West] {
            self.world.agents.end(place);
        }
        self.world.wires.ends();
    }
}

/// A migration with what strikes it, until nothing does any more.
pub struct Stage {
    pub world: Arc<World>,
    pub ended: Option<Ended>,
    /// From the moment that the VM stood still until its source had it run again, where it did.
    pub violations: Vec<String>,
}

impl Stage {
    pub async fn set(kind: Kind, plan: Vec<(String, Fault)>) -> Self {
        let world = World::new(kind, Agents::new(), plan);
        for place in [Place::East, Place::West] {
            libvirtd::start(&world, place);
            start_agent(&world, place).await;
        }
        world.begins(|no| Who::Qemu(Place::East, no));
        // They listen by then.
        sleep(Duration::from_millis(10)).await;
        Self { world, ended: None, violations: Vec::new() }
    }

    /// Everything that is going to happen happens, and is mended.
    pub async fn play(&mut self) {
        let who = self.world.begins(Who::Client);
        let moving: JoinHandle<Ended> = tokio::spawn(client::migrate(Arc::clone(&self.world), who));
        self.world.has_task(who, moving.abort_handle());
        match timeout(ANSWERED_WITHIN, moving).await {
            Ok(ended) => self.ended = ended.ok(),
            Err(_) => self.violations.push("the source's operator waits for ever".to_owned()),
        }
        self.settle().await;
    }

    pub async fn settle(&self) {
        let until = Instant::now() + SETTLED_WITHIN;
        while Instant::now() < until {
            sleep(Duration::from_secs(20)).await;
        }
        self.world.calm();
        assert_eq!(self.world.wires.wan(), net::Wan::Up);
    }
}
