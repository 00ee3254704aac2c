//! Flags of a migration (`virDomainMigrateFlags`, `include/libvirt/libvirt-domain.h`).

use std::fmt;
use std::ops::BitOr;

/// A set of flags, those without a name included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u32);

/// As virsh calls them, from the lowest bit.
const NAMES: [&str; 21] = [
    "live",
    "p2p",
    "tunnelled",
    "persistent",
    "undefinesource",
    "suspend",
    "copy-storage-all",
    "copy-storage-inc",
    "change-protection",
    "unsafe",
    "offline",
    "compressed",
    "abort-on-error",
    "auto-converge",
    "rdma-pin-all",
    "postcopy",
    "tls",
    "parallel",
    "copy-storage-synchronous-writes",
    "postcopy-resume",
    "zerocopy",
];

impl Flags {
    pub const NONE: Self = Self(0);
    pub const LIVE: Self = Self(1);
    pub const PEER2PEER: Self = Self(1 << 1);
    pub const TUNNELLED: Self = Self(1 << 2);
    /// The VM is to be defined at the destination; its definition comes with Finish.
    pub const PERSIST_DEST: Self = Self(1 << 3);
    pub const UNDEFINE_SOURCE: Self = Self(1 << 4);
    /// The VM does not run when it has arrived.
    pub const PAUSED: Self = Self(1 << 5);
    /// Disks are copied whole.
    pub const NON_SHARED_DISK: Self = Self(1 << 6);
    /// Disks are copied above a backing file that the destination has.
    pub const NON_SHARED_INC: Self = Self(1 << 7);
    pub const CHANGE_PROTECTION: Self = Self(1 << 8);
    pub const UNSAFE: Self = Self(1 << 9);
    pub const OFFLINE: Self = Self(1 << 10);
    pub const COMPRESSED: Self = Self(1 << 11);
    pub const ABORT_ON_ERROR: Self = Self(1 << 12);
    pub const AUTO_CONVERGE: Self = Self(1 << 13);
    pub const RDMA_PIN_ALL: Self = Self(1 << 14);
    /// The VM may run at the destination before its memory is there.
    pub const POSTCOPY: Self = Self(1 << 15);
    /// QEMU's own TLS on the data connections.
    pub const TLS: Self = Self(1 << 16);
    pub const PARALLEL: Self = Self(1 << 17);
    pub const NON_SHARED_SYNCHRONOUS_WRITES: Self = Self(1 << 18);
    pub const POSTCOPY_RESUME: Self = Self(1 << 19);
    pub const ZEROCOPY: Self = Self(1 << 20);

    /// Bits that libvirt 9.0.0 gives no meaning.
    pub const UNKNOWN: Self = Self(!((1 << NAMES.len()) - 1));

    pub const fn contains(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }

    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, others: Self) -> Self {
        self.with(others)
    }
}

/// The options of virsh, as an operator would have typed them; bits without a name in hexadecimal.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut between = "";
        for (bit, name) in NAMES.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                write!(f, "{between}--{name}")?;
                between = " ";
            }
        }
        let unknown = self.and(Self::UNKNOWN);
        if unknown.is_empty() { Ok(()) } else { write!(f, "{between}{:#x}", unknown.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_copy_with_storage_are_what_was_seen_on_the_wire() {
        let flags = Flags::LIVE | Flags::PEER2PEER | Flags::NON_SHARED_DISK;
        assert_eq!(flags.0, 67);
        assert_eq!(flags.to_string(), "--live --p2p --copy-storage-all");
        assert_eq!((Flags::POSTCOPY.0, Flags::PARALLEL.0), (32768, 131_072));
    }

    #[test]
    fn bits_without_a_name_are_told_as_such() {
        let flags = Flags(1 << 31) | Flags::LIVE;
        assert_eq!(flags.and(Flags::UNKNOWN), Flags(1 << 31));
        assert_eq!(flags.to_string(), "--live 0x80000000");
        assert!(Flags::ZEROCOPY.and(Flags::UNKNOWN).is_empty());
    }
}
