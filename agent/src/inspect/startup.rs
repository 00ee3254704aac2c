//! How long this system took to start.

use super::tree::Tree;

/// Ticks of `/proc/*/stat`, per second: fixed in the kernel's interface to programs.
const TICKS_PER_S: u64 = 100;

/// A server that started later than this after the kernel did was restarted since.
const BOOT_MAX_MS: u64 = 600_000;

const SSH_SERVERS: [&str; 2] = ["sshd", "dropbear"];

/// From the kernel's start until the SSH server was started, which listens at once. `None`: there
/// is none, or it was restarted since.
pub fn boot_ms(tree: &Tree) -> Option<u64> {
    let servers = tree.names("proc").into_iter().filter(|pid| pid.parse::<u32>().is_ok());
    let starts = servers.filter_map(|pid| started_ms(&tree.text(format!("proc/{pid}/stat"))?));
    starts.min().filter(|ms| *ms <= BOOT_MAX_MS)
}

/// proc(5): the program's name is in brackets and may itself hold any; the time is the 22nd field,
/// the 20th after it.
fn started_ms(stat: &str) -> Option<u64> {
    let (head, tail) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    if !SSH_SERVERS.contains(&name) {
        return None;
    }
    let ticks: u64 = tail.split(' ').nth(19)?.parse().ok()?;
    Some(ticks * 1000 / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeSystem;
    use super::*;

    fn stat(name: &str, ticks: u64) -> String {
        format!("7 ({name}) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 99 88\n")
    }

    #[test]
    fn the_first_ssh_server_counts_and_a_restarted_one_does_not() {
        let system = FakeSystem::new();
        system.file("proc/7/stat", stat("sshd", 1234)).file("proc/9/stat", stat("sshd", 99_999));
        system.file("proc/3/stat", stat("a) (b", 1));
        assert_eq!(boot_ms(&system.tree()), Some(12_340));
        let later = FakeSystem::new();
        later.file("proc/7/stat", stat("sshd", 9_999_999));
        assert_eq!(boot_ms(&later.tree()), None);
    }
}
