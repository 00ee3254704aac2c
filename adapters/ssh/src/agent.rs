//! The agent's life in a guest: install, start, remove. Nothing of it touches a disk.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use ring::digest::{SHA256, digest};
use thiserror::Error;
use tokio::sync::OnceCell;
use tracing::{info, instrument};
use units::MigrationId;

use crate::error::SshError;
use crate::exec::{ExecLimits, Exit, Output};
use crate::guest::Guest;
use crate::shell::printable_tail;
use crate::stream::ByteStream;

/// The agent as it will lie in the guest.
#[derive(Clone)]
pub struct AgentBinary {
    bytes: Bytes,
    /// The same by gzip, made when it is first wanted.
    packed: OnceCell<Bytes>,
    sha256: String,
    machine: Option<&'static str>,
}

#[derive(Debug, Error)]
pub enum AgentBinaryError {
    #[error("cannot read the agent {path}")]
    Unreadable {
        path: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("the agent has {size} bytes, expected 1 to {MAX_AGENT}")]
    Size { size: usize },
}

/// An agent has a few MiB; this keeps a wrong file from filling the guest's memory.
const MAX_AGENT: usize = 256 * 1024 * 1024;

impl AgentBinary {
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, AgentBinaryError> {
        let bytes = bytes.into();
        if !(1..=MAX_AGENT).contains(&bytes.len()) {
            return Err(AgentBinaryError::Size { size: bytes.len() });
        }
        let sha256 = hex(digest(&SHA256, &bytes).as_ref());
        let machine = elf_machine(&bytes);
        Ok(Self { bytes, packed: OnceCell::new(), sha256, machine })
    }

    pub async fn load(path: &Path) -> Result<Self, AgentBinaryError> {
        let bytes = tokio::fs::read(path).await.map_err(|cause| AgentBinaryError::Unreadable {
            path: path.display().to_string(),
            cause,
        })?;
        Self::new(bytes)
    }

    async fn packed(&self) -> Bytes {
        let pack = || async {
            let bytes = self.bytes.clone();
            let packing = tokio::task::spawn_blocking(move || {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
                gzip.write_all(&bytes).expect("memory takes all");
                Bytes::from(gzip.finish().expect("memory takes all"))
            });
            packing.await.expect("packing does not panic")
        };
        self.packed.get_or_init(pack).await.clone()
    }

    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        u64::try_from(self.bytes.len()).expect("at most MAX_AGENT")
    }

    /// What `uname -m` says where it runs, if it is an ELF file of a machine that we know.
    pub fn machine(&self) -> Option<&'static str> {
        self.machine
    }
}

impl fmt::Debug for AgentBinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentBinary")
            .field("bytes", &self.bytes.len())
            .field("sha256", &self.sha256)
            .field("machine", &self.machine)
            .finish()
    }
}

/// The field e_machine of a little-endian ELF file.
fn elf_machine(bytes: &[u8]) -> Option<&'static str> {
    if !bytes.starts_with(b"\x7fELF") {
        return None;
    }
    match bytes.get(18..20)? {
        [62, 0] => Some("x86_64"),
        [183, 0] => Some("aarch64"),
        [243, 0] => Some("riscv64"),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The agent's own directory in a guest: made by us, root's alone, removed whole. So it is only
/// ever a path whose last part names Causeway or that lies below such a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentDir(String);

#[derive(Debug, Error)]
#[error("not a directory for an agent (absolute, plain, with `causeway` in it): {text:?}")]
pub struct AgentDirError {
    pub text: String,
}

impl AgentDir {
    /// `/run/causeway/ID`, or `PLACE/causeway-ID` where others may write: there a directory
    /// between could be someone else's.
    pub fn under(place: &str, migration: &MigrationId) -> Self {
        Self(if ["/run", "/run/causeway"].contains(&place) {
            format!("/run/causeway/{migration}")
        } else {
            format!("{place}/causeway-{migration}")
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The agent itself.
    pub fn program(&self) -> String {
        format!("{}/causeway-agent", self.0)
    }
}

impl FromStr for AgentDir {
    type Err = AgentDirError;

    fn from_str(text: &str) -> Result<Self, AgentDirError> {
        let parts: Vec<&str> = text.split('/').skip(1).collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let ours = parts.iter().skip(1).any(|part| part.starts_with("causeway"));
        if text.starts_with('/') && text.len() <= 90 && parts.iter().all(plain) && ours {
            Ok(Self(text.to_owned()))
        } else {
            Err(AgentDirError { text: text.to_owned() })
        }
    }
}

impl fmt::Display for AgentDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An agent that lies in the guest and was seen to run there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub dir: AgentDir,
    /// What it printed for `--version`.
    pub version: String,
    /// The same bytes were there already.
    pub was_there: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    Now {
        pid: u32,
    },
    /// It ran already and was left alone.
    Before {
        pid: u32,
    },
}

/// What was taken away; all empty if nothing was left to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Agents that ran.
    pub stopped: Vec<u32>,
    /// Paths that were deleted.
    pub deleted: Vec<String>,
}

impl Guest {
    /// Puts the agent into `dir`, whole or not at all, and asks it for its version. Doing it
    /// again is harmless, also while the agent runs.
    #[instrument(skip_all, fields(%dir))]
    pub async fn install(
        &self,
        agent: &AgentBinary,
        dir: &AgentDir,
    ) -> Result<Installed, SshError> {
        let attempt = format!("making {dir} in the guest");
        let program = dir.program();
        let made = self.script_as_root(&attempt, MAKE_DIR, &[dir.as_str(), &program]).await?;
        if made.exit == Exit::Status(FOREIGN) {
            return Err(SshError::ForeignDir { dir: dir.to_string() });
        }
        let made = made.success(&attempt)?.answer();
        let says = |word| made.split(' ').any(|said| said == word);

        let was_there = says("exists")
            && self.sha256_of(&program, agent).await?.as_ref() == Some(&agent.sha256);
        let part = format!("{program}.part");
        if !was_there {
            self.upload(agent, &part, says("unpacks")).await?;
        }
        let script = if was_there { RUN } else { PUT_IN_PLACE_AND_RUN };
        let attempt = "running the agent in the guest";
        let output = self.script_as_root(attempt, script, &[&program, &part]).await?;
        let version = output.success(attempt)?.answer();
        info!(version, was_there, "agent installed");
        Ok(Installed { dir: dir.clone(), version, was_there })
    }

    /// Packed to a third where the guest unpacks it: lines to guests are slow, and so is decrypting
    /// where nothing computes it in hardware.
    async fn upload(&self, agent: &AgentBinary, to: &str, unpacks: bool) -> Result<(), SshError> {
        let attempt = "uploading the agent";
        let (receive, bytes) = match unpacks {
            true => ("gzip -dc", agent.packed().await),
            false => ("cat", agent.bytes.clone()),
        };
        // Summed up at once, where there is what sums up: every command is a round trip and a process.
        let receive = format!("umask 077; {receive} >\"$1\" && {{ sha256sum <\"$1\" || :; }}");
        let command = self.as_root(&["sh", "-c", &receive, "sh", to]).await?;
        let limits = ExecLimits { time: time_for(bytes.len()), ..ExecLimits::default() };
        let connection = self.control().await?;
        let output = connection.run(attempt, &command, bytes, limits).await?.success(attempt)?;
        let arrived = match sum_of(&output) {
            Some(sum) => Some(sum),
            None => self.sha256_of(to, agent).await?,
        };
        let arrived = arrived.unwrap_or_else(|| "nothing".to_owned());
        if arrived == agent.sha256 {
            return Ok(());
        }
        let command = self.as_root(&["rm", "-f", "--", to]).await?;
        self.exec(&command, Bytes::new()).await?;
        Err(SshError::Damaged { sent: agent.sha256.clone(), arrived })
    }

    /// The SHA-256 of a file in the guest that should be the agent, None if it does not exist.
    async fn sha256_of(&self, path: &str, agent: &AgentBinary) -> Result<Option<String>, SshError> {
        let attempt = "summing up the agent in the guest";
        let output = self.script_as_root(attempt, SHA256_OF, &[path]).await?;
        match output.exit {
            Exit::Status(0) => Ok(Some(sum_of(&output).unwrap_or_else(|| output.answer()))),
            Exit::Status(NOT_THERE) => Ok(None),
            Exit::Status(NO_TOOL) => {
                let command = self.as_root(&["cat", path]).await?;
                let time = time_for(agent.bytes.len());
                let limits = ExecLimits { output: MAX_AGENT, time };
                let output = self.exec_within(limits, &command, Bytes::new()).await?;
                let output = output.success(attempt)?;
                Ok(Some(hex(digest(&SHA256, &output.stdout).as_ref())))
            }
            Exit::Status(_) | Exit::Signal(_) => Err(failed(output, attempt)),
        }
    }

    /// Starts the agent so that it outlives this connection, at low priority, and waits until it
    /// listens. `options` follow `serve --dir DIR`. Doing it again is harmless.
    #[instrument(skip_all, fields(dir = %installed.dir))]
    pub async fn start(
        &self,
        installed: &Installed,
        options: &[&str],
    ) -> Result<Started, SshError> {
        let attempt = "starting the agent";
        let words = [&[installed.dir.as_str()], options].concat();
        let output = self.script_as_root(attempt, START, &words).await?;
        if output.exit == Exit::Status(NOT_STARTED) {
            return Err(SshError::AgentNotStarted { log: printable_tail(&output.stderr, 2000) });
        }
        let output = output.success(attempt)?;
        let started = match output.answer().split_once('=') {
            Some(("now", pid)) => pid.parse().ok().map(|pid| Started::Now { pid }),
            Some(("before", pid)) => pid.parse().ok().map(|pid| Started::Before { pid }),
            _ => None,
        };
        let started = started.ok_or_else(|| garbled(&output, attempt))?;
        info!(?started, "agent runs");
        Ok(started)
    }

    /// A stream to the agent that runs in `dir`, by its `pipe` command.
    pub async fn open_agent(&self, dir: &AgentDir) -> Result<ByteStream, SshError> {
        self.open_as_root(&[&dir.program(), "pipe", "--dir", dir.as_str()]).await
    }

    /// Ends the agent and deletes its directory. Doing it again is harmless; what it did is told.
    #[instrument(skip_all, fields(%dir))]
    pub async fn remove(&self, dir: &AgentDir) -> Result<Removed, SshError> {
        let attempt = format!("removing the agent from {dir}");
        let output = self.script_as_root(&attempt, REMOVE, &[dir.as_str()]).await?;
        if output.exit == Exit::Status(FOREIGN) {
            return Err(SshError::ForeignDir { dir: dir.to_string() });
        }
        let output = output.success(&attempt)?;
        let mut removed = Removed::default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match line.split_once('=') {
                Some(("stopped", pid)) => {
                    removed.stopped.push(pid.parse().map_err(|_| garbled(&output, &attempt))?);
                }
                Some(("deleted", path)) => {
                    removed.deleted.push(printable_tail(path.as_bytes(), 200));
                }
                // A login shell's greeting.
                _ => {}
            }
        }
        info!(stopped = ?removed.stopped, deleted = removed.deleted.len(), "agent removed");
        Ok(removed)
    }
}

fn garbled(output: &Output, attempt: &str) -> SshError {
    let answer = printable_tail(&output.stdout, 200);
    SshError::Garbled { attempt: attempt.to_owned(), answer }
}

/// What `sha256sum` printed, if it did.
fn sum_of(output: &Output) -> Option<String> {
    let answer = output.answer();
    let sum = answer.split(' ').next().unwrap_or_default();
    let is_sum = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_sum.then(|| sum.to_owned())
}

fn failed(output: Output, attempt: &str) -> SshError {
    let stderr = printable_tail(&output.stderr, 1000);
    SshError::Failed { attempt: attempt.to_owned(), exit: output.exit, stderr }
}

/// How long so many bytes may take over the slowest path that we care for, 8 kB/s.
fn time_for(bytes: usize) -> Duration {
    Duration::from_secs(60) + Duration::from_micros(125) * u32::try_from(bytes).expect("MAX_AGENT")
}

// Exit statuses of the scripts below, out of the way of those of shells and tools.
const FOREIGN: u32 = 41;
const NOT_THERE: u32 = 42;
const NO_TOOL: u32 = 43;
const NOT_STARTED: u32 = 44;

/// Makes `$1`, or accepts one that is ours. In a directory where everyone may write, someone else
/// may have made it first.
///
/// The guest may be frozen, and then whoever as much as asks to write to its disks waits until it
/// is thawed. `mkdir -p` asks that for every part of a path, `/run` included, which lies in the root
/// file system; so only what is missing is made.
/// Says whether gzip unpacks, and whether there is a program `$2` already.
/// Asks gzip for a word that was packed: a name on the path says little about what it does.
const MAKE_DIR: &str = r#"
unpacks= exists=
umask 022
parent=${1%/*}
[ -d "$parent" ] || mkdir "$parent" || [ -d "$parent" ] || exit 1
umask 077
if ! mkdir "$1" 2>/dev/null; then
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] || exit 41
    chmod 700 "$1" || exit
fi
if [ "$(printf '\037\213\010\000\000\000\000\000\002\377\253\250\254\342\002\000\322\174\352\341\004\000\000\000' | gzip -dc 2>/dev/null)" = xyz ]; then unpacks=unpacks; fi
if [ -f "$2" ]; then exists=exists; fi
echo "made $unpacks $exists"
"#;

const RUN: &str = r#"exec "$1" --version"#;
const PUT_IN_PLACE_AND_RUN: &str = r#"chmod 700 "$2" && mv -f "$2" "$1" && exec "$1" --version"#;

const SHA256_OF: &str = r#"
[ -f "$1" ] || exit 42
command -v sha256sum >/dev/null 2>&1 || exit 43
sha256sum <"$1"
"#;

/// `agents` prints the process ids of agents that serve `$dir`. The pid file alone is not
/// believed: pids are used again. `nap` waits a tenth of a second, or one where sleep takes whole
/// seconds only, and counts tenths in `$turns`.
macro_rules! agents {
    () => {
        r#"
dir=$1
serves() {
    case " $(tr '\000' ' ' </proc/$1/cmdline) " in
        *" serve --dir $dir "*) return 0 ;;
    esac
    return 1
} 2>/dev/null
nap() { turns=$((turns + 1)); sleep 0.1 2>/dev/null || { sleep 1; turns=$((turns + 9)); }; }
agents() {
    for process in /proc/[0-9]*; do
        if serves "${process#/proc/}"; then echo "${process#/proc/}"; fi
    done
}
"#
    };
}

/// Takes the directory and further options for `serve`.
///
/// A login session may be ended with all its processes (logind's KillUserProcesses), so the agent
/// leaves the session's control group.
const START: &str = concat!(
    agents!(),
    r#"
shift
pid=$(cat "$dir/agent.pid" 2>/dev/null)
case $pid in ''|*[!0-9]*) pid= ;; esac
if [ -n "$pid" ] && serves "$pid"; then echo "before=$pid"; exit 0; fi
pid=$(agents)
if [ -n "$pid" ]; then echo "before=$pid"; exit 0; fi
rm -f "$dir/agent.pid" "$dir/agent.sock"
low=
command -v nice >/dev/null 2>&1 && low="nice -n 10"
command -v ionice >/dev/null 2>&1 && low="$low ionice -c 3"
command -v setsid >/dev/null 2>&1 && low="setsid $low"
(
    case "$(cat /proc/self/cgroup 2>/dev/null)" in
        *.scope*) echo 0 >/sys/fs/cgroup/cgroup.procs ;;
    esac 2>/dev/null
    trap '' HUP
    cd /
    exec $low "$dir/causeway-agent" serve --dir "$dir" "$@"
) </dev/null >>"$dir/agent.log" 2>&1 &
child=$!
turns=0
while [ $turns -lt 300 ]; do
    pid=$(cat "$dir/agent.pid" 2>/dev/null)
    case $pid in ''|*[!0-9]*) pid= ;; esac
    if [ -n "$pid" ] && [ -S "$dir/agent.sock" ] && serves "$pid"; then
        echo "now=$pid"
        exit 0
    fi
    if ! kill -0 $child 2>/dev/null && [ -z "$(agents)" ]; then break; fi
    nap
done
cat "$dir/agent.log" >&2
kill $child 2>/dev/null
exit 44
"#
);

/// Lets the agent undo what only it knows of, ends what still runs, deletes the rest.
const REMOVE: &str = concat!(
    agents!(),
    r#"
if [ -e "$dir" ] || [ -L "$dir" ]; then
    if [ ! -d "$dir" ] || [ -L "$dir" ] || [ ! -O "$dir" ]; then exit 41; fi
fi
running=$(agents)
files=$(ls -A "$dir" 2>/dev/null)
if [ -x "$dir/causeway-agent" ]; then
    "$dir/causeway-agent" remove --dir "$dir" </dev/null >/dev/null 2>&1 &
    turns=0
    while kill -0 $! 2>/dev/null && [ $turns -lt 300 ]; do
        nap
    done
    kill -9 $! 2>/dev/null
fi
end() {
    for pid in $*; do
        for signal in TERM KILL; do
            turns=0
            serves $pid && kill -s $signal $pid 2>/dev/null
            while serves $pid && [ $turns -lt 50 ]; do
                nap
            done
        done
        if serves $pid; then echo "process $pid does not end" >&2; exit 1; fi
        echo "stopped=$pid"
    done
}
end $running
rm -rf -- "$dir"
# One that somebody who was interrupted has started since. Without the program none comes after it.
end $(agents)
rm -rf -- "$dir" || exit 1
for file in $files; do echo "deleted=$dir/$file"; done
rmdir /run/causeway 2>/dev/null
exit 0
"#
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_of_ours_can_be_removed_whole() {
        for text in [
            "",
            "/",
            "/causeway",
            "causeway/x",
            "/run",
            "/run/../causeway",
            "/run/causeway/../..",
            "/run//causeway",
            "/run/causeway/",
            "/run/other",
            "/run/causeway/a b",
            "/run/causeway/$(id)",
            "/run/causeway/-rf",
        ] {
            assert!(text.parse::<AgentDir>().is_err(), "{text}");
        }
        for text in ["/run/causeway/web1", "/dev/shm/causeway-web1", "/run/causeway"] {
            assert!(text.parse::<AgentDir>().is_ok(), "{text}");
        }
    }

    #[test]
    fn every_directory_that_we_make_can_be_removed() {
        let migration: MigrationId = "web1-20261120".parse().unwrap();
        for place in ["/run", "/dev/shm", "/tmp"] {
            let dir = AgentDir::under(place, &migration);
            assert_eq!(dir.as_str().parse::<AgentDir>().unwrap(), dir);
        }
    }

    #[test]
    fn the_machine_of_an_elf_file_is_known() {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = 183;
        assert_eq!(AgentBinary::new(elf).unwrap().machine(), Some("aarch64"));
        assert_eq!(AgentBinary::new(&b"#!/bin/sh"[..]).unwrap().machine(), None);
    }

    #[test]
    fn an_empty_agent_is_refused() {
        assert!(AgentBinary::new(Bytes::new()).is_err());
    }
}
