//! What every verb needs: state, configuration, sites, programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use appliance::Appliance;
use model::SiteName;
use site::{ApplianceFiles, Site};
use units::Digest;

use crate::cli::Global;
use crate::clouds;
use crate::config::Config;
use crate::failure::{Failure, Kind};
use crate::store::SiteConfig;
use crate::store::Store;

pub struct Context {
    pub store: Store,
    pub config: Config,
    pub json: bool,
    open: Mutex<BTreeMap<SiteName, Arc<dyn Site>>>,
}

/// A broken line may stay broken for this long before the migration stops, resumable.
const PATIENCE: Duration = Duration::from_secs(300);

impl Context {
    pub fn open(global: Global) -> Result<Self, Failure> {
        let config = Config::load(global.config.as_deref())?;
        let state = match global.state_dir {
            Some(path) => path,
            None => usual_state_dir()?,
        };
        Ok(Self { store: Store::open(&state)?, config, json: global.json, open: Mutex::default() })
    }

    /// A result: words for people, or the value for programs.
    pub fn say(&self, words: &str, value: &serde_json::Value) {
        if self.json {
            crate::show::line(&value.to_string());
        } else {
            crate::show::line(words);
        }
    }

    /// Registered ones, and those of the configuration file; the file wins.
    pub fn sites(&self) -> Result<Vec<SiteConfig>, Failure> {
        let mut sites = self.config.sites();
        for site in self.store.sites()? {
            if sites.iter().all(|known| known.name != site.name) {
                sites.push(site);
            }
        }
        sites.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sites)
    }

    /// ... among them one of this name, and the names of all.
    pub fn known(&self, name: &SiteName) -> Result<(Option<SiteConfig>, Vec<String>), Failure> {
        let sites = self.sites()?;
        let names = sites.iter().map(|site| site.name.to_string()).collect();
        Ok((sites.into_iter().find(|site| site.name == *name), names))
    }

    pub fn site_config(&self, name: &SiteName) -> Result<SiteConfig, Failure> {
        let (site, names) = self.known(name)?;
        site.ok_or_else(|| {
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Failure::new(Kind::Refused, format!("no site {name} is registered; known: {known}"))
                .hint(format!("causeway site add {name} --uri qemu+ssh://root@HOST/system"))
        })
    }

    /// Opened once for all that a verb asks of it: of hundreds of migrations over one connection.
    pub fn site(&self, name: &SiteName) -> Result<Arc<dyn Site>, Failure> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(site) = open.get(name) {
            return Ok(Arc::clone(site));
        }
        let site = clouds::open(&self.site_config(name)?)?;
        open.insert(name.clone(), Arc::clone(&site));
        Ok(site)
    }

    /// The static agent: named, beside this program, or where packages put it.
    pub fn agent_binary(&self) -> PathBuf {
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent).map(|dir| dir.join("causeway-agent"));
        std::env::var_os("CAUSEWAY_AGENT")
            .map(PathBuf::from)
            .or_else(|| self.config.agent.clone())
            .or_else(|| beside.filter(|path| path.exists()))
            .unwrap_or_else(|| PathBuf::from("/usr/lib/causeway/causeway-agent"))
    }

    pub fn appliance_dir(&self) -> PathBuf {
        std::env::var_os("CAUSEWAY_APPLIANCE")
            .map(PathBuf::from)
            .or_else(|| self.config.appliance.clone())
            .unwrap_or_else(|| self.store.path().join("appliance"))
    }

    /// The helper's files, checked against their manifest.
    pub fn appliance(&self, pool: String) -> Result<ApplianceFiles, Failure> {
        let appliance = Appliance::load(&self.appliance_dir()).map_err(|error| {
            let hint = error.hint().unwrap_or_else(|| "causeway appliance build".to_owned());
            Failure::new(Kind::Refused, "the helper is not built").caused_by(&error).hint(hint)
        })?;
        let manifest = &appliance.manifest;
        let mut both = blake3::Hasher::new();
        both.update(&manifest.vmlinuz.blake3.0).update(&manifest.initrd.blake3.0);
        Ok(ApplianceFiles {
            digest: Digest(*both.finalize().as_bytes()),
            kernel: appliance.vmlinuz,
            initrd: appliance.initrd,
            pool,
        })
    }

    pub fn patience(&self) -> Duration {
        self.config.patience_s.map_or(PATIENCE, Duration::from_secs)
    }
}

fn usual_state_dir() -> Result<PathBuf, Failure> {
    if rustix::process::getuid().is_root() {
        return Ok(PathBuf::from("/var/lib/causeway"));
    }
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    base.or(home).map(|base| base.join("causeway")).ok_or_else(|| {
        Failure::new(Kind::Usage, "no place for the coordinator's state: HOME is not set")
            .hint("name one with --state-dir or CAUSEWAY_STATE")
    })
}
