//! Two sites with a path between them, and the operator, who reaches both.

use std::fs;
use std::net::Ipv4Addr;
use std::ops::Sub;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lab::{Between, Lab, OPERATOR, Scenario, Site, Wan};

use crate::counters::traffic;

/// Where libvirt's pool `default` is at a site.
pub const POOL: &str = "/srv/vm";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    East,
    West,
}

impl At {
    pub const fn other(self) -> Self {
        match self {
            Self::East => Self::West,
            Self::West => Self::East,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
        }
    }

    /// Of the hypervisor, on the path between the sites.
    pub const fn on_path(self) -> Ipv4Addr {
        match self {
            Self::East => Ipv4Addr::new(10, 97, 1, 1),
            Self::West => Ipv4Addr::new(10, 97, 1, 2),
        }
    }

    /// Of its agent. West's is on the operator's machine, which reaches west over a path of its own.
    pub fn agent(self, ground: &Ground) -> Ipv4Addr {
        match self {
            Self::East => ground.site(Self::East).address(),
            Self::West => OPERATOR,
        }
    }
}

#[derive(Debug)]
pub struct Ground {
    pub lab: Lab,
    pub scratch: PathBuf,
    /// QEMU, told to compress with zstd where it has several channels. libvirt 9.0 has no word for it.
    pub zstd: PathBuf,
    pub mobility: PathBuf,
}

/// What the two shaped paths have carried, from east to west and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    west: u64,
    east: u64,
}

impl Carried {
    pub const fn towards(self, at: At) -> u64 {
        match at {
            At::East => self.east,
            At::West => self.west,
        }
    }
}

impl Sub for Carried {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { west: self.west - before.west, east: self.east - before.east }
    }
}

impl Ground {
    pub fn start(mobility: &Path) -> Result<Self> {
        let lab = Scenario::Direct.builder().start()?;
        let scratch = lab.dir().join("bench");
        fs::create_dir(&scratch)?;
        // A site sees other files in some places; in here it sees the same.
        let own = scratch.join("causeway-mobility");
        fs::copy(mobility, &own).with_context(|| {
            format!("{} cannot be copied: run `make programs`", mobility.display())
        })?;
        let zstd = scratch.join("qemu");
        let words =
            "-global migration.multifd-compression=zstd -global migration.multifd-zstd-level=1";
        fs::write(&zstd, format!("#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 \"$@\" {words}\n"))?;
        fs::set_permissions(&zstd, fs::Permissions::from_mode(0o755))?;
        let ground = Self { lab, scratch, zstd, mobility: own };
        for at in [At::East, At::West] {
            // libvirt asks an emulator that it does not know for seconds what it can do.
            let emulator = ground.zstd.display().to_string();
            ground.site(at).virsh(&["domcapabilities", "--emulatorbin", &emulator])?;
        }
        Ok(ground)
    }

    pub fn site(&self, at: At) -> &Site {
        self.lab.site(at.name()).expect("the lab has both")
    }

    /// Both paths alike; nothing is no limit.
    pub fn shape(&self, mbit: Option<u32>) -> Result<()> {
        let wan = Wan { rate: mbit, ..Wan::default() };
        self.lab.set_wan(Between::Sites("east", "west"), wan)?;
        self.lab.set_wan(Between::Operator("east"), wan)
    }

    pub fn carried(&self) -> Result<Carried> {
        let own = || fs::read_to_string("/proc/thread-self/net/dev");
        let of = |table: &str, interface: &str| {
            traffic(table, interface).with_context(|| format!("no {interface} in\n{table}"))
        };
        let (to_east, to_west) = of(&self.site(At::East).inside(own)??, "to-west")?;
        let (from_east, back_east) = of(&self.lab.operator().inside(own)??, "east")?;
        Ok(Carried { west: to_west + from_east, east: to_east + back_east })
    }

    pub fn congestion_control(&self) -> Result<String> {
        const FILE: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
        Ok(self.site(At::East).inside(|| fs::read_to_string(FILE))??.trim().to_owned())
    }
}
