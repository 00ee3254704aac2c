//! Debian's cloud kernel, by Debian's own tools: apt checks the signatures.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tracing::{info, warn};

use crate::error::BuildError;
use crate::kernel::KernelTree;

/// Downloads (once) and unpacks the newest cloud kernel that apt knows of. Without a network the
/// newest that was downloaded before.
pub(crate) fn cloud_kernel(cache: &Path) -> Result<KernelTree, BuildError> {
    let kernels = cache.join("kernels");
    fs::create_dir_all(&kernels)
        .map_err(|cause| BuildError::Unwritable { path: kernels.clone(), cause })?;
    let package = match download(&kernels) {
        Ok(package) => package,
        Err(error) => {
            let Some(package) = newest(&kernels) else { return Err(error) };
            warn!(%error, package = %package.display(), "taking the kernel downloaded before");
            package
        }
    };
    let unpacked = tempfile::Builder::new()
        .prefix("causeway-kernel-")
        .tempdir()
        .map_err(|cause| BuildError::Unwritable { path: std::env::temp_dir(), cause })?;
    run(
        &kernels,
        "dpkg-deb",
        [OsStr::new("-x"), package.as_os_str(), unpacked.path().as_os_str()],
    )?;
    let mut tree = KernelTree::at(unpacked.path(), None)?;
    tree.origin = package.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    tree.unpacked = Some(unpacked);
    Ok(tree)
}

/// The package file. The name without a version depends on the one with it, which changes with
/// every security update.
fn download(kernels: &Path) -> Result<PathBuf, BuildError> {
    let architecture = run(kernels, "dpkg", ["--print-architecture"].map(OsStr::new))?;
    let metapackage = format!("linux-image-cloud-{}", architecture.trim());
    let depends = run(kernels, "apt-cache", ["depends", &metapackage].map(OsStr::new))?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| BuildError::NoKernel {
            looked_at: vec![format!("apt knows no kernel behind {metapackage}")],
        })?;
    // 'URL' FILE SIZE HASH
    let uris = run(kernels, "apt-get", ["download", "--print-uris", name].map(OsStr::new))?;
    let file = uris.split_whitespace().nth(1).filter(|file| !file.contains('/'));
    let file = kernels.join(file.ok_or_else(|| BuildError::NoKernel {
        looked_at: vec![format!("apt does not say where {name} comes from")],
    })?);
    if !file.is_file() {
        info!(package = name, "downloading kernel");
        // Aside, so that neither a broken download nor one at the same time is taken for it.
        let unwritable = |cause| BuildError::Unwritable { path: kernels.to_owned(), cause };
        let aside = tempfile::tempdir_in(kernels).map_err(unwritable)?;
        run(aside.path(), "apt-get", ["download", name].map(OsStr::new))?;
        let arrived = aside.path().join(file.file_name().unwrap_or_default());
        fs::rename(arrived, &file).map_err(unwritable)?;
    }
    Ok(file)
}

/// The package that was downloaded last.
fn newest(kernels: &Path) -> Option<PathBuf> {
    let mut packages: Vec<_> = fs::read_dir(kernels)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("linux-image-") && name.ends_with(".deb")
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    packages.sort();
    packages.pop().map(|(_, path)| path)
}

fn run<'a>(
    directory: &Path,
    tool: &str,
    arguments: impl IntoIterator<Item = &'a OsStr>,
) -> Result<String, BuildError> {
    let mut command = Command::new(tool);
    command.args(arguments).current_dir(directory).env("LC_ALL", "C");
    let name = || format!("{command:?}").replace('"', "").replace("LC_ALL=C ", "");
    let name = name();
    let output =
        command.output().map_err(|cause| BuildError::NoTool { command: name.clone(), cause })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(BuildError::Tool { command: name, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_apt_the_kernel_downloaded_last_is_taken() {
        let cache = tempfile::tempdir().unwrap();
        let kernels = cache.path();
        assert_eq!(newest(kernels), None);
        let now = std::time::SystemTime::now();
        for (age, name) in
            [(9, "linux-image-9_9.deb"), (1, "linux-image-1_1.deb"), (0, "other.deb")]
        {
            let file = fs::File::create(kernels.join(name)).unwrap();
            file.set_modified(now - std::time::Duration::from_secs(age)).unwrap();
        }
        assert_eq!(newest(kernels).unwrap(), kernels.join("linux-image-1_1.deb"));
    }

    #[test]
    fn a_tool_that_fails_is_told_with_what_it_said() {
        let error = run(Path::new("/"), "sh", ["-c", "echo why >&2; exit 1"].map(OsStr::new));
        let BuildError::Tool { stderr, .. } = error.unwrap_err() else { panic!("not a Tool") };
        assert_eq!(stderr, "why");
        let error = run(Path::new("/"), "no-such-tool", []).unwrap_err();
        assert!(matches!(error, BuildError::NoTool { .. }), "{error}");
    }
}
