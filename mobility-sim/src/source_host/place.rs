//! A place for a VM at the destination: its definition made anew, its volumes, and libvirtd ready
//! to take it in.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use model::{Power, VmId};
use roxmltree::Document;
use rpc::flags::Flags;
use rpc::params::{Name, Params};
use rpc::procedures::{self, Call, Reply};
use site::{Belongings, UefiVariables};
use site_ledger::NativePaper;
use tracing::{debug, info, warn};
use units::{MigrationId, chain};
use uuid::Uuid;

use super::disks;
use super::error::ArrivalError;
use super::streams::Data;
use crate::config::Arrivals;
use crate::domain::cookie::{self, Cookie};
use crate::domain::node::Element;
use crate::domain::{Firmware, Mapping, Translated, translate};
use crate::flags;
use crate::ledger::{Attempt, Destination, Entry, Stage, Then};
use crate::libvirt::Endpoint;
use crate::libvirt::client::{Daemon, DaemonError};
use crate::ports::DataUri;
use crate::relay::Room;
use crate::serve::Agent;
use crate::wan::message::{Finish, Finished, Leaving, Prepare, Prepared};

const LOOK_MAX: Duration = Duration::from_secs(30);
/// It starts a QEMU, on a host that may be busy.
const PREPARE_MAX: Duration = Duration::from_secs(60);
/// QEMU reads what is still in its sockets.
const FINISH_MAX: Duration = Duration::from_secs(50);
const CANCEL_MAX: Duration = Duration::from_secs(20);

/// A VM that libvirtd awaits.
pub struct Placed {
    pub name: String,
    /// As long as it is open, libvirtd holds the VM.
    pub daemon: Arc<Daemon>,
    pub data: Data,
    pub attempt: Attempt,
    mapping: Mapping,
    /// The definition that libvirtd has.
    xml: String,
    /// The same, for a cookie.
    domain: Element,
    /// Where libvirtd said that memory is to go.
    uri: String,
    flags: Flags,
}

pub async fn place(
    agent: &Agent,
    id: &MigrationId,
    ask: Prepare,
    room: Room,
    templates: u32,
) -> Result<(Placed, Prepared), ArrivalError> {
    let definition = Element::parse(&ask.xml, "domain")?;
    let theirs = Cookie::parse(ask.cookie.as_bytes())?;
    let params = flags::taken(&ask.params).map_err(|_| ArrivalError::Params)?;
    let asked = Flags(ask.flags);
    let refused = asked.and(flags::REFUSED | Flags::UNKNOWN);
    if !refused.is_empty() {
        return Err(ArrivalError::Disks(format!("no migrations with {refused} are taken")));
    }
    let format = agent.config.arrivals.format;
    let wanted = disks::wanted(&definition, &theirs.disks()?, asked, &params, format)
        .map_err(ArrivalError::Disks)?;
    let daemon = Arc::new(Daemon::open(&*agent.net, &agent.config.site.socket).await?);
    let mut mapping = mapping(&daemon, &agent.config.arrivals, id, &definition).await?;
    // Whatever is against it is said before anything is made.
    mapping.disks = disks::supposed(&wanted);
    let translated = translate(&ask.xml, &mapping)?;
    tracing::Span::current().record("vm", &*translated.name);
    let vm = Uuid::parse_str(&translated.uuid).map_err(|_| useless("the VM's id"))?;
    let power = agent.site.power(VmId(vm)).await?;
    if power.is_loaded() {
        return Err(ArrivalError::IsHere { power });
    }
    if power == Power::Off && !asked.contains(Flags::PERSIST_DEST) {
        return Err(ArrivalError::IsDefined);
    }
    if !wanted.is_empty() {
        let pool = &agent.config.arrivals.pool;
        let found = agent.site.pool(pool).await?;
        disks::fit(&wanted, pool, found.as_ref()).map_err(ArrivalError::Disks)?;
    }
    let entry = Entry {
        id: id.clone(),
        vm: VmId(vm),
        name: translated.name.clone(),
        attempt: None,
        carried: None,
        belongings: None,
        transient: !asked.contains(Flags::PERSIST_DEST),
        ran: false,
        stage: Stage::Destination(Destination::AttemptKnown),
    };
    agent.ledger.begin(entry).await?;
    let attempt = open_attempt(agent, id, VmId(vm), &translated.name, &ask.leaving).await?;
    info!(flags = %asked, disks = wanted.len(), "{} is to come", translated.name);
    for warning in &translated.warnings {
        warn!("{warning}");
    }
    mapping.disks = disks::make(agent, id, &translated.name, &wanted).await?;
    mapping.arrival = Some((id.clone(), attempt.epoch));
    let translated = translate(&ask.xml, &mapping)?;
    mapping.firmware = Firmware::of(&translated.domain);
    // Before libvirtd makes anything.
    if let Some(belongings) = belongings(&mapping, &translated.domain) {
        agent.ledger.learn(id, move |entry| entry.belongings = Some(belongings)).await?;
    }

    let flags = asked | Flags::PAUSED;
    let cookie = theirs.handed_on(&agent.config.host.in_cookies(), None, None)?;
    let mut prepare = params;
    prepare.replace(&Name::DESTINATION_XML, &*translated.xml).map_err(|_| ArrivalError::Params)?;
    let call = Call::Prepare(procedures::Prepare { params: prepare, cookie, flags });
    let prepared = match daemon.call(call, PREPARE_MAX).await {
        Ok(Reply::Prepared(prepared)) => prepared,
        Err(error @ DaemonError::Refused(_)) => return Err(error.into()),
        // It is not known whether it was carried out, or will be: it is told to let go.
        unknown => {
            let mut params = Params::default();
            params
                .replace(&Name::DESTINATION_NAME, &*translated.name)
                .map_err(|_| ArrivalError::Params)?;
            let cookie = Vec::new();
            let call = procedures::Finish { params, cookie, flags, cancelled: true };
            let told = daemon.call(Call::Finish(call), CANCEL_MAX).await;
            debug!(?told, "libvirtd was told to let go");
            return Err(unknown.err().map_or_else(|| useless("where it listens"), Into::into));
        }
    };
    agent.ledger.record(id, Stage::Destination(Destination::Placed)).await?;
    let uri = prepared.uri.ok_or_else(|| useless("where it listens"))?;
    let data = data(&agent.config.site.socket, &uri, &prepared.cookie)?;
    debug!(?data, "libvirtd awaits it");
    let cookie = cookie::text(&prepared.cookie)?.to_owned();
    let Translated { name, xml, domain, .. } = translated;
    let key = agent.custody.key().await?.into();
    let prepared = Prepared { cookie, key, epoch: attempt.epoch, room, templates };
    Ok((Placed { name, daemon, data, attempt, mapping, xml, domain, uri, flags }, prepared))
}

/// In this site's ledger before anything is made: whoever finds what was left knows whose it is.
async fn open_attempt(
    agent: &Agent,
    id: &MigrationId,
    vm: VmId,
    name: &str,
    leaving: &Leaving,
) -> Result<Attempt, ArrivalError> {
    if leaving.vm != vm || leaving.name != name {
        return Err(ArrivalError::Disks("the agents do not mean the same VM".to_owned()));
    }
    let there = (agent.config.neighbour.name.clone(), leaving.key.get().ok_or(ArrivalError::Key)?);
    let here = (agent.config.site.name.clone(), agent.custody.key().await?);
    let who = (vm, name.to_owned());
    let paper = NativePaper::new(id.clone(), who, there, here, leaving.began_ms);
    let epoch = agent.custody.next_epoch(vm, leaving.last).await?;
    let attempt = Attempt { paper, epoch };
    let learnt = attempt.clone();
    // First here: whatever becomes of the rest, it is known what is to be revoked.
    agent.ledger.learn(id, move |entry| entry.attempt = Some(learnt)).await?;
    agent.custody.opens(&attempt.paper, epoch).await?;
    Ok(attempt)
}

impl Placed {
    /// The VM stands still here afterwards, and belongs to this host. It is defined as well, whatever was asked
    /// for: one that waits is to outlive its host's crash, if not its memory.
    pub async fn finish(
        &self,
        agent: &Agent,
        ask: Finish,
    ) -> Result<(procedures::Domain, Finished, Then), ArrivalError> {
        let asked = Flags(ask.flags);
        let then = if asked.contains(Flags::PAUSED) { Then::StaysPaused } else { Then::Runs };
        let mut cookie = Vec::new();
        if !ask.cookie.is_empty() {
            let theirs = Cookie::parse(ask.cookie.as_bytes())?;
            let domain = match theirs.domain() {
                Some(xml) => translate(&xml, &self.mapping)?.domain,
                // Left to itself libvirt would define what it has made of it here: a bridge for a network.
                None => self.domain.clone(),
            };
            cookie = theirs.handed_on(&agent.config.host.in_cookies(), None, Some(domain))?;
        }
        let flags = asked.without(flags::REFUSED | Flags::UNKNOWN);
        let flags = flags | Flags::PAUSED | Flags::PERSIST_DEST;
        let params = flags::taken(&ask.params).map_err(|_| ArrivalError::Params)?;
        let call = self.finish_call(Some(params), cookie, flags, false)?;
        let Reply::Finished(finished) = self.daemon.call(call, FINISH_MAX).await? else {
            return Err(useless("the VM"));
        };
        let procedures::Finished { domain, cookie } = finished;
        let cookie = cookie::text(&cookie)?.to_owned();
        let procedures::Domain { name, uuid, id } = domain.clone();
        let carried = ask.carried;
        let finished = Finished { name, uuid: Uuid::from_bytes(uuid), id, cookie, carried };
        Ok((domain, finished, then))
    }

    /// Libvirtd lets go of it. If it does not answer, it does so when the connection is closed.
    pub async fn cancel(self) {
        let cancelled = match self.finish_call(None, Vec::new(), self.flags, true) {
            Ok(call) => self.daemon.call(call, CANCEL_MAX).await.err(),
            Err(_) => None,
        };
        // An error is what libvirtd answers when it has let go.
        if let Some(error) = cancelled {
            debug!("libvirtd: {}", chain(&error));
        }
    }

    fn finish_call(
        &self,
        params: Option<Params>,
        cookie: Vec<u8>,
        flags: Flags,
        cancelled: bool,
    ) -> Result<Call, ArrivalError> {
        let mut params = params.unwrap_or_default();
        let mut put = |name, value: &str| params.replace(name, value);
        put(&Name::DESTINATION_XML, &self.xml).map_err(|_| ArrivalError::Params)?;
        put(&Name::MIGRATE_URI, &self.uri).map_err(|_| ArrivalError::Params)?;
        if cancelled {
            put(&Name::DESTINATION_NAME, &self.name).map_err(|_| ArrivalError::Params)?;
        }
        Ok(Call::Finish(procedures::Finish { params, cookie, flags, cancelled }))
    }
}

const fn useless(what: &'static str) -> ArrivalError {
    ArrivalError::Useless { what }
}

/// Where data goes. The host's own name for itself may be known to nobody else: its address is that
/// of its libvirtd.
fn data(socket: &Endpoint, uri: &str, cookie: &[u8]) -> Result<Data, ArrivalError> {
    let host = match socket {
        Endpoint::Unix(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Endpoint::Tcp(address) => address.ip(),
    };
    let port = DataUri::parse(uri, "memory").ok().and_then(|uri| uri.port);
    let memory = SocketAddr::new(host, port.ok_or_else(|| useless("where it listens"))?);
    let disks = Cookie::parse(cookie)?.nbd_port()?.map(|port| SocketAddr::new(host, port));
    Ok(Data { memory, disks })
}

/// From what the host can do and what its administrator said; without disks.
async fn mapping(
    daemon: &Daemon,
    arrivals: &Arrivals,
    id: &MigrationId,
    definition: &Element,
) -> Result<Mapping, ArrivalError> {
    let arch = definition.first("os").and_then(|os| os.first("type")?.attribute("arch"));
    let arch = arch.unwrap_or_default();
    let Reply::Capabilities(xml) = daemon.call(Call::GetCapabilities, LOOK_MAX).await? else {
        return Err(useless("what it can do"));
    };
    let can = Can::parse(&xml, arch)?;
    let name = definition.first("name").map(|name| &*name.text).unwrap_or_default();
    let is_plain = !name.is_empty() && !name.contains('/');
    let nvram = arrivals.nvram_dir.as_ref().filter(|_| is_plain);
    Ok(Mapping {
        kind: if can.kvm && !arrivals.emulate { "kvm" } else { "qemu" }.to_owned(),
        emulator: can.emulator,
        machines: can.machines,
        networks: arrivals.networks(),
        disks: std::collections::BTreeMap::new(),
        loaders: arrivals.loaders.clone(),
        // Of this attempt alone, whose whole id is like no other's: what another VM or an earlier attempt left is
        // neither used nor removed.
        nvram: nvram.map(|dir| format!("{}/{name}-{id}_VARS.fd", dir.display())),
        firmware: None,
        listen: arrivals.listen,
        same_processor: arrivals.same_processor,
        arrival: None,
    })
}

/// What libvirtd will keep of this VM besides its disks.
fn belongings(mapping: &Mapping, domain: &Element) -> Option<Belongings> {
    let arch = domain.first("os")?.first("type")?.attribute("arch")?.to_owned();
    let firmware = mapping.firmware.as_ref();
    let variables = firmware.and_then(|Firmware { loader, nvram }| {
        let (loader, file) = (loader.text.clone(), nvram.as_ref()?.text.clone());
        Some(UefiVariables { loader, file })
    });
    let tpm = domain.first("devices").and_then(|devices| devices.first("tpm")?.attribute("model"));
    let tpm = tpm.map(str::to_owned);
    let is_any = variables.is_some() || tpm.is_some();
    is_any.then(|| Belongings { kind: mapping.kind.clone(), arch, variables, tpm })
}

/// What a host says that it can run.
#[derive(Debug, PartialEq, Eq)]
struct Can {
    emulator: String,
    machines: BTreeSet<String>,
    kvm: bool,
}

impl Can {
    fn parse(xml: &str, arch: &str) -> Result<Self, ArrivalError> {
        let document = Document::parse(xml).map_err(|_| useless("what it can do"))?;
        let of_arch = document.descendants().find(|node| {
            node.has_tag_name("arch")
                && node.attribute("name") == Some(arch)
                && node.parent().is_some_and(|parent| parent.has_tag_name("guest"))
        });
        let missing = || ArrivalError::Arch { arch: arch.to_owned() };
        let of_arch = of_arch.ok_or_else(missing)?;
        let children =
            |name: &'static str| of_arch.children().filter(move |child| child.has_tag_name(name));
        let machines = children("machine").flat_map(|machine| {
            [machine.text(), machine.attribute("canonical")].into_iter().flatten()
        });
        Ok(Self {
            emulator: children("emulator")
                .find_map(|one| one.text())
                .ok_or_else(missing)?
                .to_owned(),
            machines: machines.map(str::to_owned).collect(),
            kvm: children("domain").any(|domain| domain.attribute("type") == Some("kvm")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_can_run_is_read_from_its_capabilities() {
        let xml = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>\
            <guest><os_type>hvm</os_type>\
            <arch name='x86_64'><wordsize>64</wordsize><emulator>/usr/bin/q</emulator>\
            <machine maxCpus='255'>pc-i440fx-7.2</machine>\
            <machine canonical='pc-q35-7.2' maxCpus='288'>q35</machine>\
            <domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>";
        let can = Can::parse(xml, "x86_64").unwrap();
        assert!(can.kvm && can.emulator == "/usr/bin/q");
        let machines: Vec<_> = can.machines.iter().map(String::as_str).collect();
        assert_eq!(machines, ["pc-i440fx-7.2", "pc-q35-7.2", "q35"]);
        assert!(matches!(Can::parse(xml, "s390x"), Err(ArrivalError::Arch { .. })));
    }

    #[test]
    fn data_goes_to_where_libvirtd_is_at_the_ports_that_it_said() {
        let cookie = b"<qemu-migration><nbd port='49153'/></qemu-migration>";
        let there = "tcp:10.77.2.1:16509".parse().unwrap();
        let to = data(&there, "tcp:west:49152", cookie).unwrap();
        assert_eq!(to.memory, "10.77.2.1:49152".parse().unwrap());
        assert_eq!(to.disks, Some("10.77.2.1:49153".parse().unwrap()));
        let here = "unix:/run/libvirt/libvirt-sock".parse().unwrap();
        let to = data(&here, "tcp:west:49152", b"<qemu-migration/>").unwrap();
        assert_eq!(to, Data { memory: "127.0.0.1:49152".parse().unwrap(), disks: None });
        assert!(data(&here, "tcp:west", cookie).is_err());
    }
}
