//! By which way a VM moves: copied by an agent inside it, or live by its site's own migration.

use model::SiteName;
use site_ledger::{Unpaired, paired};

use super::args::{Ask, Format, MethodArg, TrackerArg};
use super::live::refused;
use super::site::site_name;
use crate::clouds::neighbour;
use crate::context::Context;
use crate::failure::{Failure, Kind};

/// The way, and why; `None`: nobody asked, and there is no other.
pub struct Choice {
    pub way: Way,
    pub why: Option<String>,
}

pub enum Way {
    Guest,
    Native {
        /// The source's mobility agent, as the source's hypervisors reach it.
        neighbour: String,
        /// What stands against it.
        unpaired: Option<Unpaired>,
    },
}

pub async fn choose(context: &Context, ask: &Ask) -> Result<Choice, Failure> {
    let guest = |why| Ok(Choice { way: Way::Guest, why });
    if matches!(ask.method, Some(MethodArg::Guest)) {
        return guest(None);
    }
    let (from, to) = (site_name(&ask.from)?, site_name(&ask.to)?);
    let by = mobility(context, &from)?;
    let of_guest = options_of_guest(ask);
    if matches!(ask.method, Some(MethodArg::Native)) {
        if let Some(option) = of_guest.first() {
            return Err(Failure::new(Kind::Usage, format!("{option} is of --method guest alone"))
                .hint("pools and networks of a VM that moves live are those of [arrivals] in the configuration of the destination's mobility agent"));
        }
        let neighbour = by.ok_or_else(|| {
            Failure::new(Kind::Refused, format!("no mobility agent is registered for {from}")).hint(
                format!("causeway site add {from} --uri URI --mobility qemu+tcp://AGENT/system"),
            )
        })?;
        let unpaired = unpaired(context, &from, &to).await?;
        return Ok(Choice { way: Way::Native { neighbour, unpaired }, why: None });
    }
    let asked = ask.method.is_some();
    let missing = |site| asked.then(|| format!("no mobility agent is registered for {site}"));
    let neighbour = match (by, mobility(context, &to)?) {
        (None, _) => return guest(missing(from)),
        (_, None) => return guest(missing(to)),
        (Some(neighbour), Some(_)) => neighbour,
    };
    if let Some(option) = of_guest.first() {
        return guest(Some(format!("{option} is of it alone")));
    }
    if let Some(unpaired) = unpaired(context, &from, &to).await? {
        return guest(Some(unpaired.to_string()));
    }
    let why = Some(
        "both sites have a mobility agent, paired with the other's when it last started".to_owned(),
    );
    Ok(Choice { way: Way::Native { neighbour, unpaired: None }, why })
}

/// By what both agents say of themselves.
async fn unpaired(
    context: &Context,
    from: &SiteName,
    to: &SiteName,
) -> Result<Option<Unpaired>, Failure> {
    let (source, destination) = (context.site(from)?, context.site(to)?);
    let paired = paired((from, &*source), (to, &*destination)).await;
    Ok(paired.map_err(|error| refused(&error))?.err())
}

fn mobility(context: &Context, site: &SiteName) -> Result<Option<String>, Failure> {
    let uri = context.site_config(site)?.mobility;
    uri.as_deref().map_or(Ok(()), neighbour)?;
    Ok(uri)
}

/// Those that were typed and mean nothing to a live migration.
fn options_of_guest(ask: &Ask) -> Vec<&'static str> {
    let login = &ask.login;
    let typed = [
        ("--guest", login.guest.is_some()),
        ("--identity", login.identity.is_some()),
        ("--host-key", login.host_key.is_some()),
        ("--known-hosts", login.known_hosts.is_some()),
        ("--pool", !ask.pool.is_empty()),
        ("--network", !ask.network.is_empty()),
        ("--format", !matches!(ask.format, Format::Same)),
        ("--limit-read", ask.limit_read.is_some()),
        ("--tracker", !matches!(ask.tracker, TrackerArg::Auto)),
        ("--direct", ask.direct.is_some()),
        ("--streams", ask.streams.is_some()),
        ("--compress", ask.compress.is_some()),
        ("--stop-unit", !ask.stop_unit.is_empty()),
        ("--hook-before", !ask.hook_before.is_empty()),
        ("--hook-undo", !ask.hook_undo.is_empty()),
        ("--gate", ask.gate.is_some()),
        ("--hold", ask.hold),
        ("--at", ask.at.is_some()),
        ("--rounds-max", ask.rounds_max.is_some()),
        ("--boot-time", ask.boot_time.is_some()),
        ("--probe", ask.probe.is_some()),
        ("--reread", ask.reread),
        ("--line", ask.line.is_some()),
    ];
    typed.into_iter().filter_map(|(option, is_typed)| is_typed.then_some(option)).collect()
}
