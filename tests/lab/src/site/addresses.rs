//! Which guest gets which address: the same host number at every site, by its MAC.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// Host numbers that the lab gives; dnsmasq gives those above to MACs nobody announced.
const FIRST: u8 = 10;
const LAST: u8 = 127;

/// Shared by all sites of a lab.
#[derive(Debug)]
pub(crate) struct Addresses {
    /// Each site's `dhcp-hostsdir` of dnsmasq, which reads new files as they come.
    dirs: Vec<PathBuf>,
    taken: Mutex<Vec<String>>,
}

impl Addresses {
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, taken: Mutex::default() }
    }

    /// The host number of `mac` at every site, a new one if it has none yet.
    pub fn reserve(&self, mac: &str) -> Result<u8> {
        let mac = mac.to_lowercase();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let at = taken.iter().position(|known| *known == mac).unwrap_or(taken.len());
        let Some(host) = u8::try_from(at).ok().and_then(|at| at.checked_add(FIRST)) else {
            bail!("a lab has addresses for {} guests only", LAST - FIRST + 1);
        };
        if host > LAST {
            bail!("a lab has addresses for {} guests only", LAST - FIRST + 1);
        }
        if at == taken.len() {
            for (number, dir) in self.dirs.iter().enumerate() {
                let address = guest(number, host);
                fs::write(dir.join(mac.replace(':', "-")), format!("{mac},{address},infinite\n"))?;
            }
            taken.push(mac);
        }
        Ok(host)
    }

    /// A MAC that no other guest of the lab has.
    pub fn new_mac(&self) -> Result<String> {
        let count = self.taken.lock().unwrap_or_else(PoisonError::into_inner).len();
        let mac = format!("52:54:00:ca:05:{count:02x}");
        self.reserve(&mac)?;
        Ok(mac)
    }
}

/// The address at the site with this number of the guest with this host number.
pub(crate) fn guest(site: usize, host: u8) -> Ipv4Addr {
    let [a, b, c, _] = super::address(site).octets();
    Ipv4Addr::new(a, b, c, host)
}
