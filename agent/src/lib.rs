//! `causeway-agent`: the program inside the guest that is moved, and inside the helper that
//! receives its disks.

pub mod failure;
pub mod inspect;
