//! A lab: sites, the operator, the paths between them, and their common end.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use crate::net::path::{End, Path};
use crate::net::{Between, Traffic, Wan};
use crate::operator::{ADDRESS, Operator};
use crate::process::{Holder, Lifeline};
use crate::site::{Addresses, Site, SiteSpec, address, make_key};
use crate::state::{self, State};
use crate::{capabilities, check};

/// More would not fit the numbering of networks, long after they did not fit the machine.
const SITES: usize = 16;

/// How sites reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Route {
    /// Not at all: only the operator reaches them.
    #[default]
    None,
    /// Each two sites, and their guests, over a path of their own.
    Direct,
}

/// What a lab is to be like.
#[derive(Debug)]
pub struct Builder {
    root: PathBuf,
    sites: Vec<SiteSpec>,
    route: Route,
    wan: Wan,
    wans: Vec<(String, Wan)>,
}

impl Builder {
    #[must_use]
    pub fn site(mut self, site: SiteSpec) -> Self {
        self.sites.push(site);
        self
    }

    #[must_use]
    pub fn route(self, route: Route) -> Self {
        Self { route, ..self }
    }

    /// What every path does to packets, unless [`wan_to`](Self::wan_to) says otherwise.
    #[must_use]
    pub fn wan(self, wan: Wan) -> Self {
        Self { wan, ..self }
    }

    /// What the path between the operator and this site does to packets.
    #[must_use]
    pub fn wan_to(mut self, site: &str, wan: Wan) -> Self {
        self.wans.push((site.to_owned(), wan));
        self
    }

    /// Where the lab makes its directory; see [`state::default_root`].
    #[must_use]
    pub fn dir(self, root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..self }
    }

    /// Starts everything; it answers when this returns. Leftovers of dead labs go first.
    pub fn start(self) -> Result<Lab> {
        check::require()?;
        self.validate()?;
        state::reap(&self.root)?;
        let state = State::create(&self.root)?;
        let dir = state.dir.clone();
        let lifeline = Lifeline::new()?;
        let warden = Holder::start(
            "operator",
            &dir,
            &lifeline,
            &["--net"],
            include_str!("warden.sh"),
            &[("LAB_DIR", dir.display().to_string()), ("LAB_ADDRESS", ADDRESS.to_string())],
        )?;
        let operator = Operator { dir: dir.join("operator"), lab: dir.clone(), pid: warden.pid() };
        // From here on the warden clears up, also after an error.
        let mut lab = Lab {
            between: None,
            sites: Vec::new(),
            paths: Vec::new(),
            operator,
            lifeline: Some(lifeline),
            warden,
            state,
        };
        lab.fill(self)?;
        Ok(lab)
    }

    fn validate(&self) -> Result<()> {
        let names: Vec<_> = self.sites.iter().map(|site| site.name.as_str()).collect();
        if names.is_empty() || names.len() > SITES {
            bail!("a lab has 1 to {SITES} sites, not {}", names.len());
        }
        for (at, name) in names.iter().enumerate() {
            // It becomes a host name, a directory and an interface.
            let fits = (1..=12).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            if !fits || ["operator", "between", "lo"].contains(name) {
                bail!("not a name for a site: {name:?} (up to 12 of a-z and 0-9)");
            }
            if names[..at].contains(name) {
                bail!("two sites are named {name}");
            }
        }
        for (name, _) in &self.wans {
            if !names.contains(&name.as_str()) {
                bail!("no site is named {name}");
            }
        }
        Ok(())
    }
}

/// Sites that are up. Dropping it ends and removes everything, and so does the death of this
/// process, in any way. `LAB_KEEP=1` in the environment keeps the directory.
#[derive(Debug)]
pub struct Lab {
    sites: Vec<Site>,
    paths: Vec<Path>,
    operator: Operator,
    between: Option<Holder>,
    /// Dropped first of all.
    lifeline: Option<Lifeline>,
    warden: Holder,
    state: State,
}

impl Lab {
    pub fn builder() -> Builder {
        Builder {
            root: state::default_root(),
            sites: Vec::new(),
            route: Route::default(),
            wan: Wan::default(),
            wans: Vec::new(),
        }
    }

    /// `east` and `west`, which only the operator reaches.
    pub fn relay() -> Result<Self> {
        Scenario::Relay.builder().start()
    }

    /// `east` and `west` with a path between them.
    pub fn direct() -> Result<Self> {
        Scenario::Direct.builder().start()
    }

    pub fn site(&self, name: &str) -> Result<&Site> {
        let found = self.sites.iter().find(|site| site.name() == name);
        found.with_context(|| format!("no site is named {name}"))
    }

    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    pub fn dir(&self) -> &FsPath {
        &self.state.dir
    }

    /// From now on nothing passes, and nobody is told.
    pub fn cut(&self, between: Between<'_>) -> Result<()> {
        self.path(between)?.set_cut(true, &self.between_net()?)
    }

    pub fn heal(&self, between: Between<'_>) -> Result<()> {
        self.path(between)?.set_cut(false, &self.between_net()?)
    }

    /// Changes what a path does to packets. Those under way are lost.
    pub fn set_wan(&self, between: Between<'_>, wan: Wan) -> Result<()> {
        self.path(between)?.set_wan(wan, &self.between_net()?)
    }

    /// What delay and loss were done to, if the path has any: one way, and the other.
    pub fn traffic(&self, between: Between<'_>) -> Result<Option<[Traffic; 2]>> {
        Ok(self.path(between)?.traffic())
    }

    /// Takes the power from a site: its VMs, libvirtd and addresses are gone at once.
    pub fn power_off(&self, site: &str) -> Result<()> {
        let site = self.site(site)?;
        // Fails if it is off already.
        site.pid()?;
        let between = self.between_net()?;
        for path in &self.paths {
            for end in path.ends_at(Some(site.name())) {
                path.unplug(end, &between)?;
            }
        }
        site.power_off()
    }

    /// Boots a site that was powered off: disks and configuration are as they were, libvirtd starts
    /// what is set to start with the host. Cuts stay.
    pub fn power_on(&self, site: &str) -> Result<()> {
        let site = self.site(site)?;
        site.power_on(self.lifeline()?)?;
        self.plug(site)
    }

    fn fill(&mut self, spec: Builder) -> Result<()> {
        let dir = self.state.dir.clone();
        fs::create_dir_all(&self.operator.dir)?;
        make_key(&self.operator.ssh_key(), "operator")?;
        let between = Holder::start(
            "between",
            &dir,
            self.lifeline()?,
            &["--net"],
            include_str!("net/holder.sh"),
            &[],
        )?;
        let net = between.net();
        self.between = Some(between);

        let names: Vec<_> = spec.sites.iter().map(|site| site.name.clone()).collect();
        let dhcp = names.iter().map(|name| dir.join(name).join("dhcp")).collect();
        let addresses = Arc::new(Addresses::new(dhcp));
        for (number, site) in spec.sites.into_iter().enumerate() {
            let addresses = Arc::clone(&addresses);
            let site = Site::lay(&dir, site, number, &names, addresses)?;
            capabilities::give(&site)?;
            self.sites.push(site);
        }
        for (ends, to) in wiring(&names, spec.route) {
            let special = spec.wans.iter().find(|(site, _)| Some(site) == to.as_ref());
            let wan = special.map_or(spec.wan, |(_, wan)| *wan);
            self.paths.push(Path::lay(self.paths.len(), ends, wan, &net)?);
        }
        for path in &self.paths {
            for end in path.ends_at(None) {
                path.plug(end, self.operator.pid, &self.operator.net(), &net)?;
            }
        }
        let lifeline = self.lifeline()?;
        thread::scope(|scope| {
            let starting: Vec<_> =
                self.sites.iter().map(|site| scope.spawn(|| site.power_on(lifeline))).collect();
            starting.into_iter().try_for_each(|site| {
                site.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        for site in &self.sites {
            self.plug(site)?;
        }
        capabilities::keep(&self.sites[0])
    }

    /// Connects the ends of paths at a site that just came up.
    fn plug(&self, site: &Site) -> Result<()> {
        let between = self.between_net()?;
        for path in &self.paths {
            for end in path.ends_at(Some(site.name())) {
                path.plug(end, site.pid()?, &site.net()?, &between)?;
            }
        }
        Ok(())
    }

    fn path(&self, between: Between<'_>) -> Result<&Path> {
        let found = self.paths.iter().find(|path| path.joins(between));
        found.with_context(|| format!("the lab has no such path: {between:?}"))
    }

    fn between_net(&self) -> Result<PathBuf> {
        Ok(self.between.as_ref().context("a lab has a network between")?.net())
    }

    fn lifeline(&self) -> Result<&Lifeline> {
        self.lifeline.as_ref().context("the lab is going down")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The same way as when this process dies: one way to test, and it clears up everything.
        self.paths.clear();
        self.lifeline = None;
        // Nobody can be told if waiting fails; the next lab's reaper has another look.
        for site in &self.sites {
            let _ = site.wait();
        }
        if let Some(between) = &mut self.between {
            let _ = between.wait();
        }
        let _ = self.warden.wait();
    }
}

/// Ready-made labs of two sites, `east` and `west`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Only the operator reaches both.
    Relay,
    /// They reach each other too.
    Direct,
    /// Only the operator reaches both: `east` over a LAN, `west` over [`Wan::COUNTRY`].
    Wan,
}

impl Scenario {
    pub fn builder(self) -> Builder {
        self.builder_with(SiteSpec::named)
    }

    /// With sites that are not as usual.
    pub fn builder_with(self, site: impl Fn(&str) -> SiteSpec) -> Builder {
        let builder = Lab::builder().site(site("east")).site(site("west"));
        match self {
            Self::Relay => builder,
            Self::Direct => builder.route(Route::Direct),
            Self::Wan => builder.wan_to("west", Wan::COUNTRY),
        }
    }
}

/// The ends of every path, and for a path from the operator the site it leads to.
fn wiring(names: &[String], route: Route) -> Vec<([End; 2], Option<String>)> {
    let mut paths = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let operator = End {
            site: None,
            interface: name.clone(),
            address: format!("10.98.{at}.1"),
            routes: vec![(bridge_network(at), ADDRESS.to_string())],
        };
        let site = End {
            site: Some(name.clone()),
            interface: "up0".to_owned(),
            address: format!("10.98.{at}.2"),
            routes: vec![(ADDRESS.to_string(), address(at).to_string())],
        };
        paths.push(([operator, site], Some(name.clone())));
    }
    if route == Route::None {
        return paths;
    }
    for (one, one_name) in names.iter().enumerate() {
        for (other, other_name) in names.iter().enumerate().skip(one + 1) {
            let number = one * SITES + other;
            let end = |at: usize, name: &String, host: u8, peer: usize, peer_name: &str| End {
                site: Some(name.clone()),
                interface: format!("to-{peer_name}"),
                address: format!("10.97.{number}.{host}"),
                routes: vec![(bridge_network(peer), address(at).to_string())],
            };
            let ends = [
                end(one, one_name, 1, other, other_name),
                end(other, other_name, 2, one, one_name),
            ];
            paths.push((ends, None));
        }
    }
    paths
}

/// The network of a site's bridge.
fn bridge_network(site: usize) -> String {
    let [a, b, c, _] = address(site).octets();
    format!("{a}.{b}.{c}.0/24")
}
