//! The parameters of a migration, by name (`VIR_MIGRATE_PARAM_*`,
//! `include/libvirt/libvirt-domain.h`; their types: `src/qemu/qemu_migration.h`).

use std::marker::PhantomData;

/// The name of a parameter whose values are of type `T`.
#[derive(Debug)]
pub struct Name<T> {
    pub field: &'static str,
    value: PhantomData<fn() -> T>,
}

/// Values are texts.
#[derive(Debug)]
pub enum Text {}

/// Values are numbers of this type.
#[derive(Debug)]
pub struct Number<T>(PhantomData<T>);

/// Types of values, as they are numbered on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int,
    Uint,
    Llong,
    Ullong,
    Double,
    Boolean,
    String,
}

impl Kind {
    pub const fn number(self) -> u32 {
        match self {
            Self::Int => 1,
            Self::Uint => 2,
            Self::Llong => 3,
            Self::Ullong => 4,
            Self::Double => 5,
            Self::Boolean => 6,
            Self::String => 7,
        }
    }

    /// In libvirt's words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Llong => "llong",
            Self::Ullong => "ullong",
            Self::Double => "double",
            Self::Boolean => "boolean",
            Self::String => "string",
        }
    }
}

impl<T> Name<T> {
    const fn new(field: &'static str) -> Self {
        Self { field, value: PhantomData }
    }
}

impl Name<Text> {
    /// Where the source's RAM stream goes: of the operator in Prepare, from Prepare's reply in
    /// Finish.
    pub const MIGRATE_URI: Self = Self::new("migrate_uri");
    /// In Finish always there.
    pub const DESTINATION_NAME: Self = Self::new("destination_name");
    /// The definition of the VM that runs; in Prepare always there.
    pub const DESTINATION_XML: Self = Self::new("destination_xml");
    pub const PERSISTENT_XML: Self = Self::new("persistent_xml");
    pub const GRAPHICS_URI: Self = Self::new("graphics_uri");
    /// Where the destination listens for the data connections.
    pub const LISTEN_ADDRESS: Self = Self::new("listen_address");
    /// Targets (`vda`) of the disks to copy; as many as there are such disks.
    pub const MIGRATE_DISKS: Self = Self::new("migrate_disks");
    /// Where disks go, instead of `migrate_uri`'s host with [`Name::DISKS_PORT`].
    pub const DISKS_URI: Self = Self::new("disks_uri");
    /// Methods; as many as are wanted.
    pub const COMPRESSION: Self = Self::new("compression");
    pub const TLS_DESTINATION: Self = Self::new("tls.destination");
}

impl Name<Number<i32>> {
    pub const DISKS_PORT: Self = Self::new("disks_port");
    pub const COMPRESSION_MT_LEVEL: Self = Self::new("compression.mt.level");
    pub const COMPRESSION_MT_THREADS: Self = Self::new("compression.mt.threads");
    pub const COMPRESSION_MT_DTHREADS: Self = Self::new("compression.mt.dthreads");
    /// In percent.
    pub const AUTO_CONVERGE_INITIAL: Self = Self::new("auto_converge.initial");
    /// In percent.
    pub const AUTO_CONVERGE_INCREMENT: Self = Self::new("auto_converge.increment");
    /// How many connections carry RAM.
    pub const PARALLEL_CONNECTIONS: Self = Self::new("parallel.connections");
}

impl Name<Number<u64>> {
    /// In MiB/s.
    pub const BANDWIDTH: Self = Self::new("bandwidth");
    /// In MiB/s.
    pub const BANDWIDTH_POSTCOPY: Self = Self::new("bandwidth.postcopy");
    /// In bytes.
    pub const COMPRESSION_XBZRLE_CACHE: Self = Self::new("compression.xbzrle.cache");
}

/// The type of a parameter of a migration, and whether it may occur more than once.
pub fn known(field: &str) -> Option<(Kind, bool)> {
    let texts = [
        Name::MIGRATE_URI,
        Name::DESTINATION_NAME,
        Name::DESTINATION_XML,
        Name::PERSISTENT_XML,
        Name::GRAPHICS_URI,
        Name::LISTEN_ADDRESS,
        Name::MIGRATE_DISKS,
        Name::DISKS_URI,
        Name::COMPRESSION,
        Name::TLS_DESTINATION,
    ];
    let ints = [
        Name::DISKS_PORT,
        Name::COMPRESSION_MT_LEVEL,
        Name::COMPRESSION_MT_THREADS,
        Name::COMPRESSION_MT_DTHREADS,
        Name::AUTO_CONVERGE_INITIAL,
        Name::AUTO_CONVERGE_INCREMENT,
        Name::PARALLEL_CONNECTIONS,
    ];
    let ullongs = [Name::BANDWIDTH, Name::BANDWIDTH_POSTCOPY, Name::COMPRESSION_XBZRLE_CACHE];
    if texts.iter().any(|name| name.field == field) {
        let many = field == Name::MIGRATE_DISKS.field || field == Name::COMPRESSION.field;
        Some((Kind::String, many))
    } else if ints.iter().any(|name| name.field == field) {
        Some((Kind::Int, false))
    } else if ullongs.iter().any(|name| name.field == field) {
        Some((Kind::Ullong, false))
    } else {
        None
    }
}
