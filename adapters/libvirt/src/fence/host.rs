//! What is done on the hypervisor's host itself, by the machine's own `ssh`.

use std::process::{Command, Output, Stdio};

use model::FenceMeans;
use site::{Remedy, SiteErrorKind};

use super::record::HostMeans;
use crate::HostAccess;
use crate::fault::Fault;
use crate::xml::FencedDisk;

/// Seconds until a host that does not answer counts as gone.
const CONNECT_S: &str = "ConnectTimeout=10";

/// `ssh` itself failed, whatever the command would have said.
const SSH_FAILED: i32 = 255;

/// Our scripts' own word for "neither name is there".
const GONE: i32 = 44;

/// Our scripts' own word for "both names are there".
const BOTH: i32 = 45;

/// Runs with `$old` and `$new` set; root, or by sudo.
const PRELUDE: &str = r#"set -eu
if [ "$(id -u)" = 0 ]; then as=; else as='sudo -n'; fi
is() { $as test -e "$1"; }
"#;

pub(super) fn renamed(path: &str) -> String {
    format!("{path}.causeway-fenced")
}

pub(super) fn offer(access: &HostAccess, disk: &FencedDisk) -> Result<Vec<FenceMeans>, Fault> {
    let means = capture(access, &disk.path)?;
    let mut offers = vec![FenceMeans {
        name: "image-renamed".to_owned(),
        does: format!("{} is renamed to {}", disk.path, means.renamed_to),
    }];
    if means.immutable {
        offers.push(FenceMeans {
            name: "image-immutable".to_owned(),
            does: format!("{} is made immutable with chattr", means.renamed_to),
        });
    }
    Ok(offers)
}

/// What can be done to this file. Changes nothing.
pub(super) fn capture(access: &HostAccess, path: &str) -> Result<HostMeans, Fault> {
    let renamed_to = renamed(path);
    // Some file systems have no such attributes: there the rename stands alone.
    let script = r#"is "$old" || is "$new" || exit 44
at=$old; is "$old" || at=$new
if $as lsattr -d -- "$at" >/dev/null 2>&1; then echo immutable; fi"#;
    let told = run(access, script, path, &renamed_to)?;
    Ok(HostMeans { renamed_to, immutable: told.trim() == "immutable" })
}

/// Renames and locks; from any state in between. The header is on stable storage before.
pub(super) fn apply(access: &HostAccess, path: &str, means: &HostMeans) -> Result<(), Fault> {
    let lock = if means.immutable { r#"$as chattr +i -- "$new""# } else { "" };
    let script = format!(
        r#"if is "$new"; then if is "$old"; then exit 45; fi
elif is "$old"; then $as sync -- "$old"; $as mv -nT -- "$old" "$new"
else exit 44; fi
{lock}
$as sync -- "$(dirname -- "$new")""#
    );
    run(access, &script, path, &means.renamed_to).map(drop)
}

pub(super) fn holds(access: &HostAccess, path: &str, means: &HostMeans) -> Result<bool, Fault> {
    let lock = if means.immutable {
        r#"case "$($as lsattr -d -- "$new" | cut -d' ' -f1)" in *i*) ;; *) echo no; exit 0;; esac"#
    } else {
        ""
    };
    let script = format!(
        r#"if is "$old" || ! is "$new"; then echo no; exit 0; fi
{lock}
echo yes"#
    );
    Ok(run(access, &script, path, &means.renamed_to)?.trim() == "yes")
}

/// Unlocks and renames back; from any state in between.
pub(super) fn undo(access: &HostAccess, path: &str, means: &HostMeans) -> Result<(), Fault> {
    let unlock = if means.immutable { r#"$as chattr -i -- "$new""# } else { "" };
    let script = format!(
        r#"if is "$new"; then if is "$old"; then exit 45; fi
{unlock}
$as mv -nT -- "$new" "$old"
elif ! is "$old"; then exit 44; fi"#
    );
    run(access, &script, path, &means.renamed_to).map(drop)
}

fn run(access: &HostAccess, script: &str, old: &str, new: &str) -> Result<String, Fault> {
    let script = format!("old={}\nnew={}\n{PRELUDE}{script}\n", quoted(old), quoted(new));
    let output = command(access)
        .arg(format!("sh -c {}", quoted(&script)))
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| {
            Fault::found(SiteErrorKind::Unsupported, format!("ssh cannot be run: {cause}"))
                .hint("install OpenSSH's client on this machine")
        })?;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        code => Err(refused(access, code, &output, old)),
    }
}

fn command(access: &HostAccess) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-T", "-o", "BatchMode=yes", "-o", CONNECT_S]);
    ssh.args(["-o", "StrictHostKeyChecking=yes"]);
    // A host that goes away in the middle is noticed after 15 s.
    ssh.args(["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]);
    ssh.args(["-p", &access.port.to_string()]);
    if let Some(identity) = &access.identity {
        ssh.arg("-i").arg(identity).args(["-o", "IdentitiesOnly=yes"]);
    }
    if let Some(known_hosts) = &access.known_hosts {
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display()));
    }
    ssh.arg("--").arg(&access.target);
    ssh
}

fn refused(access: &HostAccess, code: Option<i32>, output: &Output, path: &str) -> Fault {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or("nothing").to_owned();
    let target = &access.target;
    match code {
        Some(GONE) => Fault::not_found(format!("{path} is not on {target}")),
        Some(BOTH) => Fault::conflict(format!("both {path} and {} are on {target}", renamed(path)))
            .hint("find out which of the two is the VM's disk, and move the other away"),
        Some(SSH_FAILED) if said.contains("Permission denied") => {
            Fault::found(SiteErrorKind::Denied, format!("{target} does not let us in: {said}"))
                .hint("check the user and the key of the site's host access")
        }
        Some(SSH_FAILED) if said.contains("Host key verification failed") => {
            Fault::found(SiteErrorKind::Denied, format!("the key of {target} is not known"))
                .hint("compare the host's key and add it to known_hosts")
        }
        // Every script may be run again from any state.
        Some(SSH_FAILED) | None => {
            Fault::found(SiteErrorKind::Unreachable, format!("{target} cannot be reached: {said}"))
                .remedy(Remedy::Reconcile)
        }
        Some(code) => Fault::found(
            SiteErrorKind::Platform,
            format!("a command on {target} ended with {code}: {said}"),
        )
        .hint("the user must be root, or have sudo without a password"),
    }
}

/// One word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_gets_out_of_its_quotes() {
        for path in ["/a b", "/it's", "/$(reboot)", "/`x`", "/a'; rm -rf /; '", "/a\nb", "-rf"] {
            let output = Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(path))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        }
    }
}
