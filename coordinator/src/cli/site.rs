//! `causeway site`.

use model::SiteName;
use serde_json::json;

use super::args::SiteAdd;
use super::exit;
use super::find::{by_id, state_of};
use super::plan::readable;
use crate::context::Context;
use crate::failure::{Failure, Kind, problem};
use crate::show::line;
use crate::store::{HostLogin, SiteConfig};

pub fn site_name(text: &str) -> Result<SiteName, Failure> {
    text.parse().map_err(|error: model::SiteNameError| {
        Failure::new(Kind::Usage, "not a site").caused_by(&error)
    })
}

/// One that can be asked.
pub fn registered(context: &Context, text: &str) -> Result<SiteName, Failure> {
    let name = site_name(text)?;
    let (site, known) = context.known(&name)?;
    if site.is_some() {
        return Ok(name);
    }
    let hint = match known.len() {
        0 => "register it: causeway site add NAME --uri URI".to_owned(),
        _ => format!("registered are {}", known.join(", ")),
    };
    Err(Failure::new(Kind::Usage, format!("no site is called {name}")).hint(hint))
}

pub fn add(context: &Context, add: SiteAdd) -> Result<u8, Failure> {
    for (what, file) in
        [("private key", &add.host_identity), ("known hosts", &add.host_known_hosts)]
    {
        if let Some(file) = file {
            readable(what, file)?;
        }
    }
    let site = SiteConfig {
        name: site_name(&add.name)?,
        uri: add.uri,
        host: add.host.map(|login| HostLogin {
            login,
            identity: add.host_identity,
            known_hosts: add.host_known_hosts,
        }),
        mobility: add.mobility,
    };
    if let Some(uri) = &site.mobility {
        crate::clouds::neighbour(uri)?;
    }
    // Opened to have its parts checked; `check` connects.
    crate::clouds::open(&site)?;
    context.store.put_site(&site)?;
    if context.json {
        line(&json!({ "added": site }).to_string());
    } else {
        line(&format!(
            "{} registered; look at it with: causeway site check {}",
            site.name, site.name
        ));
    }
    Ok(exit::DONE)
}

pub fn remove(context: &Context, name: &str) -> Result<u8, Failure> {
    for id in context.store.migration_ids()? {
        let stored = by_id(context, &id)?;
        let is_its = [&stored.plan.from, &stored.plan.to].iter().any(|site| site.as_str() == name);
        if is_its && !state_of(&stored)?.phase.is_final() {
            let what = format!("{name} takes part in {id}, which has not ended");
            return Err(Failure::new(Kind::Refused, what).hint(format!(
                "causeway resume {id}, or causeway abort {id}, and then remove it"
            )));
        }
    }
    if context.store.remove_site(name)? {
        context.say(&format!("{name} forgotten"), &json!({ "removed": name }));
        return Ok(exit::DONE);
    }
    Err(Failure::new(Kind::Refused, format!("no site {name} is registered"))
        .hint("causeway site list"))
}

pub fn list(context: &Context) -> Result<u8, Failure> {
    let sites = context.sites()?;
    if context.json {
        for site in &sites {
            line(&json!(site).to_string());
        }
        return Ok(exit::DONE);
    }
    if sites.is_empty() {
        line(
            "no site is registered\nhint: causeway site add NAME --uri qemu+ssh://root@HOST/system",
        );
    }
    for site in sites {
        let host = site.host.map_or_else(String::new, |host| format!("   host {}", host.login));
        let mobility = site.mobility.map_or_else(String::new, |uri| format!("   mobility {uri}"));
        line(&format!("{}   {}{host}{mobility}", site.name, site.uri));
    }
    Ok(exit::DONE)
}

pub async fn check(context: &Context, names: &[String]) -> Result<u8, Failure> {
    let mut wanted = Vec::new();
    for name in names {
        wanted.push(context.site_config(&site_name(name)?)?);
    }
    if names.is_empty() {
        wanted = context.sites()?;
    }
    if wanted.is_empty() {
        return Err(Failure::new(Kind::Refused, "no site is registered")
            .hint("causeway site add NAME --uri qemu+ssh://root@HOST/system"));
    }
    let mut code = exit::DONE;
    for site in wanted {
        match crate::clouds::open(&site)?.probe().await {
            Ok(report) if context.json => {
                line(&json!({ "site": site.name, "report": report }).to_string());
            }
            Ok(report) => line(&text(&site.name, &report)),
            Err(error) => {
                code = exit::REFUSED;
                let problem = problem(&error);
                if context.json {
                    let value =
                        json!({ "site": site.name, "error": problem.text, "hint": problem.hint });
                    line(&value.to_string());
                } else {
                    line(&format!("{}   {}\n  hint: {}", site.name, problem.text, problem.hint));
                }
            }
        }
    }
    Ok(code)
}

fn text(name: &SiteName, report: &model::SiteReport) -> String {
    let mut lines =
        vec![format!("{name}   {} on {} ({})", report.platform, report.host, report.arch)];
    for pool in &report.pools {
        let state = if pool.active { "" } else { ", not active" };
        lines.push(format!(
            "  pool      {} ({}), {} of {} free{state}",
            pool.name, pool.kind, pool.available, pool.capacity
        ));
    }
    for offer in &report.networks {
        let state = if offer.active { "" } else { " (not active)" };
        lines.push(format!("  network   {}{state}", offer.network.name()));
    }
    lines.push(format!("  machines  {}", short_list(&report.machines)));
    if !report.cpu_models.is_empty() {
        lines.push(format!("  CPUs      {}", short_list(&report.cpu_models)));
    }
    let firmwares: Vec<_> =
        report.firmwares.iter().map(|firmware| format!("{firmware:?}")).collect();
    lines.push(format!("  firmware  {}", firmwares.join(", ")));
    let capabilities: Vec<_> = report.capabilities.iter().map(|c| format!("{c:?}")).collect();
    lines.push(format!("  can       {}", capabilities.join(", ")));
    for outdated in &report.outdated {
        lines.push(format!("  refused   {outdated}"));
    }
    for warning in &report.warnings {
        lines.push(format!("  warning   {warning}"));
    }
    lines.join("\n")
}

/// All of a short list, the start of a long one; `--json` has them all.
fn short_list(items: &[String]) -> String {
    const SHOWN: usize = 12;
    if items.len() <= SHOWN {
        return items.join(", ");
    }
    format!("{}, and {} more (see --json)", items[..SHOWN].join(", "), items.len() - SHOWN)
}
