//! Services that are stopped for the switchover: systemd's.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::hooks::{self, CommandError};

/// systemd kills a service that does not stop within 90 s; a little more, to hear of it.
const STOP_TIMEOUT: Duration = Duration::from_secs(100);

/// Does systemd run this guest? By its own documentation, sd_booted(3).
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A name that systemctl would not take for an option or several names.
pub fn is_unit_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    !name.is_empty() && !name.starts_with('-') && name.len() < 256 && name.chars().all(fits)
}

pub fn is_active(unit: &str) -> bool {
    let mut command = Command::new("systemctl");
    command.args(["is-active", "--quiet", "--", unit]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

pub fn stop(unit: &str) -> Result<(), CommandError> {
    let mut command = Command::new("systemctl");
    command.args(["stop", "--", unit]);
    hooks::run_command(command, &format!("systemctl stop {unit}"), STOP_TIMEOUT)
}

pub fn start(unit: &str) -> Result<(), CommandError> {
    let mut command = Command::new("systemctl");
    command.args(["start", "--", unit]);
    hooks::run_command(command, &format!("systemctl start {unit}"), STOP_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_an_option_or_a_command_is_no_unit() {
        for name in ["", "-f", "--now", "a b", "a;b", "a/b", "$(x)"] {
            assert!(!is_unit_name(name), "{name:?}");
        }
        for name in ["postgresql", "postgresql@15-main.service", "a\\x2db.mount"] {
            assert!(is_unit_name(name), "{name:?}");
        }
    }
}
