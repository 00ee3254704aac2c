//! Features that one end asks the other for, before it relies on them (`src/libvirt_internal.h`).

/// A feature that has a number; those without a variant are asked for by newer clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    MigrationV1,
    /// Is this connection a remote one?
    Remote,
    MigrationV2,
    MigrationP2p,
    MigrationDirect,
    MigrationV3,
    /// Asked of the source alone.
    MigrateChangeProtection,
    FdPassing,
    TypedParamString,
    /// Asked before the connection is open; from then on both ends may ping.
    ProgramKeepalive,
    XmlMigratable,
    MigrationOffline,
    /// Without it the calls with extensible parameters are not used.
    MigrationParams,
    RemoteEventCallback,
    /// Without it a source does not unregister its callback, and nobody hears of the VM's end.
    RemoteCloseCallback,
    NetworkUpdateHasCorrectOrder,
}

const ALL: [Feature; 16] = [
    Feature::MigrationV1,
    Feature::Remote,
    Feature::MigrationV2,
    Feature::MigrationP2p,
    Feature::MigrationDirect,
    Feature::MigrationV3,
    Feature::MigrateChangeProtection,
    Feature::FdPassing,
    Feature::TypedParamString,
    Feature::ProgramKeepalive,
    Feature::XmlMigratable,
    Feature::MigrationOffline,
    Feature::MigrationParams,
    Feature::RemoteEventCallback,
    Feature::RemoteCloseCallback,
    Feature::NetworkUpdateHasCorrectOrder,
];

impl Feature {
    /// From 1.
    pub fn number(self) -> i32 {
        (1..).zip(ALL).find_map(|(number, each)| (each == self).then_some(number)).unwrap_or(0)
    }

    pub fn from_number(number: i32) -> Option<Self> {
        (1..).zip(ALL).find_map(|(each, feature)| (each == number).then_some(feature))
    }

    /// What a [`Session`](crate::server::Session) answers: what a destination of peer-to-peer
    /// and direct migration needs, and nothing else. No descriptors; no offline migration, which
    /// would hand over a definition without a word about its disks.
    pub const fn is_served(self) -> bool {
        matches!(
            self,
            Self::MigrationP2p
                | Self::MigrationV3
                | Self::TypedParamString
                | Self::ProgramKeepalive
                | Self::MigrationParams
                | Self::RemoteEventCallback
                | Self::RemoteCloseCallback
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_libvirt() {
        for (feature, number) in [
            (Feature::MigrationV1, 1),
            (Feature::MigrationP2p, 4),
            (Feature::MigrationV3, 6),
            (Feature::FdPassing, 8),
            (Feature::ProgramKeepalive, 10),
            (Feature::XmlMigratable, 11),
            (Feature::MigrationOffline, 12),
            (Feature::MigrationParams, 13),
            (Feature::RemoteEventCallback, 14),
            (Feature::RemoteCloseCallback, 15),
            (Feature::NetworkUpdateHasCorrectOrder, 16),
        ] {
            assert_eq!(feature.number(), number);
            assert_eq!(Feature::from_number(number), Some(feature));
        }
        for number in [i32::MIN, -1, 0, 17, i32::MAX] {
            assert_eq!(Feature::from_number(number), None);
        }
    }
}
