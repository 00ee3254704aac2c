//! Mounted file systems, from `mountinfo`.

use std::collections::BTreeMap;

use super::tree::Tree;

/// Major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(|_| ())?, minor: minor.parse().map_err(|_| ())? })
    }
}

/// One mount of one file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's id of the mount, the same in every mount namespace.
    pub id: u64,
    /// Of the file system: the block device, or an anonymous one (major 0) for btrfs and others
    /// that are not on exactly one.
    pub device: DeviceNumber,
    /// How this process reaches it: `/srv`, or `/proc/4711/root/srv` in another namespace.
    pub path: String,
    pub kind: String,
    pub source: String,
    /// Of this mount: `rw,nosuid,relatime`.
    pub options: String,
    /// The file system itself, not only this mount of it.
    pub read_only: bool,
}

/// Every mount that this process or any other sees; each once, its own first.
pub fn all(tree: &Tree) -> Vec<Mount> {
    let mut seen = BTreeMap::new();
    for (order, mount) in own(tree).into_iter().enumerate() {
        seen.entry(mount.id).or_insert((order, mount));
    }
    let mut namespaces: Vec<String> = tree.link("proc/self/ns/mnt").into_iter().collect();
    let first_foreign = seen.len();
    for pid in tree.names("proc").iter().filter(|name| name.parse::<u32>().is_ok()) {
        let Some(namespace) = tree.link(format!("proc/{pid}/ns/mnt")) else { continue };
        if namespaces.contains(&namespace) {
            continue;
        }
        namespaces.push(namespace);
        let text = tree.text(format!("proc/{pid}/mountinfo")).unwrap_or_default();
        for mut mount in text.lines().filter_map(parse) {
            mount.path = format!("/proc/{pid}/root{}", mount.path);
            let order = first_foreign + seen.len();
            seen.entry(mount.id).or_insert((order, mount));
        }
    }
    let mut mounts: Vec<(usize, Mount)> = seen.into_values().collect();
    mounts.sort_by_key(|(order, _)| *order);
    mounts.into_iter().map(|(_, mount)| mount).collect()
}

/// The mounts of this process' own namespace, in the order in which they were made.
pub fn own(tree: &Tree) -> Vec<Mount> {
    let text = tree.text("proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// One line, as proc(5) has it:
/// `36 35 98:0 /root /mount rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ');
    let id = place.next()?.parse().ok()?;
    let _parent = place.next()?;
    let device = place.next()?.parse().ok()?;
    let _root = place.next()?;
    let path = unescape(place.next()?);
    let options = place.next()?.to_owned();
    let mut what = what.split(' ');
    let kind = what.next()?.to_owned();
    let source = unescape(what.next()?);
    let read_only = what.next()?.split(',').any(|option| option == "ro");
    Some(Mount { id, device, path, kind, source, options, read_only })
}

/// Space, tab, newline, backslash and `#` stand as three octal digits.
pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let line = r"36 35 254:1 / /mnt/a\040b ro,noatime shared:1 master:2 - ext4 /dev/vda1 rw,errors=remount-ro";
        let mount = parse(line).unwrap();
        assert_eq!(mount.id, 36);
        assert_eq!(mount.device, DeviceNumber { major: 254, minor: 1 });
        assert_eq!(mount.path, "/mnt/a b");
        assert_eq!(mount.kind, "ext4");
        assert!(!mount.read_only, "only this mount is read-only, the file system is not");
    }

    #[test]
    fn a_backslash_without_digits_stays() {
        assert_eq!(unescape(r"a\zb\04"), r"a\zb\04");
    }

    #[test]
    fn a_file_system_that_only_another_namespace_has_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc");
        for (pid, namespace, text) in [
            ("self", "mnt:[1]", "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n"),
            ("1", "mnt:[1]", "20 1 254:1 / / rw - ext4 /dev/vda1 rw\n"),
            ("77", "mnt:[2]", "91 90 254:16 / /data rw - xfs /dev/vdb rw\n"),
        ] {
            fs::create_dir_all(proc.join(pid).join("ns")).unwrap();
            symlink(namespace, proc.join(pid).join("ns/mnt")).unwrap();
            fs::write(proc.join(pid).join("mountinfo"), text).unwrap();
        }
        let paths: Vec<String> =
            all(&Tree::at(dir.path())).into_iter().map(|mount| mount.path).collect();
        assert_eq!(paths, ["/", "/proc/77/root/data"]);
    }
}
