//! What was done to the guest, so that it can be put back, by this process or by its warden.

use rustix::mount::{MountFlags, mount_remount};
use serde::{Deserialize, Serialize};
use units::chain;

use super::{hooks, services};
use crate::sys;

/// One thing that was done. Recorded before it is done: undoing what was not done is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// An active service was stopped.
    Stopped {
        unit: String,
    },
    /// The operator's hooks were run; these are their counterpart.
    Hooked {
        thaw_hooks: Vec<String>,
    },
    SwappedOff {
        path: String,
        priority: i32,
    },
    /// A file system that cannot be frozen was made read-only. `options`: as it was mounted.
    Remounted {
        path: String,
        options: String,
    },
}

/// Everything that was done, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undo {
    done: Vec<Done>,
}

impl Undo {
    pub fn record(&mut self, done: Done) {
        self.done.push(done);
    }

    /// Lets `hooks` stand for the counterpart that was given when the guest was quiesced.
    pub fn replace_hooks(&mut self, hooks: &[String]) {
        if hooks.is_empty() {
            return;
        }
        let hooks = hooks.to_vec();
        let known = self.done.iter_mut().find_map(|done| match done {
            Done::Hooked { thaw_hooks } => Some(thaw_hooks),
            _ => None,
        });
        match known {
            Some(known) => *known = hooks,
            None => self.done.insert(0, Done::Hooked { thaw_hooks: hooks }),
        }
    }

    /// Puts the guest back, the last thing first, as far as it goes; says what did not work.
    pub fn put_back(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        while let Some(done) = self.done.pop() {
            complaints.extend(put_back(&done));
        }
        complaints
    }
}

fn put_back(done: &Done) -> Vec<String> {
    let complaint = |what: &str, cause: &dyn std::error::Error| format!("{what}: {}", chain(cause));
    match done {
        Done::Stopped { unit } => services::start(unit)
            .err()
            .map(|error| complaint("cannot start the service again", &error))
            .into_iter()
            .collect(),
        Done::Hooked { thaw_hooks } => thaw_hooks
            .iter()
            .filter_map(|hook| hooks::run(hook, "thaw", hooks::COMMAND_TIMEOUT).err())
            .map(|error| complaint("a hook failed", &error))
            .collect(),
        Done::SwappedOff { path, priority } => match sys::swap_on(path, *priority) {
            Ok(()) => Vec::new(),
            // On already.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Vec::new(),
            Err(error) => vec![complaint(&format!("cannot turn swap {path} on again"), &error)],
        },
        Done::Remounted { path, options } => {
            let mut steps = writable_again(options).into_iter();
            match steps.try_for_each(|flags| mount_remount(path.as_str(), flags, "")) {
                Ok(()) => Vec::new(),
                Err(error) => {
                    vec![complaint(&format!("cannot make {path} writable again"), &error)]
                }
            }
        }
    }
}

/// Makes a mounted file system read-only. Fails while a file on it is open for writing.
pub fn make_read_only(path: &str, options: &str) -> std::io::Result<()> {
    Ok(mount_remount(path, flags(options) | MountFlags::RDONLY, "")?)
}

/// The remounts that put back a file system that was made read-only. Where only this mount of it
/// was `ro`, the first makes both writable, and the second, with `BIND`, changes the mount alone.
fn writable_again(options: &str) -> Vec<MountFlags> {
    let flags = flags(options);
    let mut steps = vec![flags - MountFlags::RDONLY];
    if flags.contains(MountFlags::RDONLY) {
        steps.push(flags | MountFlags::BIND);
    }
    steps
}

/// A remount sets every flag of a mount anew, so those that it had are said again.
fn flags(options: &str) -> MountFlags {
    let flag = |option| match option {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "nosymfollow" => MountFlags::NOSYMFOLLOW,
        "sync" => MountFlags::SYNCHRONOUS,
        _ => MountFlags::empty(),
    };
    options.split(',').map(flag).fold(MountFlags::empty(), MountFlags::union)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(dir: &std::path::Path, word: &str) -> Done {
        Done::Hooked { thaw_hooks: vec![format!("echo {word} >> {}/log", dir.display())] }
    }

    #[test]
    fn the_last_thing_is_undone_first_and_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut undo = Undo::default();
        undo.record(hook(dir.path(), "first"));
        undo.record(hook(dir.path(), "second"));
        assert_eq!(undo.put_back(), Vec::<String>::new());
        assert_eq!(undo.put_back(), Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "second\nfirst\n");
    }

    #[test]
    fn a_mount_that_was_read_only_is_again_and_its_file_system_is_not() {
        let both = MountFlags::NOSUID | MountFlags::NOSYMFOLLOW;
        assert_eq!(writable_again("rw,nosuid,nosymfollow"), [both]);
        let mount_alone = both | MountFlags::RDONLY | MountFlags::BIND;
        assert_eq!(writable_again("ro,nosuid,nosymfollow"), [both, mount_alone]);
    }

    #[test]
    fn what_cannot_be_undone_is_said_and_the_rest_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let mut undo = Undo::default();
        undo.record(hook(dir.path(), "first"));
        undo.record(Done::Hooked { thaw_hooks: vec!["exit 9".to_owned()] });
        let complaints = undo.put_back();
        assert!(complaints[0].contains("exit code 9"), "{complaints:?}");
        assert!(dir.path().join("log").exists());
    }
}
