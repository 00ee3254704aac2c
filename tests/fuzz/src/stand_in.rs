//! What the sources that are taken in need from beside them, without what that rests on.

/// For `adapters/libvirt/src/config.rs`.
#[derive(Clone, Debug)]
pub struct UefiLoader {
    pub code: String,
    pub vars_template: String,
}

/// For `adapters/libvirt/src/fault.rs`, which holds libvirt's own errors too.
pub mod fault {
    use site::SiteErrorKind;

    #[derive(Debug)]
    pub struct Fault {
        pub kind: SiteErrorKind,
        pub what: String,
    }

    impl Fault {
        pub fn found(kind: SiteErrorKind, what: impl Into<String>) -> Self {
            Self { kind, what: what.into() }
        }
    }
}

/// For `coordinator/src/failure.rs`, which knows every error there is.
pub mod failure {
    use std::error::Error;

    pub enum Kind {
        Usage,
    }

    pub struct Failure;

    impl Failure {
        pub fn new(_: Kind, _: impl Into<String>) -> Self {
            Self
        }

        pub fn caused_by(self, _: &dyn Error) -> Self {
            self
        }
    }
}
