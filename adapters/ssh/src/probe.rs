//! Looking around in a guest before anything is done to it.

use std::collections::BTreeMap;

use units::MigrationId;

use crate::agent::{AgentBinary, AgentDir};
use crate::error::SshError;
use crate::guest::{Guest, Privilege};
use crate::shell::printable_tail;

/// Programs without which the agent cannot be installed, started or removed. All of them are in
/// coreutils and in busybox. The agent itself needs none.
pub const REQUIRED_TOOLS: &[&str] = &[
    "cat", "chmod", "df", "id", "kill", "ls", "mkdir", "mv", "rm", "rmdir", "sleep", "tr", "uname",
];

/// Programs whose absence we can do without: the agent is sent unpacked, its copy is read back
/// instead of summed there, and it runs at ordinary priority, in our session.
pub const OPTIONAL_TOOLS: &[&str] = &["gzip", "sha256sum", "setsid", "nice", "ionice"];

/// What a guest is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestReport {
    /// None: neither root nor sudo without a password.
    pub privilege: Option<Privilege>,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`: `x86_64`, `aarch64`.
    pub machine: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// The fields of os-release, unquoted: `ID`, `VERSION_ID`, `PRETTY_NAME`.
    pub os: BTreeMap<String, String>,
    /// Of [`REQUIRED_TOOLS`] and [`OPTIONAL_TOOLS`].
    pub missing_tools: Vec<String>,
    /// Directories that an agent might live under, best first.
    pub places: Vec<Place>,
    /// Directories of agents that are there.
    pub agents: Vec<String>,
}

/// A directory that might hold the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: String,
    /// `tmpfs`, `ext4`, …
    pub file_system: String,
    pub free_bytes: u64,
    /// A program was put there and ran.
    pub runs_programs: bool,
}

/// Room for the agent's log, sockets and the second copy while it is replaced, in bytes.
const SLACK: u64 = 4 * 1024 * 1024;

impl Guest {
    /// Looks around. Works without root too, so that everything that is in the way is told at
    /// once: see [`GuestReport::refusals`].
    pub async fn probe(&self) -> Result<GuestReport, SshError> {
        let privilege = match self.privilege().await {
            Ok(privilege) => Some(privilege),
            Err(SshError::NotPrivileged { .. }) => None,
            Err(error) => return Err(error),
        };
        let attempt = "looking around in the guest";
        let tools: Vec<&str> = REQUIRED_TOOLS.iter().chain(OPTIONAL_TOOLS).copied().collect();
        let words = [&["sh", "-s", "--"], tools.as_slice()].concat();
        let command = match privilege {
            Some(_) => self.as_root(&words).await?,
            None => crate::shell::join(words),
        };
        let output = self.script(attempt, &command, SCRIPT).await?.success(attempt)?;
        let text = String::from_utf8_lossy(&output.stdout);
        GuestReport::parse(&text, privilege).ok_or_else(|| SshError::Garbled {
            attempt: attempt.to_owned(),
            answer: printable_tail(&output.stdout, 200),
        })
    }
}

impl GuestReport {
    /// Everything that keeps this agent from being installed here; nothing if it can be, or is.
    pub fn refusals(
        &self,
        guest: &Guest,
        migration: &MigrationId,
        agent: &AgentBinary,
    ) -> Vec<SshError> {
        let mut refusals = Vec::new();
        if self.privilege.is_none() {
            let endpoint = guest.target().endpoint();
            let said = "`sudo -n` failed".to_owned();
            refusals.push(SshError::NotPrivileged { endpoint, said });
        }
        let tools: Vec<String> = self
            .missing_tools
            .iter()
            .filter(|tool| REQUIRED_TOOLS.contains(&tool.as_str()))
            .cloned()
            .collect();
        if !tools.is_empty() {
            refusals.push(SshError::MissingTools { tools });
        }
        if let Some(machine) = agent.machine()
            && machine != self.machine
        {
            refusals.push(SshError::WrongMachine {
                agent: machine.to_owned(),
                guest: self.machine.clone(),
            });
        }
        if self.agent_there(migration).is_none() {
            refusals.extend(self.place_for(agent).err());
        }
        refusals
    }

    /// Where the agent of this migration is. Where there is none, where to install it: in memory,
    /// with room, able to run it.
    pub fn agent_dir(
        &self,
        migration: &MigrationId,
        agent: &AgentBinary,
    ) -> Result<AgentDir, SshError> {
        match self.agent_there(migration) {
            Some(there) => Ok(there),
            None => Ok(AgentDir::under(&self.place_for(agent)?.path, migration)),
        }
    }

    /// What it takes up itself may leave no room for another one.
    fn agent_there(&self, migration: &MigrationId) -> Option<AgentDir> {
        let mut places = self.places.iter().map(|place| AgentDir::under(&place.path, migration));
        places.find(|dir| self.agents.iter().any(|there| there == dir.as_str()))
    }

    fn place_for(&self, agent: &AgentBinary) -> Result<&Place, SshError> {
        let needed = agent.len() + SLACK;
        let fits =
            |place: &&Place| place.is_memory() && place.runs_programs && place.free_bytes >= needed;
        self.places.iter().find(fits).ok_or_else(|| SshError::NoPlace {
            needed,
            looked_at: self.places.iter().map(Place::describe).collect::<Vec<_>>().join("; "),
        })
    }

    fn parse(text: &str, privilege: Option<Privilege>) -> Option<Self> {
        let mut report = Self {
            privilege,
            kernel: String::new(),
            machine: String::new(),
            boot_id: String::new(),
            os: BTreeMap::new(),
            missing_tools: Vec::new(),
            places: Vec::new(),
            agents: Vec::new(),
        };
        let (mut mounts, mut run, mut free, mut whole) =
            (Vec::new(), Vec::new(), Vec::new(), false);
        for line in text.lines() {
            let Some((field, value)) = line.split_once('=') else { continue };
            let value = printable_tail(value.as_bytes(), 200);
            match field {
                "kernel" => report.kernel = value,
                "machine" => report.machine = value,
                "boot" => report.boot_id = value,
                "os" => report.os.extend(os_field(&value)),
                "missing" => report.missing_tools.push(value),
                "mount" => mounts.extend(mount(&value)),
                "free" => free.extend(free_bytes(&value)),
                "runs" => run.push(value),
                "agent" => report.agents.push(value),
                "end" => whole = true,
                _ => {}
            }
        }
        for (path, free_bytes) in free {
            let file_system = file_system_of(&mounts, &path)?.to_owned();
            let runs_programs = run.contains(&path);
            report.places.push(Place { path, file_system, free_bytes, runs_programs });
        }
        let complete = whole && !report.kernel.is_empty() && !report.boot_id.is_empty();
        complete.then_some(report)
    }
}

impl Place {
    /// Gone with the guest's next boot, and never on a disk that is being copied.
    pub fn is_memory(&self) -> bool {
        ["tmpfs", "ramfs", "rootfs"].contains(&self.file_system.as_str())
    }

    fn describe(&self) -> String {
        let runs = if self.runs_programs { "runs programs" } else { "noexec" };
        format!("{} ({}, {} bytes free, {runs})", self.path, self.file_system, self.free_bytes)
    }
}

/// `KEY=value` or `KEY="value"`.
fn os_field(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    Some((key.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
}

/// Mount point and file system of a line of /proc/mounts.
fn mount(line: &str) -> Option<(String, String)> {
    let mut fields = line.split(' ');
    let (_device, point, file_system) = (fields.next()?, fields.next()?, fields.next()?);
    Some((point.to_owned(), file_system.to_owned()))
}

/// The file system of the longest mount point that holds `path`; of several on one point the last.
fn file_system_of<'a>(mounts: &'a [(String, String)], path: &str) -> Option<&'a str> {
    mounts
        .iter()
        .filter(|(point, _)| {
            point == "/"
                || path.strip_prefix(point).is_some_and(|r| r.is_empty() || r.starts_with('/'))
        })
        .max_by_key(|(point, _)| point.len())
        .map(|(_, file_system)| file_system.as_str())
}

/// `path KiB` as the script prints it.
fn free_bytes(line: &str) -> Option<(String, u64)> {
    let (path, kib) = line.split_once(' ')?;
    Some((path.to_owned(), kib.parse::<u64>().ok()?.saturating_mul(1024)))
}

/// Prints `field=value` lines. The arguments are the tools to look for. It tries whether a
/// directory runs programs, because mount options do not tell everything (SELinux, fapolicyd); but
/// only in memory: on a disk of a guest that is frozen the attempt would wait until it is thawed.
const SCRIPT: &str = r#"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
LC_ALL=C
export PATH LC_ALL
echo "kernel=$(uname -r)"
echo "machine=$(uname -m)"
echo "boot=$(cat /proc/sys/kernel/random/boot_id)"
for file in /etc/os-release /usr/lib/os-release; do
    if [ -r $file ]; then
        while read -r line; do echo "os=$line"; done <$file
        break
    fi
done
for tool in "$@"; do
    command -v "$tool" >/dev/null 2>&1 || echo "missing=$tool"
done
while read -r line; do echo "mount=$line"; done </proc/mounts
in_memory() {
    at=$1
    while :; do
        kind=
        while read -r _ point type _; do [ "$point" = "$at" ] && kind=$type; done </proc/mounts
        case $kind in
            tmpfs|ramfs|rootfs) return 0 ;;
            ?*) return 1 ;;
        esac
        [ "$at" != / ] || return 1
        at=${at%/*}
        [ -n "$at" ] || at=/
    done
}
for place in /run/causeway /run /dev/shm /tmp; do
    [ -d $place ] || continue
    df -Pk $place 2>/dev/null | while read -r _ _ _ free _; do
        case $free in ''|*[!0-9]*) ;; *) echo "free=$place $free" ;; esac
    done
    in_memory $place || continue
    try=$place/.causeway-probe-$$
    if (umask 077; mkdir $try) 2>/dev/null; then
        printf '#!/bin/sh\nexit 0\n' >$try/try 2>/dev/null
        chmod 700 $try/try 2>/dev/null
        $try/try </dev/null 2>/dev/null && echo "runs=$place"
        rm -rf $try
    fi
done
for dir in /run/causeway/* /dev/shm/causeway-* /tmp/causeway-*; do
    [ -d "$dir" ] && [ ! -L "$dir" ] && [ -O "$dir" ] && echo "agent=$dir"
done
echo end=
"#;

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "kernel=6.1.0-56-cloud-amd64\nmachine=x86_64\nboot=1-2-3\nos=ID=debian\n\
        os=PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nmissing=ionice\n\
        mount=/dev/vda1 / ext4 rw 0 0\nmount=tmpfs /run tmpfs rw,noexec 0 0\n\
        mount=tmpfs /dev/shm tmpfs rw 0 0\nfree=/run 100000\nfree=/dev/shm 200000\n\
        free=/tmp 300000\nruns=/dev/shm\nruns=/tmp\nend=\n";

    fn report(answer: &str) -> GuestReport {
        GuestReport::parse(answer, Some(Privilege::Root)).unwrap()
    }

    #[test]
    fn a_run_without_programs_is_passed_over_for_shared_memory() {
        let report = report(ANSWER);
        let agent = AgentBinary::new(vec![0; 20_000_000]).unwrap();
        let dir = report.agent_dir(&"web1".parse().unwrap(), &agent).unwrap();
        assert_eq!(dir.as_str(), "/dev/shm/causeway-web1");
    }

    #[test]
    fn a_place_on_a_disk_is_never_chosen() {
        let report = report(&ANSWER.replace("runs=/dev/shm\n", ""));
        let agent = AgentBinary::new(vec![0; 1000]).unwrap();
        let error = report.place_for(&agent).unwrap_err();
        assert!(
            error.to_string().contains("/tmp (ext4, 307200000 bytes free, runs programs)"),
            "{error}"
        );
    }

    #[test]
    fn a_place_without_room_is_never_chosen() {
        let report = report(&ANSWER.replace("/dev/shm 200000", "/dev/shm 2000"));
        assert!(report.place_for(&AgentBinary::new(vec![0; 1000]).unwrap()).is_err());
    }

    #[test]
    fn an_agent_that_is_there_is_found_though_it_left_no_room_for_another() {
        let full = ANSWER.replace("/dev/shm 200000", "/dev/shm 2000");
        let report = report(&full.replace("end=", "agent=/dev/shm/causeway-web1\nend="));
        let agent = AgentBinary::new(vec![0; 1000]).unwrap();
        let dir = report.agent_dir(&"web1".parse().unwrap(), &agent).unwrap();
        assert_eq!(dir.as_str(), "/dev/shm/causeway-web1");
        assert!(report.agent_dir(&"web2".parse().unwrap(), &agent).is_err());
    }

    #[test]
    fn os_release_is_read_without_its_quotes() {
        assert_eq!(report(ANSWER).os["PRETTY_NAME"], "Debian GNU/Linux 12 (bookworm)");
    }

    #[test]
    fn an_answer_that_was_cut_is_not_believed() {
        assert!(GuestReport::parse(&ANSWER.replace("end=", ""), None).is_none());
        assert!(GuestReport::parse("", None).is_none());
    }

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mounts = [("/", "ext4"), ("/run", "tmpfs"), ("/runner", "xfs"), ("/run", "ramfs")]
            .map(|(point, fs)| (point.to_owned(), fs.to_owned()));
        assert_eq!(file_system_of(&mounts, "/run"), Some("ramfs"));
        assert_eq!(file_system_of(&mounts, "/tmp"), Some("ext4"));
    }
}
