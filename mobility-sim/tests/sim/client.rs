//! Whoever drives the source's migration, in libvirt's own order (`virDomainMigrateVersion3Full`): Begin,
//! Prepare, Perform, Finish, Confirm. An error of Finish, or no answer, and the source's VM goes on.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use causeway_mobility::libvirt::Endpoint;
use causeway_mobility::libvirt::client::Daemon;
use causeway_mobility::net::{Carries, Net};
use model::Power;
use rpc::feature::Feature;
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use rpc::procedures::{Call, Finish, Prepare, Prepared, Reply};
use site::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::guest::Job;
use crate::libvirtd::confirm;
use crate::nbd;
use crate::net::Reach;
use crate::stage::{AGENT, DATA, UUID, VM};
use crate::world::{Driven, Place, Who, World};

/// libvirt waits as long as pings are answered.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// `virProcessKillPainfullyDelay`
const LOOKS_EVERY: Duration = Duration::from_millis(200);

/// How it ended for whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Moved,
    Stays,
    /// The migration was not even begun, or its libvirtd was lost.
    Unknown,
}

pub struct Client {
    world: Arc<World>,
    who: Who,
    /// That whose VM it moves.
    libvirtd: Option<Who>,
}

/// One attempt to move the VM.
pub async fn migrate(world: Arc<World>, who: Who) -> Ended {
    let libvirtd = world.libvirtd(Place::East);
    Client { world, who, libvirtd }.run().await
}

impl Client {
    async fn at(&self, place: &str) {
        self.world.at(self.who, &format!("K: {place}")).await;
        self.world.unless_stopped().await;
    }

    fn told(&self, error: &dyn std::error::Error) {
        self.world.told.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
    }

    /// What the VM's libvirtd has on its job, if it is still there.
    fn job(&self, job: Job) -> bool {
        if self.world.libvirtd(Place::East) != self.libvirtd {
            return false;
        }
        if let Some(domain) = self.world.guest().domain(Place::East) {
            domain.job = job;
        }
        true
    }

    async fn run(self) -> Ended {
        if self.world.guest().power(Place::East) != Power::Running || !self.job(Job::Begun) {
            return Ended::Unknown;
        }
        let (agent, prepared) = match self.prepare().await {
            Ok(prepared) => prepared,
            Err(error) => {
                self.told(&*error);
                self.job(Job::None);
                return Ended::Stays;
            }
        };
        self.at("is prepared").await;
        self.job(Job::Performs);
        let performed = tokio::select! {
            performed = self.perform(&prepared) => performed.is_ok(),
            () = agent.over() => false,
        };
        let performed = performed && self.job(Job::Performed);
        self.at("has performed").await;
        let finished = self.finish(&agent, &prepared, !performed).await;
        self.at("has heard of finish").await;
        let moved = performed && finished;
        let confirmed = self.confirm(!moved).await;
        self.at("has confirmed").await;
        if self.world.kind.driven == Driven::ByLibvirtd {
            let _ = agent.call(Call::UnregisterCloseCallback, FOREVER).await;
        }
        let _ = agent.call(Call::Close, FOREVER).await;
        self.at("has taken leave").await;
        match (confirmed, moved) {
            (false, _) => Ended::Unknown,
            (true, true) => Ended::Moved,
            (true, false) => Ended::Stays,
        }
    }

    fn flags(&self) -> Flags {
        let kind = self.world.kind;
        let mut flags = Flags::LIVE | Flags::NON_SHARED_DISK;
        if kind.driven == Driven::ByLibvirtd {
            flags = flags | Flags::PEER2PEER;
        }
        if kind.moves_definition {
            flags = flags | Flags::PERSIST_DEST | Flags::UNDEFINE_SOURCE;
        }
        if kind.suspended {
            flags = flags | Flags::PAUSED;
        }
        flags
    }

    async fn prepare(&self) -> Result<(Daemon, Prepared), Box<dyn std::error::Error>> {
        self.at("begins").await;
        let reach = Reach { world: Arc::clone(&self.world), who: self.who };
        let agent = Daemon::open(&reach, &Endpoint::Tcp(AGENT)).await?;
        if self.world.kind.driven == Driven::ByLibvirtd {
            agent.call(Call::RegisterCloseCallback, FOREVER).await?;
            agent.call(Call::supports(Feature::MigrationP2p), FOREVER).await?;
        }
        agent.call(Call::supports(Feature::MigrationV3), FOREVER).await?;
        agent.call(Call::supports(Feature::MigrationParams), FOREVER).await?;
        self.at("prepares").await;
        let mut params = Params::new();
        params.replace(&Name::DESTINATION_XML, &*definition())?;
        let call = Call::Prepare(Prepare { params, cookie: cookie(true), flags: self.flags() });
        let Reply::Prepared(prepared) = agent.call(call, FOREVER).await? else {
            return Err("something else".into());
        };
        Ok((agent, prepared))
    }

    /// QEMU sends disks, then memory; the VM is paused before the last of both.
    async fn perform(&self, prepared: &Prepared) -> io::Result<()> {
        let (memory, disks) = ports(prepared)?;
        let qemu = self.world.alive(|no| Who::Qemu(Place::East, no));
        let qemu = qemu.ok_or(io::ErrorKind::NotConnected)?;
        let reach = Reach { world: Arc::clone(&self.world), who: qemu };
        let connect = async |port| {
            let to = Endpoint::Tcp(SocketAddr::new(DATA, port));
            reach.connect(&to, Carries::Data).await
        };
        let mut disks = connect(disks).await?;
        let forgetful = self.world.is_forgetful();
        for part in 1..=(if forgetful { 0 } else { 3 }) {
            disks.write_all(&vec![part; 8 << 10]).await?;
            self.at(&format!("has sent disks, part {part}")).await;
        }
        let mut memory = connect(memory).await?;
        for part in 1..=3 {
            memory.write_all(&vec![part; 8 << 10]).await?;
            self.at(&format!("has sent memory, part {part}")).await;
        }
        {
            let mut guest = self.world.guest();
            if guest.power(Place::East) != Power::Running {
                return Err(io::ErrorKind::NotConnected.into());
            }
            guest.pauses(Place::East, true);
        }
        self.at("has paused it").await;
        let write = self.world.guest().latest();
        if forgetful {
            nbd::writes(&mut disks, write).await?;
        } else {
            ends(disks, write).await?;
        }
        self.at("has sent all disks").await;
        ends(memory, write).await?;
        Ok(())
    }

    async fn finish(&self, agent: &Daemon, prepared: &Prepared, cancelled: bool) -> bool {
        let mut params = Params::new();
        let put = [
            params.replace(&Name::DESTINATION_NAME, VM),
            params.replace(&Name::DESTINATION_XML, &*definition()),
            params.replace(&Name::MIGRATE_URI, prepared.uri.as_deref().unwrap_or_default()),
        ];
        assert!(put.iter().all(Result::is_ok));
        let cookie = if cancelled { Vec::new() } else { cookie(false) };
        let call = Finish { params, cookie, flags: self.flags(), cancelled };
        let answer = agent.call(Call::Finish(call), FOREVER).await;
        if let Err(error) = &answer {
            self.told(error);
        }
        matches!(answer, Ok(Reply::Finished(_)))
    }

    /// Answers whether the source's libvirtd did it.
    async fn confirm(&self, cancelled: bool) -> bool {
        if !self.job(Job::Confirms { cancelled }) {
            return false;
        }
        self.at("confirms").await;
        if self.world.libvirtd(Place::East) != self.libvirtd {
            return false;
        }
        if cancelled {
            self.job(Job::None);
            self.world.guest().resumes(Place::East);
            return true;
        }
        if self.world.kind.near {
            self.world.qemu_goes(Place::East);
            self.at("has ended its QEMU").await;
            sleep(LOOKS_EVERY).await;
            self.at("looks whether it has gone").await;
            if self.world.libvirtd(Place::East) != self.libvirtd {
                return false;
            }
        }
        confirm(&self.world);
        true
    }
}

/// Where an agent listens for memory and for disks.
pub fn ports(prepared: &Prepared) -> io::Result<(u16, u16)> {
    let port = |text: &str| text.parse().map_err(io::Error::other);
    let uri = prepared.uri.as_deref().unwrap_or_default();
    let memory = port(uri.rsplit(':').next().unwrap_or_default())?;
    let xml = String::from_utf8_lossy(&prepared.cookie);
    let disks = xml.split("port='").nth(1).or_else(|| xml.split("port=\"").nth(1));
    let disks = port(disks.unwrap_or_default().split(['\'', '"']).next().unwrap_or_default())?;
    Ok((memory, disks))
}

/// The rest, by which the other end knows that it has all; and its word that it has.
pub async fn ends(mut stream: ByteStream, write: u64) -> io::Result<()> {
    let len: u64 = 3 * (8 << 10);
    stream.write_all(&[len.to_le_bytes(), write.to_le_bytes()].concat()).await?;
    stream.shutdown().await?;
    match stream.read_u8().await? {
        b'!' => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub fn cookie(prepares: bool) -> Vec<u8> {
    let nbd = if prepares { "<nbd><disk target='vda' capacity='1048576'/></nbd>" } else { "" };
    let text = format!(
        "<qemu-migration><name>{VM}</name><uuid>{UUID}</uuid><hostname>east-host</hostname>\
         <hostuuid>8a0f1c52-6f2d-4b0e-9d4e-0d5d1f6e3c1b</hostuuid>{nbd}</qemu-migration>\0"
    );
    text.into_bytes()
}

pub fn definition() -> String {
    format!(
        "<domain type='kvm' id='1'><name>{VM}</name><uuid>{UUID}</uuid>\
         <memory unit='KiB'>262144</memory><currentMemory unit='KiB'>262144</currentMemory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>\
         <devices><emulator>/usr/bin/qemu</emulator>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='/srv/vm/web1.qcow2'/><target dev='vda' bus='virtio'/></disk>\
         </devices></domain>"
    )
}
